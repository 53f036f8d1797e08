"""Latency by tokens: predictions dashed with their interval, lower bounds dotted, records as solid points."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

import pandas as pd

from mnnvl_lab.explorer.svg import (
    BLUE,
    FAINT,
    GREEN,
    INK,
    LINE,
    PURPLE,
    QUIET,
    VERMILLION,
    LogScale,
    Panel,
    dot,
    drawing,
    line,
    number,
    path,
    rect,
    text,
)

COLORS: Mapping[str, str] = MappingProxyType(
    {
        "one_sided": BLUE,
        "two_sided": VERMILLION,
        "allgather_reducescatter": GREEN,
        "all_to_all": PURPLE,
    }
)
NAMES: Mapping[str, str] = MappingProxyType(
    {
        "one_sided": "one-sided",
        "two_sided": "two-sided",
        "allgather_reducescatter": "all-gather / reduce-scatter",
        "all_to_all": "all-to-all",
    }
)
WIDTH, HEIGHT, LEFT, RIGHT, BOTTOM, TOP = 560, 336, 52, 26, 50, 46


def latency_panel(table: pd.DataFrame, *, recorded: pd.DataFrame | None = None, tokens: int | None = None) -> Panel:
    """Predicted rounds of each mode by tokens per rank.

    A prediction is dashed with a band and is called one; only records are points.

    Args:
        table: of `Forecast.to_frame()`, several token counts.
        recorded: `mode, tokens, latency_us` of records over NVLink of the same layout and load, if there are any.
        tokens: the count that is marked.
    """
    known = table[table["bound_us"].notna()]
    if known.empty:
        return drawing([text(0, 20, "no mode serves this layout")], width=WIDTH, height=30, alt="no mode serves this")
    x, y = _scales(known, recorded)
    body = _axes(x, y)
    for mode, rows in known.groupby("mode", sort=False):
        body += _mode(rows.sort_values("tokens"), COLORS.get(mode, INK), x, y)
    body += [
        dot(x(row.tokens), y(row.latency_us), fill=COLORS.get(row.mode, INK), stroke=INK, more='class="recorded"')
        for row in (recorded.itertuples() if recorded is not None else ())
    ]
    if tokens is not None:
        body.append(line(x(tokens), TOP, x(tokens), HEIGHT - BOTTOM, stroke=INK, more='opacity="0.5"'))
    body += _legend(list(known["mode"].unique()), has_records=recorded is not None and len(recorded) > 0)
    alt = f"Predicted latency of a round by tokens per rank: {', '.join(known['mode'].unique())}"
    return drawing(body, width=WIDTH, height=HEIGHT, alt=alt)


def numbers_panel(table: pd.DataFrame, *, tokens: int) -> Panel:
    """What is predicted at one token count, as a small table."""
    rows = table[table["tokens"] == tokens]
    cells = "".join(_number_row(row) for row in rows.to_dict("records"))
    heads = ("mode", "predicted µs", "95 % interval", "dispatch", "combine", "lower bound", "dominated by")
    head = "".join(f'<th style="text-align:left;padding:1px 10px 1px 0">{name}</th>' for name in heads)
    alt = f"Predictions at {tokens} tokens per rank"
    return Panel(html=f'<table style="font-size:12px" aria-label="{alt}"><tr>{head}</tr>{cells}</table>', alt=alt)


def _number_row(row: dict) -> str:
    def shown(name: str) -> str:
        return "-" if pd.isna(row[name]) else number(row[name])

    interval = "-" if pd.isna(row["low_us"]) else f"{shown('low_us')} to {shown('high_us')}"
    color = COLORS.get(row["mode"], INK)
    values = (shown("latency_us"), interval, shown("dispatch_us"), shown("combine_us"), shown("bound_us"))
    cells = "".join(f'<td style="padding:1px 10px 1px 0">{value}</td>' for value in values)
    mode = (
        f'<td style="padding:1px 10px 1px 0;color:{color};font-weight:600">{NAMES.get(row["mode"], row["mode"])}</td>'
    )
    cause = "-" if pd.isna(row["dominated_by"]) else row["dominated_by"] or "-"
    return f'<tr data-mode="{row["mode"]}">{mode}{cells}<td>{cause}</td></tr>'


def _scales(known: pd.DataFrame, recorded: pd.DataFrame | None) -> tuple[LogScale, LogScale]:
    highest = known[["bound_us", "high_us"]].max().max()
    least = known["low_us"].min() if known["low_us"].notna().any() else known["bound_us"].max() / 1e3
    if recorded is not None and len(recorded):
        highest, least = max(highest, recorded["latency_us"].max()), min(least, recorded["latency_us"].min())
    first, last = known["tokens"].min(), max(known["tokens"].max(), known["tokens"].min() * 2)
    x = LogScale(low=first, high=last, begin=LEFT, end=WIDTH - RIGHT)
    y = LogScale(low=max(least / 1.6, 1e-3), high=1.4 * highest, begin=HEIGHT - BOTTOM, end=TOP)
    return x, y


def _axes(x: LogScale, y: LogScale) -> list[str]:
    body = [text(0, 14, "latency of a round (µs), predicted", size=13, more='font-weight="600"')]
    for value in y.ticks():
        place = y(value)
        body.append(line(LEFT, place, WIDTH - RIGHT, place, stroke=FAINT))
        body.append(text(LEFT - 6, place + 4, _tick(value), anchor="end", fill=QUIET, size=10))
    count = x.low
    while count <= x.high:
        place = x(count)
        body.append(text(place, HEIGHT - BOTTOM + 14, _tick(count), anchor="middle", fill=QUIET, size=10))
        body.append(line(place, HEIGHT - BOTTOM, place, HEIGHT - BOTTOM + 3))
        count *= 4
    middle = (LEFT + WIDTH) / 2
    return [*body, text(middle, HEIGHT - BOTTOM + 28, "tokens per rank", anchor="middle", fill=QUIET, size=11)]


def _tick(value: float) -> str:
    return f"{value:,.0f}" if value >= 1e4 else f"{value:g}"


def _mode(rows: pd.DataFrame, color: str, x: LogScale, y: LogScale) -> list[str]:
    """Band, dashed line, dotted bound."""
    columns = {name: rows[name].to_list() for name in ("tokens", "latency_us", "low_us", "high_us", "bound_us")}
    places = [x(n) for n in columns["tokens"]]
    bound = [(px, y(us)) for px, us in zip(places, columns["bound_us"], strict=True) if us >= y.low]
    body = [path(bound, stroke=color, more='stroke-dasharray="1 4" class="bound"')] if len(bound) > 1 else []
    if rows["latency_us"].isna().any():
        return body
    upper = [(px, y(us)) for px, us in zip(places, columns["high_us"], strict=True)]
    lower = [(px, y(us)) for px, us in zip(places, columns["low_us"], strict=True)]
    middle = [(px, y(us)) for px, us in zip(places, columns["latency_us"], strict=True)]
    band = path(upper + lower[::-1], stroke="none", fill=color, closed=True, more='opacity="0.16" class="interval"')
    dashed = path(middle, stroke=color, more='stroke-width="2" stroke-dasharray="7 4" class="prediction"')
    return [*body, band, dashed]


def _legend(modes: list[str], *, has_records: bool) -> list[str]:
    body, place = [], LEFT
    for mode in modes:
        body.append(rect(place, 24, 10, 10, fill=COLORS.get(mode, INK)))
        body.append(text(place + 14, 33, NAMES.get(mode, mode), size=11))
        place += 24 + 6.2 * len(NAMES.get(mode, mode))
    kinds = "dashed: prediction, band: 95 %, dotted: lower bound" + (", points: recorded" if has_records else "")
    return [*body, text(LEFT, HEIGHT - 4, kinds, fill=LINE if not modes else QUIET, size=11)]

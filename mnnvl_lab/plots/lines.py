"""Lines over a range: latency with its bounds, and memory."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from mnnvl_lab.errors import Refused
from mnnvl_lab.plots.style import (
    QUIET,
    LineStyle,
    caption,
    format_axis,
    format_load,
    head,
    line_styles,
    new_axes,
    note,
    origin,
    style,
)
from mnnvl_lab.records import POINT_COLUMNS, require_column, summary
from mnnvl_lab.records.table import ONE_ORIGIN, provenance_of

if TYPE_CHECKING:
    from matplotlib.axes import Axes

LABEL_POINTS = 12.5
"""Least distance between two labels."""
BELOW = 4
"""A bound far below every measured point is cut off at so small a part of the least of them."""


def latency(
    table: pd.DataFrame,
    *,
    x: str = "tokens",
    hue: str = "mode",
    bounds: pd.DataFrame | None = None,
    ax: Axes | None = None,
) -> Axes:
    """Median over iterations of the slowest rank, with a band from the fastest iteration to the 90th percentile.

    Args:
        table: samples of all ranks, of one phase.
        x, hue: point columns: one along the axis, one told by colour and marker.
        bounds: columns `x`, `bound` (its name), `latency_us`, and `basis` in words if there is one: limits that no
            point can be below.

    Raises:
        Refused: a further point column has several values, so that a line would mix what does not compare.
    """
    require_unmixed(table, x, hue)
    derived = summary(table, by=[hue, x]).sort_values(x)
    with style():
        ax = new_axes(ax)
        ends = [
            _line(ax, line, x, "p50_us", stroke, band=("min_us", "p90_us")) for line, stroke in _split(derived, hue)
        ]
        shown, floor_us = np.concatenate([derived["p50_us"], derived["min_us"], derived["p90_us"]]), None
        if bounds is not None:
            floor_us = shown.min() / BELOW
            shown = np.concatenate([shown, bounds["latency_us"].clip(lower=floor_us)])
        _set_axes(ax, x, "latency_us", derived[x].to_numpy(), shown, bottom=floor_us)
        in_view = _in_view(ax, x, bounds)
        ends += [_bound(ax, line, x) for _, line in in_view.sort_values(x).groupby("bound", sort=False)]
        _label_ends(ax, ends)
        phases = ", ".join(table["phase"].unique())
        head(ax, f"Latency of {_article(phases)} by {_lower(x)}", format_load(table, (x, hue)))
        statistic = "median over iterations of the slowest rank; band: least to 90th percentile"
        caption(ax, origin(table), statistic, *_bases(in_view))
    return ax


def memory(
    table: pd.DataFrame, *, x: str = "tokens", hue: str = "mode", y: str = "workspace_bytes", ax: Axes | None = None
) -> Axes:
    """Bytes of a rank by tokens, EP size, or another column.

    Args:
        table: one row per point, as `tables.memory_table` makes it.
        y: which bytes.
    """
    require_unmixed(table, x, hue)
    ordered = table.sort_values(x)
    with style():
        ax = new_axes(ax)
        ends = [_line(ax, line, x, y, stroke) for line, stroke in _split(ordered, hue)]
        _set_axes(ax, x, y, ordered[x].to_numpy(), ordered[y].to_numpy())
        _label_ends(ax, ends)
        head(ax, f"{require_column(y).label} by {_lower(x)}", format_load(table, (x, hue)))
        caption(ax, f"computed for {provenance_of(table).get('device', 'any device')}, not measured")
    return ax


def require_unmixed(table: pd.DataFrame, x: str, hue: str) -> None:
    """Refuse a table in which a line would run through points that differ in more than `x`.

    Raises:
        Refused: names the column, its values and the remedy.
    """
    for name in (x, hue):
        require_column(name)
        if name not in table.columns:
            raise Refused(f"{name!r} is no column of this table: it has {', '.join(table.columns)}; name one of these")
    if table.empty:
        raise Refused("the table is empty: a figure needs rows; loosen the selection")
    for name in (*POINT_COLUMNS, "device"):
        if name not in table.columns or name in (x, hue):
            continue
        within = table if name in ONE_ORIGIN else table.groupby([hue, x], sort=False)
        if np.max(within[name].nunique()) > 1:
            values = table[name].unique().tolist()
            choice = f"{name} == {values[0]!r}"
            raise Refused(
                f"{name} has the values {', '.join(map(str, values))}: one line would mix them; "
                f"select one, as in table.query({choice!r}), or pass hue={name!r}"
            )


def _split(table: pd.DataFrame, hue: str) -> Iterable[tuple[pd.DataFrame, LineStyle]]:
    drawn = line_styles(list(table[hue].drop_duplicates().sort_values()), hue)
    return [(table[table[hue] == value], stroke) for value, stroke in drawn.items()]


def _line(ax: Axes, line: pd.DataFrame, x: str, y: str, stroke: LineStyle, band: tuple[str, str] | None = None):
    ax.plot(line[x], line[y], color=stroke.color, marker=stroke.marker, label=stroke.label, zorder=3)
    if band:
        ax.fill_between(line[x], line[band[0]], line[band[1]], color=stroke.color, alpha=0.16, linewidth=0, zorder=2)
    return line[x].iloc[-1], line[y].iloc[-1], stroke.label, stroke.color


def _in_view(ax: Axes, x: str, bounds: pd.DataFrame | None) -> pd.DataFrame:
    """The bounds of which some point lies within the axis: others are neither drawn nor named."""
    if bounds is None:
        return pd.DataFrame(columns=[x, "bound", "latency_us", "basis"])
    possible = bounds[bounds["latency_us"] > 0]
    low_us, high_us = ax.get_ylim()
    seen = possible.loc[possible["latency_us"].between(low_us, high_us), "bound"].unique()
    return possible[possible["bound"].isin(seen)]


def _bound(ax: Axes, line: pd.DataFrame, x: str):
    name, before = str(line["bound"].iloc[0]), ax.get_ylim()
    dashes = {"color": QUIET, "linestyle": (0, (5, 2)), "linewidth": 1.2}
    ax.plot(line[x], line["latency_us"], label=name, zorder=1, gid="bound", **dashes)
    ax.set_ylim(before)
    return line[x].iloc[-1], line["latency_us"].iloc[-1], name, QUIET


def _bases(bounds: pd.DataFrame) -> list[str]:
    """What each bound rests on, for the caption."""
    if "basis" not in bounds:
        return []
    return [f"{name}: {basis}" for name, basis in bounds[["bound", "basis"]].drop_duplicates().to_numpy()]


def _set_axes(ax: Axes, x: str, y: str, xs: np.ndarray, ys: np.ndarray, *, bottom: float | None = None) -> None:
    """Scales, ticks and limits, before anything is placed by them."""
    format_axis(ax.xaxis, x, xs)
    format_axis(ax.yaxis, y, ys)
    if ax.get_yscale() == "linear":
        ax.set_ylim(bottom=0, top=1.08 * ys.max())
    elif bottom is not None:
        pad = (ys.max() / ys.min()) ** ax.margins()[1]
        ax.set_ylim(bottom=max(bottom, ys.min() / pad), top=ys.max() * pad)
    ax.grid(visible=False, axis="x")


def _label_ends(ax: Axes, ends: list[tuple[float, float, str, str]]) -> None:
    """A name at the end of every line, moved up where two would touch."""
    height_points = ax.figure.get_figheight() * 72 * ax.get_position().height
    gap = LABEL_POINTS / height_points
    to_axes = ax.transScale + ax.transLimits
    placed = sorted((float(to_axes.transform((x, y))[1]), label, color) for x, y, label, color in ends)
    for height, (_, label, color) in zip(spread([p[0] for p in placed], gap), placed, strict=True):
        text = note(ax, label, xy=(1, height), offset=(6, 0), ha="left", va="center", size=9, gid="label", color=color)
        text.set_fontweight("normal" if color == QUIET else "bold")


def spread(places: list[float], gap: float, low: float = -np.inf, high: float = np.inf) -> list[float]:
    """Ascending places moved as little as need be so that neighbours are `gap` apart and all lie in `[low, high]`.

    Runs that touch are centred on the mean of what they hold (pool adjacent violators).
    """
    blocks: list[list[float]] = []
    for i, place in enumerate(places):
        blocks.append([place - i * gap])
        while len(blocks) > 1 and np.mean(blocks[-2]) > np.mean(blocks[-1]):
            blocks[-2:] = [blocks[-2] + blocks[-1]]
    levels = [np.mean(block) for block in blocks for _ in block]
    highest = max(low, high - (len(places) - 1) * gap)
    return [float(np.clip(level, low, highest) + i * gap) for i, level in enumerate(levels)]


def _lower(name: str) -> str:
    label = require_column(name).label
    return label if label[:2].isupper() else label[0].lower() + label[1:]


def _article(phase: str) -> str:
    return "a round" if phase == "round" else phase

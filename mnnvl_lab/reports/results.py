"""Latencies of a file: by tokens, who is fastest where, and phase by phase."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import pandas as pd

from mnnvl_lab import plots
from mnnvl_lab.analysis import crossover
from mnnvl_lab.errors import Refused
from mnnvl_lab.plots.selection import lines
from mnnvl_lab.plots.style import LINE_STYLES
from mnnvl_lab.records import summary
from mnnvl_lab.records.styled import number_writer
from mnnvl_lab.records.table_styles import Field
from mnnvl_lab.reports.blocks import Block, fields_block, figure, joined, paragraph, table_block
from mnnvl_lab.reports.inputs import Source

CLOCKS = ("graph", "kernel", "eager")
"""In this order, where there are several."""
LOAD = ("clock", "phase", "format", "routing", "ep_size")
MOST_TOKENS = 7
"""A table of phases shows so many token counts; all of them are in the numbers of the page."""


def rounds(table: pd.DataFrame) -> Iterator[tuple[str, pd.DataFrame]]:
    """The parts of a table that make one figure of rounds, clock by clock."""
    for clock in CLOCKS:
        part = table[(table["clock"] == clock) & (table["phase"] == "round") & (table["delay_us"] == 0)]
        if len(part):
            for name, one in lines(part):
                yield f"{clock}{name}", one


def latency(source: Source, *, links: pd.DataFrame | None = None, folder: str | None = None) -> Block:
    """Rounds by tokens: a figure with its lower bound, and a table of medians with their intervals."""
    blocks = []
    for name, part in rounds(source.table):
        ax = plots.latency(part, bounds=plots.lower_bounds(part, links=links))
        blocks.append(figure(ax, f"latency-{source.letter}-{name}", source=source.table, folder=folder))
        blocks.append(wide(summary(part), about(source, part)))
    return joined(blocks) if blocks else paragraph(f"{source.letter} holds no whole rounds without a delay.")


def about(source: Source, part: pd.DataFrame) -> dict[str, object]:
    """Where in the data a table comes from."""
    same = {name: part[name].iloc[0] for name in LOAD if name in part.columns and part[name].nunique() == 1}
    return {"file": source.letter, **{name.replace("_", "-"): value for name, value in same.items()}}


def wide(medians: pd.DataFrame, place: Mapping[str, object]) -> Block:
    """A row per token count, and for each mode its median and the interval of it."""
    tokens = sorted(medians["tokens"].unique())
    fields = [Field.of("tokens", "Tokens per rank", [f"{count}" for count in tokens], tokens)]
    for mode, line in medians.groupby("mode", sort=False):
        rows = line.set_index("tokens")
        fields += _mode_fields(mode, [rows.loc[count] if count in rows.index else None for count in tokens])
    return fields_block(fields, place, caption=f"{place['file']}: {load_of(place)}; medians with 95 % intervals, µs")


def load_of(place: Mapping[str, object]) -> str:
    """What `about` says, in words."""
    names = {"clock": "clock {}", "phase": "{}", "format": "{}", "routing": "{} routing", "ep-size": "EP {}"}
    return " · ".join(words.format(place[name]) for name, words in names.items() if name in place)


def _mode_fields(mode: str, rows: list[pd.Series | None]) -> list[Field]:
    have = [row for row in rows if row is not None]
    write = number_writer(
        pd.Series([row[name] for row in have for name in ("p50_us", "low_us", "high_us")], dtype=float)
    )
    p50 = [None if row is None else row["p50_us"] for row in rows]
    ends = [None if row is None or pd.isna(row["low_us"]) else (row["low_us"], row["high_us"]) for row in rows]
    cells = ["" if pair is None else f"{write(pair[0])} – {write(pair[1])}" for pair in ends]
    raw = [None if pair is None else f"{float(pair[0])!r} {float(pair[1])!r}" for pair in ends]
    return [
        Field.of(f"{mode}:p50_us", _label(mode), ["" if value is None else write(value) for value in p50], p50),
        Field.of(f"{mode}:interval", "interval", cells, raw),
    ]


def fastest(source: Source, *, folder: str | None = None) -> Block:
    """Who is ahead at which token count, and where two change places."""
    clock, ahead = ahead_of(source.table)
    if ahead is None:
        return paragraph(f"{source.letter}: no token count has two modes to compare.")
    chosen = source.table[(source.table["clock"] == clock) & (source.table["phase"] == "round")]
    blocks = [paragraph(sentence) for sentence in sentences(ahead)]
    for name, part in lines(chosen[chosen["delay_us"] == 0]):
        try:
            ax = plots.fastest(part, clock=clock)
        except Refused:
            continue  # several loads, or one mode alone
        blocks.append(figure(ax, f"fastest-{source.letter}-{clock}{name}", source=source.table, folder=folder))
    varying = [name for name in ("routing", "format", "ep_size") if ahead[name].nunique() > 1]
    columns = [*varying, "tokens", "fastest", "p50_us", "runner_up", "runner_up_us", "lead_percent"]
    where = {"file": source.letter, "clock": clock, "table": "fastest"}
    words = (
        f"{source.letter}: who is fastest, clock {clock}; `no difference` where the intervals of the first two overlap"
    )
    return joined([*blocks, table_block(ahead, where, caption=words, columns=columns), *_places(source, clock)])


def ahead_of(table: pd.DataFrame) -> tuple[str, pd.DataFrame | None]:
    """The first clock by which two modes can be compared, and who is ahead by it."""
    undelayed = table[table["delay_us"] == 0]
    for clock in CLOCKS:
        try:
            return clock, crossover.table(undelayed, clock=clock)
        except Refused:
            continue
    return "", None


def sentences(ahead: pd.DataFrame) -> list[str]:
    """The answer in words, one for each load."""
    names = [name for name in ("format", "routing", "ep_size") if ahead[name].nunique() > 1]
    groups = ahead.groupby(names, sort=False) if names else [((), ahead)]
    found = []
    for values, rows in groups:
        load = ", ".join(f"{name.replace('_', ' ')} {value}" for name, value in zip(names, values, strict=True))
        sure = rows[rows["fastest"] != crossover.NO_DIFFERENCE]
        parts = [
            f"{name} at {_spans(rows['tokens'], own['tokens'])} tokens per rank (the next is slower by "
            f"{own['lead_percent'].min():.0f} to {own['lead_percent'].max():.0f} %)"
            for name, own in sure.groupby("fastest", sort=False)
        ]
        undecided = rows[rows["fastest"] == crossover.NO_DIFFERENCE]["tokens"]
        if len(undecided):
            parts.append(f"no difference at {_spans(rows['tokens'], undecided)}")
        found.append(f"Fastest{f' with {load}' if load else ''}, clock {rows['clock'].iloc[0]}: {'; '.join(parts)}.")
    return found


def _spans(all_tokens: pd.Series, chosen: pd.Series) -> str:
    """`1 to 64, 512`: neighbours among what was measured are one span."""
    order, runs = sorted(all_tokens.unique()), []
    for place in sorted(order.index(count) for count in chosen.unique()):
        if runs and runs[-1][-1] == place - 1:
            runs[-1].append(place)
        else:
            runs.append([place])
    return ", ".join(f"{order[run[0]]} to {order[run[-1]]}" if len(run) > 1 else f"{order[run[0]]}" for run in runs)


def _places(source: Source, clock: str) -> list[Block]:
    changes = crossover.crossings(source.table[source.table["delay_us"] == 0], clock=clock)
    if changes.empty:
        return [paragraph("No two modes change places in the measured range.")]
    varying = [name for name in ("routing", "format", "ep_size") if changes[name].nunique() > 1]
    columns = [*varying, "below", "above", "tokens", "tokens_low", "tokens_high"]
    where = {"file": source.letter, "clock": clock, "table": "crossings"}
    words = f"{source.letter}: where two change places, by interpolation between measured token counts"
    return [table_block(changes, where, caption=words, columns=columns)]


def phase_parts(table: pd.DataFrame) -> Iterator[tuple[str, pd.DataFrame]]:
    """Undelayed samples of single phases, of one load and clock."""
    for clock in CLOCKS:
        part = table[(table["clock"] == clock) & (table["phase"] != "round") & (table["delay_us"] == 0)]
        by_load = part.groupby(["format", "routing", "ep_size"], sort=False)
        for values, one in by_load if len(part) else ():
            yield "-".join([clock, *map(str, values)]), one


def phases(source: Source, *, folder: str | None = None) -> Block:
    """What a round consists of: medians of each phase, mode by mode."""
    blocks = []
    for name, part in phase_parts(source.table):
        medians = summary(part)
        picked = spread_of(medians["tokens"])
        blocks.append(_phase_table(source, medians[medians["tokens"].isin(picked)], part))
        for mode, own in part.groupby("mode", sort=False) if not blocks[1:] else ():
            try:
                ax = plots.latency(own, hue="phase")
            except Refused:
                continue  # the mode was used in several ways
            _name_mode(ax, mode)
            blocks.append(figure(ax, f"phases-{source.letter}-{name}-{mode}", source=source.table, folder=folder))
    return joined(blocks)


def _name_mode(ax, mode: str) -> None:
    """Where the lines are phases, nothing else in the figure says whose."""
    for text in ax.texts:
        if text.get_gid() == "subtitle":
            text.set_text(f"{_label(mode)} · {text.get_text()}")


def _label(mode: str) -> str:
    return LINE_STYLES[mode].label if mode in LINE_STYLES else mode


def _phase_table(source: Source, medians: pd.DataFrame, part: pd.DataFrame) -> Block:
    place = about(source, part) | {"table": "phases"}
    columns = ["mode", "tokens", "phase", "p50_us", "interval", "p99_us", "n"]
    return table_block(medians, place, caption=f"{source.letter}: phases, {load_of(place)}", columns=columns)


def spread_of(counts: pd.Series) -> list[int]:
    """At most `MOST_TOKENS` of the token counts, ends included."""
    tokens = sorted(counts.unique())
    if len(tokens) <= MOST_TOKENS:
        return tokens
    step = (len(tokens) - 1) / (MOST_TOKENS - 1)
    return [tokens[round(i * step)] for i in range(MOST_TOKENS)]

"""Two files side by side: same or different, by how much, with intervals."""

from __future__ import annotations

from itertools import combinations

import pandas as pd

from mnnvl_lab import plots, records
from mnnvl_lab.errors import RecordError, Refused
from mnnvl_lab.plots.selection import lines
from mnnvl_lab.records import POINT_COLUMNS
from mnnvl_lab.records.compare import VERDICTS
from mnnvl_lab.records.schema import SIZES
from mnnvl_lab.reports.blocks import Block, figure, joined, paragraph, table_block
from mnnvl_lab.reports.inputs import SAMPLES, Source

SHOWN = ("p50_us_a", "p50_us_b", "change_percent", "low_percent", "high_percent", "p_value", "verdict")


def pairs(sources: tuple[Source, ...]) -> list[tuple[Source, Source]]:
    """Every two files with samples, the earlier first."""
    return list(combinations([source for source in sources if source.kind == SAMPLES], 2))


def compared(a: Source, b: Source) -> pd.DataFrame:
    """`records.compare` of two files.

    Raises:
        RecordError: they have no point in common.
    """
    return records.compare(a.table, b.table)


def comparison(sources: tuple[Source, ...], *, folder: str | None = None) -> Block:
    """Every pair of files, over the points that both have."""
    return joined(_pair(a, b, folder) for a, b in pairs(sources))


def _pair(a: Source, b: Source, folder: str | None) -> Block:
    name = f"{a.letter} ({a.device}) and {b.letter} ({b.device})"
    try:
        table = compared(a, b)
    except RecordError as reason:
        return paragraph(f"{name} cannot be compared: {reason}")
    blocks = [paragraph(verdict_words(name, a, b, table))]
    for words, part in lines(table):
        for (clock, phase), one in part.groupby(["clock", "phase"], sort=False):
            try:
                ax = plots.comparison(one.pipe(_with_attrs, table))
            except Refused:
                continue  # a line would mix what does not compare; the table has it
            place = f"comparison-{a.letter}{b.letter}-{clock}-{phase}{words}"
            blocks.append(figure(ax, place, source=b.table, folder=folder))
    return joined([*blocks, _table(a, b, table)])


def _with_attrs(part: pd.DataFrame, whole: pd.DataFrame) -> pd.DataFrame:
    part.attrs = dict(whole.attrs)
    return part


def verdict_words(name: str, a: Source, b: Source, table: pd.DataFrame) -> str:
    """How many points are the same, and between what the others differ."""
    counts = table["verdict"].value_counts()
    parts = [f"{counts[verdict]} {verdict}" for verdict in VERDICTS if verdict in counts]
    moved = table[table["verdict"].isin(("faster", "slower"))]
    span = ""
    if len(moved):
        span = f", by {moved['change_percent'].min():+.1f} to {moved['change_percent'].max():+.1f} %"
    alone = [f"{table.attrs[f'only_{side}']} points of {s.letter} alone" for side, s in (("a", a), ("b", b))]
    note = "" if a.device == b.device else " They were measured on different devices."
    return (
        f"{name}: of {len(table)} points that both have, {', '.join(parts)} ({b.letter} against {a.letter}{span}); "
        f"{' and '.join(alone)} are left out. One false alarm in the whole table has a chance of at most 1 %.{note}"
    )


def _table(a: Source, b: Source, table: pd.DataFrame) -> Block:
    always = ("mode", "phase", "tokens")
    varying = [
        n for n in POINT_COLUMNS if n in always or (n not in SIZES and table[n].nunique() > 1 and _tells(table, n))
    ]
    where = {"file": f"{a.letter}{b.letter}", "table": "comparison"}
    words = f"{b.letter} against {a.letter}; the interval is of each point's change by itself"
    return table_block(table, where, caption=words, columns=[*varying, *SHOWN])


def _tells(table: pd.DataFrame, name: str) -> bool:
    """Whether a column varies, and not with the mode alone."""
    return bool((table.groupby("mode")[name].nunique() > 1).any())

"""What the data cannot say, found in the data."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import pandas as pd

from mnnvl_lab.records import protection_of
from mnnvl_lab.records.schema import POINT_COLUMNS
from mnnvl_lab.reports.inputs import SAMPLES, Source

FEW = 100
"""Of fewer iterations than these, the 99th percentile is nearly the largest sample."""


def caveats(sources: Sequence[Source]) -> list[str]:
    """One sentence each, with the letter of the file; in the order in which a reviewer would ask."""
    return [f"{source.letter}: {words}" for source in sources if source.kind == SAMPLES for words in _of(source)]


def _of(source: Source) -> Iterator[str]:
    table = source.table
    yield from _fabric(table)
    yield from _nodes(source)
    yield from _clocks(table)
    yield from missing(table)
    yield from _samples(table)
    yield from _load(table)
    yield from _trust(source)


def _fabric(table: pd.DataFrame) -> Iterator[str]:
    fabrics = set(table["fabric"])
    if "shared_gpu" in fabrics:
        yield (
            "several ranks share a GPU: its multiprocessors, memory and link; these are not NVLink's times, and more "
            "ranks per GPU do not stand for more GPUs"
        )
    if "host" in fabrics:
        yield "ranks are processes on a CPU over shared memory: the protocol is true, the times are not a GPU's"


def _nodes(source: Source) -> Iterator[str]:
    sizes = ", ".join(map(str, sorted(source.table["ep_size"].unique())))
    topology = ", ".join(dict.fromkeys(str(part.get("topology", "")) for part in source.parts))
    yield f"one machine ({source.device}; {topology}), EP {sizes}: nothing is said about larger groups or other nodes"


def _clocks(table: pd.DataFrame) -> Iterator[str]:
    have = set(table["clock"])
    if "eager" not in have:
        yield "no eager clock: what a launch, and ranks that arrive apart, cost is not in these numbers"
    if have == {"eager"}:
        yield (
            "only the eager clock: launches and the skew of a barrier are inside, so that small rounds look slower "
            "than in a captured graph"
        )
    if "kernel" not in have and table["fabric"].iloc[0] != "host":
        yield "no kernel clock: spans of kernels, as others publish them, do not compare with these"


def missing(table: pd.DataFrame) -> Iterator[str]:
    """Points that some mode has and another lacks, under one load and clock."""
    names = ["clock", "phase", "format", "routing", "ep_size"]
    rounds = table[(table["phase"] == "round") & (table["delay_us"] == 0)]
    for values, part in rounds.groupby(names, sort=False):
        every = set(part["tokens"])
        for mode, own in part.groupby("mode", sort=False):
            lacking = sorted(every - set(own["tokens"]))
            if lacking:
                load = ", ".join(str(value) for value in (*values[:1], *values[2:4]))
                yield f"{mode} ({load}) was not measured at {', '.join(map(str, lacking))} tokens per rank"


def _samples(table: pd.DataFrame) -> Iterator[str]:
    points = table.groupby(list(POINT_COLUMNS), sort=False, dropna=False).agg(
        n=("iteration", "nunique"), stopped=("stopped", "first")
    )
    few = int((points["n"] < FEW).sum())
    if few:
        yield (
            f"{few} of {len(points)} points have fewer than {FEW} iterations (least {int(points['n'].min())}): their "
            "99th percentile is nearly their largest sample"
        )
    unsettled = int((points["stopped"] == "budget").sum())
    if unsettled:
        yield (
            f"{unsettled} of {len(points)} points ran out of their time budget before their median had settled to "
            "1 %: their intervals are wider"
        )


def _load(table: pd.DataFrame) -> Iterator[str]:
    if table["seed"].nunique() == 1:
        yield f"one seed ({table['seed'].iloc[0]}): another draw of the routing moves other bytes"
    if set(table["l2"]) == {"warm"}:
        yield "L2 cache warm: rows that come from memory, as in a model, may take longer"
    if table["repeat"].nunique() == 1:
        yield "measured once: what changes from start to start, or from machine to machine, is not in the intervals"
    notes = [note for note in table["note"].unique() if note]
    yield from (f"the transport noted: {note}" for note in notes)


def _trust(source: Source) -> Iterator[str]:
    unchecked = ~source.table["checked"].isin(["exact", "bounded", "True"])
    if unchecked.any():
        yield f"{int(unchecked.sum())} of {len(source.table)} samples were NOT CHECKED against the oracle"
    if any(part.get("dirty") for part in source.parts):
        yield "measured with local changes that the commit does not contain"
    if (protection := protection_of(source.table)).startswith("no digest"):
        yield protection

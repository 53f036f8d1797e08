"""Run a sweep: its points one after the other on warm ranks, kept as they come."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager

import pandas as pd
from tqdm.auto import tqdm

from mnnvl_lab import records
from mnnvl_lab.layout import Layout
from mnnvl_lab.measure import Point, Sweep, measure
from mnnvl_lab.ranks import Ranks
from mnnvl_lab.ranks.gpus import count_visible_gpus
from mnnvl_lab.ranks.placement import place


def run(
    sweep: Sweep,
    *,
    ranks: Ranks | None = None,
    out: str | os.PathLike | None = None,
    resume: bool = False,
    progress: bool = True,
) -> pd.DataFrame:
    """Measure every point of a sweep, each checked before and after it is timed.

    Args:
        sweep: the points.
        ranks: warm ranks to use and to leave warm; without them, ranks are started and stopped here.
        out: record file to which each point is appended: a sweep that is killed loses at most one point.
        resume: go on with `out` where an earlier run of the sweep ended.
        progress: show a progress bar.

    Returns:
        A tidy table, one row a rank, phase and iteration, with its provenance in `attrs`.

    Raises:
        Refused: a point breaks a limit. WrongResult: a result differs from the oracle. RankError: a rank failed.
        RecordError: `out` exists and is not to be resumed, or another sweep is writing it.
    """
    if ranks is not None:
        ranks.require_open()
    origin = records.provenance(
        fabric=sweep.fabric,
        clocks=sweep.clocks,
        warmup=sweep.sampling.warmup,
        samples=sweep.sampling.max_samples,
        seed=sweep.seed,
        ranks_per_gpu=_ranks_per_gpu(sweep),
        **records.measured_rates(sweep.fabric),
    )
    if out is None:
        tables = list(_measured(sweep, list(sweep.points()), ranks, progress))
        return records.new_table(pd.concat(tables, ignore_index=True), origin)
    with records.Appender(out, origin, resume=resume) as kept:
        done = kept.done
        due = [point for point in sweep.points() if _key(point, sweep.fabric) not in done]
        for table in _measured(sweep, due, ranks, progress):
            kept.add(table)
        return kept.table


def _ranks_per_gpu(sweep: Sweep) -> int:
    """Of the largest layout; 0 on `host`. Under MPS each of them has as large a share of the multiprocessors."""
    return place(_largest(sweep), fabric=sweep.fabric, visible_gpus=count_visible_gpus()).ranks_per_gpu


def _largest(sweep: Sweep) -> Layout:
    return max(sweep.layouts, key=lambda layout: layout.world_size)


def _key(point: Point, fabric: str) -> tuple:
    return records.point_key(point.columns | {"fabric": fabric})


def _measured(sweep: Sweep, points: list[Point], ranks: Ranks | None, progress: bool) -> Iterator[pd.DataFrame]:
    if not points:
        return
    with _ranks_for(sweep, ranks) as warm:
        for point in tqdm(points, desc="points", disable=not progress):
            yield measure(point, warm)


@contextmanager
def _ranks_for(sweep: Sweep, ranks: Ranks | None) -> Iterator[Ranks]:
    """The ranks given, left open; or fresh ones for the largest layout, closed at the end."""
    if ranks is not None:
        yield ranks
        return
    with Ranks(_largest(sweep), fabric=sweep.fabric) as fresh:
        yield fresh

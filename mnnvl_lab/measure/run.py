"""Run a sweep on warm ranks: batches of samples until the median is known well enough, as one tidy table."""

from __future__ import annotations

import os
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import closing, contextmanager
from dataclasses import asdict, dataclass
from functools import cached_property
from itertools import islice

import numpy as np
import pandas as pd

from mnnvl_lab import records
from mnnvl_lab.errors import Interrupted, Refused, named_arguments
from mnnvl_lab.hardware import count_visible_gpus
from mnnvl_lab.layout import Layout
from mnnvl_lab.measure.point import Point, Sample, Sampling
from mnnvl_lab.measure.sweep import Sweep
from mnnvl_lab.progress import Progress
from mnnvl_lab.ranks import Ranks
from mnnvl_lab.ranks.gpu_placement import place
from mnnvl_lab.ranks.group import Group
from mnnvl_lab.records.statistics import median_interval, median_ranks


def collect(iterations: Iterator[list[Sample]], sampling: Sampling, group: Group) -> tuple[list[Sample], str]:
    """Take iterations until the slowest rank's median is known well enough. Collective.

    Returns:
        This rank's samples, and what ended the sampling: `converged`, `budget` or `max_samples`.
    """
    kept: list[Sample] = []
    began_s = time.perf_counter()
    while True:
        for samples in islice(iterations, sampling.min_samples):
            kept.extend(samples)
        elapsed_s = time.perf_counter() - began_s
        if reason := _reason_to_stop(group.allgather((elapsed_s, _rounds_us(kept)), call="compare samples"), sampling):
            return kept, reason


def _rounds_us(samples: list[Sample]) -> list[float]:
    """Latency of whole rounds, or of the phase timed last where no rounds are."""
    last = samples[-1].phase
    return [sample.latency_us for sample in samples if sample.phase == last]


def _reason_to_stop(answers: list[tuple[float, list[float]]], sampling: Sampling) -> str | None:
    slowest_us = np.max([rounds for _, rounds in answers], axis=0)
    if median_uncertainty(slowest_us) <= sampling.target:
        return "converged"
    if max(elapsed_s for elapsed_s, _ in answers) >= sampling.budget_s:
        return "budget"
    return "max_samples" if len(slowest_us) >= sampling.max_samples else None


def median_uncertainty(values: np.ndarray) -> float:
    """Half width of the 95 % confidence interval of the median, as a share of the median.

    From order statistics (`order_statistics.median_interval`). Below six samples no pair encloses the median: infinite.
    """
    if median_ranks(len(values)) is None:
        return float("inf")
    low, high = median_interval(values)
    return float((high - low) / 2 / np.median(values))


POINT_TIMEOUT_S = 120


@dataclass(frozen=True, kw_only=True)
class PointResult:
    """What one rank returns from a point.

    Attributes:
        samples: one dict per sample, the fields of `point.Sample`.
        stopped: what ended the sampling, `converged`, `budget` or `max_samples`.
        checked: how strictly the rounds before and after were checked: `exact` bits, or `bounded` by rounding.
        note: what the transport did to stay right beyond the protocol; empty if nothing.
    """

    samples: list[dict]
    stopped: str
    checked: str
    note: str = ""


def measure_point(rank, point: Point) -> PointResult:
    """Rank function. Collective over the EP group.

    Raises:
        Refused: the point breaks a limit.
        WrongResult: dispatch or combine differ from the oracle; nothing was timed, or the samples are void.
    """
    from mnnvl_lab.measure.check import checked_round
    from mnnvl_lab.measure.clocks import CLOCK_FUNCTIONS, Round
    from mnnvl_lab.measure.workload import Work
    from mnnvl_lab.transport import open_transport

    work = Work.of(rank, point)
    with open_transport(rank, point.exchange) as transport:
        batch = work.batch()
        partials, checked = checked_round(transport, work, batch)
        timed = Round(transport=transport, batch=batch, partials=partials, delay=point.delay, cold_l2=point.cold_l2)
        rank.phase = "timing"
        iterations = CLOCK_FUNCTIONS[point.clock](timed, point.sampling)
        samples, stopped = collect(iterations, point.sampling, transport.group)
        checked_round(transport, work, batch, validated=True)
        note = transport.note()
    return PointResult(samples=[asdict(sample) for sample in samples], stopped=stopped, checked=checked, note=note)


def measure(point: Point, ranks: Ranks) -> pd.DataFrame:
    """One point on warm ranks, as a tidy table with one row per rank, iteration and phase."""
    ranks.use(point.exchange.layout)
    results = ranks.run(measure_point, point, timeout_s=POINT_TIMEOUT_S + point.sampling.budget_s)
    per_rank = [
        pd.DataFrame(result.samples).assign(rank=rank, stopped=result.stopped, checked=result.checked, note=result.note)
        for rank, result in enumerate(results)
    ]
    return pd.concat(per_rank, ignore_index=True).assign(fabric=ranks.fabric, **point.columns)


@named_arguments
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
        progress: show which point is being measured.

    Returns:
        A tidy table, one row per rank, phase and iteration, with its provenance in `attrs`.

    Raises:
        Refused: a point breaks a limit, or `ranks` are closed or of another fabric. WrongResult: a result differs from
        the oracle. RankError: a rank failed.
        RecordError: `out` exists and is not to be resumed, or another sweep is writing it.
        Interrupted: by the user. Finished points are in its `table`; without `out` they are also saved to a file that
        the message names. Any other error that ends a sweep without `out` carries them in the same way.
    """
    if ranks is not None:
        _require_usable(ranks, sweep)
    origin = records.provenance(
        fabric=sweep.fabric,
        clocks=sweep.clocks,
        warmup=sweep.sampling.warmup,
        samples=sweep.sampling.max_samples,
        seed=sweep.seed,
        ranks_per_gpu=_ranks_per_gpu(sweep),
        **records.measured_rates(sweep.fabric),
    )
    with _InMemory(origin) if out is None else records.Appender(out, origin, resume=resume) as kept:
        done = kept.done
        due = [point for point in sweep.points() if _key(point, sweep.fabric) not in done]
        added = []
        with (
            _saying_what_is_kept(added, len(due), kept, out),
            closing(_measured(sweep, due, ranks, progress)) as tables,
        ):
            for point, table in zip(due, tables, strict=True):
                kept.add(table)
                added.append(point)
        return kept.table


def _require_usable(ranks: Ranks, sweep: Sweep) -> None:
    ranks.require_open()
    if ranks.fabric != sweep.fabric:
        raise Refused(
            f"the sweep is for fabric {sweep.fabric} but the ranks are on {ranks.fabric}: its record would name the "
            "wrong one; pass the same fabric to Sweep and Ranks"
        )


@contextmanager
def _saying_what_is_kept(added: list, due: int, kept: _InMemory | records.Appender, out) -> Iterator[None]:
    """What ends a sweep early says how many points are finished and where they are.

    Args:
        added: grows by an entry for each point that is finished.
        due: points to measure.
    """
    try:
        yield
    except KeyboardInterrupt:
        words = f"point {min(len(added) + 1, due)} of {due} was stopped, {len(added)} finished."
        raise Interrupted(f"{words} {_whereabouts(kept, out)}", table=kept.table) from None
    except Exception as error:
        if added and out is None:
            error.table = kept.table
            error.add_note(f"{len(added)} of {due} points were finished before. {_whereabouts(kept, out)}")
        raise


class _InMemory:
    """What `records.Appender` is for a file."""

    def __init__(self, provenance: Mapping[str, object]):
        self._provenance, self._tables = provenance, []
        self.done = frozenset()

    def __enter__(self):
        return self

    def __exit__(self, *exc):
        pass

    def add(self, rows: pd.DataFrame) -> None:
        self._tables.append(rows)

    @cached_property
    def table(self) -> pd.DataFrame | None:
        """All points; asked for once they are all there."""
        return records.new_table(pd.concat(self._tables, ignore_index=True), self._provenance) if self._tables else None


def _whereabouts(kept: _InMemory | records.Appender, out: str | os.PathLike | None) -> str:
    """Where finished points are after a sweep has ended early, in words; without a file they are saved to one now."""
    if kept.table is None:
        return "There is nothing to keep."
    path = out or _saved(kept.table)
    here = "" if out else "They are in this exception's `table` (in a notebook: `sys.last_value.table`)"
    there = f"run(..., out={str(path)!r}, resume=True) measures the rest." if path else ""
    return f"{here} and in {path}: {there}" if here and path else here or f"They are in {path}: {there}"


def _saved(table: pd.DataFrame) -> str | None:
    """A new file with the table, which outlives this process; None where there is no room for it."""
    try:
        with tempfile.NamedTemporaryFile(prefix="mnnvl_lab-unfinished-", suffix=".parquet", delete=False) as file:
            records.save(table, file.name)
            return file.name
    except OSError:
        return None


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
    with _ranks_for(sweep, ranks, progress) as warm:
        total = len(points)
        with Progress(f"point 1 of {total}", done=f"{total} points measured", enabled=progress) as line:
            for number, point in enumerate(points, 1):
                line.update(f"point {number} of {total}")
                yield measure(point, warm)


@contextmanager
def _ranks_for(sweep: Sweep, ranks: Ranks | None, progress: bool) -> Iterator[Ranks]:
    """The ranks given, left open; or fresh ones for the largest layout, closed at the end.

    Their own progress is off meanwhile: the sweep shows its own.
    """
    if ranks is None:
        with Ranks(_largest(sweep), fabric=sweep.fabric, progress=progress) as fresh, _quiet(fresh):
            yield fresh
    else:
        with _quiet(ranks):
            yield ranks


@contextmanager
def _quiet(ranks: Ranks) -> Iterator[None]:
    before, ranks.progress = ranks.progress, False
    try:
        yield
    finally:
        ranks.progress = before

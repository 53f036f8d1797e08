"""Run a sweep on rank processes: every point opened, checked, timed, checked again and closed."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass

import pandas as pd
from tqdm.auto import tqdm

from mnnvl_lab.measure.point import Point, Sweep
from mnnvl_lab.ranks import Ranks

POINT_TIMEOUT_S = 120


@dataclass(frozen=True, kw_only=True)
class PointResult:
    """What one rank brings home from a point.

    Attributes:
        samples: one dict a sample, the fields of `clocks.Sample`.
        stopped: what ended the sampling, `converged`, `budget` or `max_samples`.
        checked: how strictly the rounds before and after were checked: `exact` bits, or `bounded` by rounding.
    """

    samples: list[dict]
    stopped: str
    checked: str


def measure_point(rank, point: Point) -> PointResult:
    """Rank function. Collective over the EP group.

    Raises:
        Refused: the point breaks a limit.
        WrongResult: dispatch or combine differ from the oracle; nothing was timed, or the samples are void.
    """
    from mnnvl_lab.measure.check import checked_round
    from mnnvl_lab.measure.clocks import CLOCK_FUNCTIONS, Round
    from mnnvl_lab.measure.samples import collect
    from mnnvl_lab.measure.work import Work
    from mnnvl_lab.transport import open_transport

    work = Work.of(rank, point)
    with open_transport(rank, point.exchange) as transport:
        batch = transport.admit(work.batch()).batch
        partials, checked = checked_round(transport, work, batch)
        timed = Round(transport=transport, batch=batch, partials=partials, delay=point.delay, cold_l2=point.cold_l2)
        iterations = CLOCK_FUNCTIONS[point.clock](timed, point.sampling)
        samples, stopped = collect(iterations, point.sampling, transport.group)
        checked_round(transport, work, batch)
    return PointResult(samples=[asdict(sample) for sample in samples], stopped=stopped, checked=checked)


def measure(point: Point, ranks: Ranks) -> pd.DataFrame:
    """One point on warm ranks, as a tidy table with one row a rank, iteration and phase."""
    ranks.use(point.exchange.layout)
    results = ranks.run(measure_point, point, timeout_s=POINT_TIMEOUT_S + point.sampling.budget_s)
    per_rank = [
        pd.DataFrame(result.samples).assign(rank=rank, stopped=result.stopped, checked=result.checked)
        for rank, result in enumerate(results)
    ]
    return pd.concat(per_rank, ignore_index=True).assign(fabric=ranks.fabric, **point.columns)


def run(sweep: Sweep, *, ranks: Ranks | None = None, progress: bool = True) -> pd.DataFrame:
    """Measure every point of a sweep.

    Args:
        sweep: the points.
        ranks: warm ranks to use and leave warm; without them, ranks are started and stopped here.
        progress: show a progress bar.
    """
    points = list(sweep.points())
    with ranks_for(sweep, ranks) as warm:
        tables = [measure(point, warm) for point in tqdm(points, desc="points", disable=not progress)]
    return pd.concat(tables, ignore_index=True)


@contextmanager
def ranks_for(sweep: Sweep, ranks: Ranks | None) -> Iterator[Ranks]:
    """The ranks given, left open; or fresh ones for the largest layout, closed at the end."""
    if ranks is not None:
        yield ranks
        return
    largest = max(sweep.layouts, key=lambda layout: layout.world_size)
    with Ranks(largest, fabric=sweep.fabric) as fresh:
        yield fresh

"""One point on the rank processes: opened, checked, timed, checked again and closed."""

from __future__ import annotations

from dataclasses import asdict, dataclass

import pandas as pd

from mnnvl_lab.measure.point import Point
from mnnvl_lab.ranks import Ranks

POINT_TIMEOUT_S = 120


@dataclass(frozen=True, kw_only=True)
class PointResult:
    """What one rank brings home from a point.

    Attributes:
        samples: one dict a sample, the fields of `clocks.Sample`.
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
    from mnnvl_lab.measure.samples import collect
    from mnnvl_lab.measure.work import Work
    from mnnvl_lab.transport import open_transport

    work = Work.of(rank, point)
    with open_transport(rank, point.exchange) as transport:
        batch = transport.admit(work.batch()).batch
        partials, checked = checked_round(transport, work, batch)
        timed = Round(transport=transport, batch=batch, partials=partials, delay=point.delay, cold_l2=point.cold_l2)
        rank.phase = "timing"
        iterations = CLOCK_FUNCTIONS[point.clock](timed, point.sampling)
        samples, stopped = collect(iterations, point.sampling, transport.group)
        checked_round(transport, work, batch)
        note = transport.note()
    return PointResult(samples=[asdict(sample) for sample in samples], stopped=stopped, checked=checked, note=note)


def measure(point: Point, ranks: Ranks) -> pd.DataFrame:
    """One point on warm ranks, as a tidy table with one row a rank, iteration and phase."""
    ranks.use(point.exchange.layout)
    results = ranks.run(measure_point, point, timeout_s=POINT_TIMEOUT_S + point.sampling.budget_s)
    per_rank = [
        pd.DataFrame(result.samples).assign(rank=rank, stopped=result.stopped, checked=result.checked, note=result.note)
        for rank, result in enumerate(results)
    ]
    return pd.concat(per_rank, ignore_index=True).assign(fabric=ranks.fabric, **point.columns)

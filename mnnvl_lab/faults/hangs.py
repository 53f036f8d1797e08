"""Hang injection: ranks that never arrive, and rounds of the living without a dead one."""

from __future__ import annotations

import time
from dataclasses import replace

from mnnvl_lab.exchange import Exchange
from mnnvl_lab.layout import Layout
from mnnvl_lab.measure.point import Point, Sampling
from mnnvl_lab.oracle import Oracle
from mnnvl_lab.routing import Load, Uniform

KEPT = "transport that outlives a call"
QUICK = Sampling(warmup=1, min_samples=5, max_samples=5)


def small_point(layout: Layout, *, mode: str = "one_sided", tokens: int | tuple[int, ...] = 5, **options) -> Point:
    """A round of about a millisecond, to do something with."""
    exchange = Exchange(mode=mode, layout=layout, max_tokens=16, hidden=64, experts=16, top_k=4, **options)
    return Point(exchange=exchange, load=Load(routing=Uniform(), tokens=tokens), sampling=QUICK)


def stay_away(rank, point: Point, *, culprits: int | None, phase: str, rounds: int = 3) -> None:
    """Rank function: checked rounds, then one in which a rank stays away from `dispatch` or from `combine`."""
    from mnnvl_lab.measure.check import checked_round
    from mnnvl_lab.measure.clocks import synchronize
    from mnnvl_lab.measure.workload import Work
    from mnnvl_lab.transport import open_transport

    work = Work.of(rank, point)
    with open_transport(rank, point.exchange) as transport:
        for _ in range(rounds):
            checked_round(transport, work, work.batch())
        batch = work.batch()
        transport.validate(batch)
        if rank.index == culprits and phase == "dispatch":
            idle()
        handle = transport.dispatch(batch, validated=True).handle
        if rank.index == culprits:
            idle()
        # The bare phase: `combine` itself would first let all ranks agree on the form of what they bring.
        transport.enqueue_combine(transport.partials_buffer(handle), handle)
        synchronize(rank.device)


def return_early(rank, point: Point, *, culprits: int) -> None:
    """Rank function: one rank believes that it is done while the others go on to the next round."""
    from mnnvl_lab.measure.check import checked_round
    from mnnvl_lab.measure.workload import Work
    from mnnvl_lab.transport import open_transport

    work = Work.of(rank, point)
    with open_transport(rank, point.exchange) as transport:
        checked_round(transport, work, work.batch())
        if rank.index != culprits:
            transport.dispatch(work.batch())


def fail_beside_kernel(rank, point: Point, *, failing: int) -> None:
    """Rank function: a rank fails while its own kernel spins for peers that never come."""
    from mnnvl_lab.measure.workload import Work
    from mnnvl_lab.transport import open_transport

    work = Work.of(rank, point)
    with open_transport(rank, point.exchange) as transport:
        batch = work.batch()
        transport.validate(batch)
        if rank.index == failing:
            transport.enqueue_dispatch(batch, transport.enqueue_prepare(batch))
            raise RuntimeError("failed beside its own kernel")


def idle() -> None:
    time.sleep(3600)


def open_and_keep(rank, point: Point) -> None:
    """Rank function: a checked round on a transport that stays open for later calls."""
    from mnnvl_lab.measure.check import checked_round
    from mnnvl_lab.measure.workload import Work
    from mnnvl_lab.transport import open_transport

    transport = rank.kept[KEPT] = open_transport(rank, point.exchange)
    work = Work.of(rank, point)
    checked_round(transport, work, work.batch())


def live_on(rank, point: Point, living: tuple[int, ...], rounds: int = 3) -> list[float]:
    """Rank function, on the living alone: rounds with a rank mask, against the oracle restricted to them.

    Returns:
        Latency of each round in microseconds, as this rank saw it.

    Raises:
        WrongResult: dispatch or combine brought something else.
    """
    from mnnvl_lab.measure.workload import Work

    work, latencies_us = Work.of(rank, point), []
    batch = replace(work.batch(), active_ranks=living)
    for _ in range(rounds):
        began_s = time.perf_counter()
        _masked_round(rank.kept[KEPT], work, batch, living)
        latencies_us.append((time.perf_counter() - began_s) * 1e6)
    return latencies_us


def _masked_round(transport, work, batch, living: tuple[int, ...]) -> None:
    import torch

    from mnnvl_lab.errors import WrongResult
    from mnnvl_lab.measure.check import check_received
    from mnnvl_lab.measure.workload import fake_experts

    received = transport.dispatch(batch)
    tokens_of = check_received(work, received, active_ranks=living)
    combined = transport.combine(fake_experts(transport, work, received, tokens_of), received.handle)
    due = torch.from_numpy(_restricted(work.point, living).combined(work.ep_rank)).to(combined.device)
    if not torch.equal(combined.float(), due):
        raise WrongResult(f"ep_rank {work.ep_rank}: combine among {living} differs from the oracle restricted to them")


def _restricted(point: Point, living: tuple[int, ...]) -> Oracle:
    x = point.exchange
    shape = {"experts": x.experts, "top_k": x.top_k, "hidden": x.hidden, "ep_size": x.ep_size}
    return Oracle(load=point.load, **shape, combine_dtype=x.combine_dtype, active_ranks=living)

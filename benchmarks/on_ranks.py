"""Rank functions of the host benchmark: each times its calls and returns milliseconds by name."""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import partial

import psutil
import torch
import torch.distributed as dist

from mnnvl_lab.exchange import Exchange
from mnnvl_lab.measure.check import checked_round
from mnnvl_lab.measure.clocks import Round
from mnnvl_lab.measure.point import Delay, Point
from mnnvl_lab.measure.workload import Work
from mnnvl_lab.routing import Load, Uniform
from mnnvl_lab.routing.traffic import rows_RR
from mnnvl_lab.transport import open_transport


def time_round(rank, exchange: Exchange, repeats: int) -> dict[str, list[float]]:
    """Milliseconds of every phase of checked rounds."""

    work = Work.of(rank, Point(exchange=exchange, load=Load(routing=Uniform(), tokens=exchange.max_tokens)))
    with open_transport(rank, exchange) as transport:
        batch = work.batch()
        partials, _ = checked_round(transport, work, batch)
        timed = Round(transport=transport, batch=batch, partials=partials, delay=Delay())
        calls = {phase: partial(timed.phase, phase) for phase in transport.phases}
        return _timed(transport.group, calls, repeats)


def time_bytes(rank, exchange: Exchange, repeats: int) -> dict[str, list[float]]:
    """Milliseconds of copying twice the rows that a rank sends, and of Gloo taking them there and back."""

    group = rank.group("ep")
    load = Load(routing=Uniform(), tokens=exchange.max_tokens)
    shape = {"experts": exchange.experts, "top_k": exchange.top_k, "ep_size": exchange.ep_size}
    traffic = rows_RR(load, **shape)
    sent, got = traffic[group.rank].tolist(), traffic[:, group.rank].tolist()
    here = torch.ones(sum(sent), exchange.hidden, dtype=torch.bfloat16)
    there, back = torch.empty(sum(got), exchange.hidden, dtype=torch.bfloat16), torch.empty_like(here)

    def gloo():
        dist.all_to_all_single(there, here, got, sent, group=group.process_group)
        dist.all_to_all_single(back, there, sent, got, group=group.process_group)

    def copies():
        back.copy_(here)
        here.copy_(back)

    return _timed(group, {"copied twice": copies}, repeats) | _timed(group, {"gloo": gloo}, max(3, repeats // 4))


def time_opening(rank, exchange: Exchange, repeats: int) -> dict[str, list[float]]:
    """Milliseconds to open a transport, check a round, and close it."""

    work = Work.of(rank, Point(exchange=exchange, load=Load(routing=Uniform(), tokens=exchange.max_tokens)))

    def once():
        with open_transport(rank, exchange) as transport:
            checked_round(transport, work, work.batch())

    return _timed(rank.group("ep"), {"open, check, close": once}, repeats)


def time_point(rank, exchange: Exchange, repeats: int) -> dict[str, list[float]]:
    """Milliseconds of what a point costs beside its samples: its data, open, check a round twice, close."""

    def once():
        work = Work.of(rank, Point(exchange=exchange, load=Load(routing=Uniform(), tokens=exchange.max_tokens)))
        with open_transport(rank, exchange) as transport:
            batch = work.batch()
            checked_round(transport, work, batch)
            checked_round(transport, work, batch, validated=True)

    return _timed(rank.group("ep"), {"open, check twice, close": once}, repeats)


def time_open(rank, exchange: Exchange, repeats: int) -> dict[str, list[float]]:
    """Milliseconds to open a transport, and to close it."""
    opened = []
    calls = {"open": lambda: opened.append(open_transport(rank, exchange)), "close": lambda: opened.pop().close()}
    return _timed(rank.group("ep"), calls, repeats)


def _timed(group, calls: dict[str, Callable[[], object]], repeats: int) -> dict[str, list[float]]:
    times_ms = {name: [] for name in (*calls, "round")}
    for _ in range(repeats):
        group.barrier()
        began_s = time.perf_counter()
        for name, call in calls.items():
            start_s = time.perf_counter()
            call()
            times_ms[name].append((time.perf_counter() - start_s) * 1e3)
        times_ms["round"].append((time.perf_counter() - began_s) * 1e3)
    return times_ms if len(calls) > 1 else {name: times_ms[name] for name in calls}


def resident_mb(rank) -> float:
    """Resident memory of a rank's process in MB."""
    return psutil.Process().memory_info().rss / 1e6


def meet(rank) -> None:
    """Form the EP group and wait for all of it."""
    rank.group("ep").barrier()


def one_round(rank, exchange: Exchange) -> None:
    """Open, check one round, close."""
    work = Work.of(rank, Point(exchange=exchange, load=Load(routing=Uniform(), tokens=exchange.max_tokens)))
    with open_transport(rank, exchange) as transport:
        checked_round(transport, work, work.batch())


def memory_mb(rank) -> float:
    """Memory that would be free again if the rank's process ended (unique set size), in MB."""
    return psutil.Process().memory_full_info().uss / 1e6

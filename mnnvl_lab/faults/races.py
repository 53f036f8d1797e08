"""Delay injection: host transports that sleep at random wherever order matters, as on a busy machine."""

from __future__ import annotations

import random
import time
from collections.abc import Callable
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import cycle

import numpy as np
import torch

from mnnvl_lab.errors import LabError, RankTimeout
from mnnvl_lab.exchange import Exchange
from mnnvl_lab.measure.point import Point
from mnnvl_lab.routing import Load, Uniform, Zipf
from mnnvl_lab.transport.host.fifo import Fifo, FifoChannels
from mnnvl_lab.transport.host.one_sided import HostOneSided, OneSidedHandle
from mnnvl_lab.transport.host.two_sided import HostTwoSided

DELAYS_S = (0, 0, 0, 1e-5, 1e-4, 2e-3)


class DelayInjection:
    """Sleeps for a random while, mostly none."""

    def __init__(self, seed: int):
        self._random = random.Random(seed)

    def __call__(self) -> None:
        time.sleep(self._random.choice(DELAYS_S))


class DelayedOneSided(HostOneSided):
    """Late with single rows, with counts, with flags, with laying out and with pulling."""

    def __init__(self, rank, exchange, seed: int):
        self.delays = DelayInjection(seed + rank.index)
        super().__init__(rank, exchange)

    def _put(self, *args):
        self.delays()
        super()._put(*args)

    def _announce_counts(self, *args):
        self.delays()
        super()._announce_counts(*args)
        self.delays()

    def _lay_out(self, partials: torch.Tensor, handle: OneSidedHandle) -> int:
        self.delays()
        return super()._lay_out(partials, handle)

    def _pull(self, handle: OneSidedHandle, stride_bytes: int) -> torch.Tensor:
        self.delays()
        return super()._pull(handle, stride_bytes)


@dataclass(frozen=True, kw_only=True)
class DelayedFifo(Fifo):
    """Late between an entry and its counter."""

    delays: Callable[[], None]

    def advance(self, counter: int) -> None:
        self.delays()
        super().advance(counter)


@dataclass(frozen=True, kw_only=True)
class DelayedFifoChannels(FifoChannels):
    delays: Callable[[], None]

    def fifo(self, sender: int, receiver: int, channel: int) -> Fifo:
        return DelayedFifo(**vars(super().fifo(sender, receiver, channel)), delays=self.delays)


class DelayedTwoSided(HostTwoSided):
    def __init__(self, rank, exchange, seed: int):
        self.delays = DelayInjection(seed + rank.index)
        super().__init__(rank, exchange)

    def _open_channels(self) -> tuple[FifoChannels, FifoChannels]:
        both = super()._open_channels()
        return tuple(DelayedFifoChannels(**vars(channels), delays=self.delays) for channels in both)


DELAYED = {"one_sided": DelayedOneSided, "two_sided": DelayedTwoSided}


class SlowPullOneSided(HostOneSided):
    """One rank pauses before each of its pulls, so that its peers are in the next round when it reads their rows."""

    def __init__(self, rank, exchange, *, slow: int, pause_s: float):
        self.slow, self.pause_s = slow, pause_s
        super().__init__(rank, exchange)

    def _pull(self, handle: OneSidedHandle, stride_bytes: int) -> torch.Tensor:
        if self.ep_rank == self.slow:
            time.sleep(self.pause_s)
        return super()._pull(handle, stride_bytes)


MAX_TOKENS = 16
AHEAD = 3  # batches that are validated together


def challenge(rank, name: str, *, rounds: int = 4, sound: bool = False) -> list[str]:
    """Rank function: what goes wrong on this rank with a broken transport, in words; empty if nothing does.

    Args:
        name: of a variant of `mnnvl_lab.faults.broken_protocols`.
        sound: take the transport that it was made from instead, which must pass.
    """
    from mnnvl_lab.faults.broken_protocols import require_variant
    from mnnvl_lab.measure.workload import Work

    variant, found = require_variant(name), []
    exchange = Exchange(
        mode=variant.transport.mode,
        layout=rank.layout,
        max_tokens=max(variant.tokens),
        hidden=variant.hidden,
        experts=4 * rank.layout.ep_size,
        top_k=4,
    )
    with (variant.sound if sound else variant.transport)(rank, exchange) as transport:
        for seed, tokens in zip(range(rounds), cycle(variant.tokens), strict=False):
            load = Load(routing=Uniform(), tokens=tokens, seed=seed)
            work = Work.of(rank, Point(exchange=exchange, load=load))
            try:
                found += wrongs_of_round(transport, work)
            except RankTimeout as hang:
                return [*found, f"hang: {hang.cause}"]
    return found


def wrongs_of_round(transport, work) -> list[str]:
    """One round to its end, whatever is found wrong in it."""
    from mnnvl_lab.measure.check import check_combined, check_received
    from mnnvl_lab.measure.workload import fake_experts

    received, found = transport.dispatch(work.batch()), []
    partials = None
    with _noting(found):
        partials = fake_experts(transport, work, received, check_received(work, received))
    if partials is None:
        partials = transport.partials_buffer(received.handle)
    combined = transport.combine(partials, received.handle)
    with _noting(found):
        check_combined(work, combined)
    return found


@contextmanager
def _noting(found: list[str]):
    try:
        yield
    except RankTimeout:
        raise
    except (LabError, IndexError) as error:  # torn ids lead beyond tables
        found.append(str(error))


def stress(rank, mode: str, *, rounds: int, seed: int) -> int:
    """Rank function: checked rounds on a transport that sleeps at random wherever order matters.

    Returns:
        Rounds that were right.

    Raises:
        WrongResult: one was not.
    """

    chance = np.random.default_rng(seed)  # the same on all ranks
    exchange = Exchange(
        mode=mode, layout=rank.layout, max_tokens=MAX_TOKENS, hidden=64, experts=8 * rank.layout.ep_size, top_k=4
    )
    with DELAYED[mode](rank, exchange, seed) as transport:
        for index in range(0, rounds, AHEAD):
            works = [_random_work(rank, exchange, chance, seed + i) for i in range(index, min(index + AHEAD, rounds))]
            _validated_rounds(transport, works)
    return rounds


def _random_work(rank, exchange: Exchange, chance: np.random.Generator, seed: int):
    from mnnvl_lab.measure.workload import Work

    tokens = tuple(chance.integers(0, MAX_TOKENS + 1, rank.layout.ep_size).tolist())
    routing = (Uniform(), Zipf(exponent=1.5))[seed % 2]
    return Work.of(rank, Point(exchange=exchange, load=Load(routing=routing, tokens=tokens, seed=seed)))


def _validated_rounds(transport, works) -> None:
    """Rounds of batches that were all validated before the first: their sizes change without another validation."""
    from mnnvl_lab.measure.check import check_combined, check_received
    from mnnvl_lab.measure.workload import fake_experts

    batches = [work.batch() for work in works]
    for batch in batches:
        transport.validate(batch)
    for work, batch in zip(works, batches, strict=True):
        transport.delays()
        received = transport.dispatch(batch, validated=True)
        partials = fake_experts(transport, work, received, check_received(work, received))
        check_combined(work, transport.combine(partials, received.handle))

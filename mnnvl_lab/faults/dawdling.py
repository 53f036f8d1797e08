"""Host transports that dawdle at random wherever order matters, as a busy machine makes any process do."""

from __future__ import annotations

import random
import time
from collections.abc import Callable
from dataclasses import dataclass

import torch

from mnnvl_lab.transport.fifo import Fifo
from mnnvl_lab.transport.host_lanes import Lanes
from mnnvl_lab.transport.host_one_sided import HostOneSided
from mnnvl_lab.transport.host_two_sided import HostTwoSided

DELAYS_S = (0, 0, 0, 1e-5, 1e-4, 2e-3)


class Dawdle:
    """Sleeps for a random while, mostly none."""

    def __init__(self, seed: int):
        self._random = random.Random(seed)

    def __call__(self) -> None:
        time.sleep(self._random.choice(DELAYS_S))


class DawdlingOneSided(HostOneSided):
    """Late with single rows, with counts, with flags, with laying out and with pulling."""

    def __init__(self, rank, exchange, seed: int):
        self.dawdle = Dawdle(seed + rank.index)
        super().__init__(rank, exchange)

    def _put(self, *args):
        self.dawdle()
        super()._put(*args)

    def _announce_rows(self, *args):
        self.dawdle()
        super()._announce_rows(*args)
        self.dawdle()

    def _lay_out(self, partials: torch.Tensor) -> int:
        self.dawdle()
        return super()._lay_out(partials)

    def _pull(self, stride_bytes: int) -> torch.Tensor:
        self.dawdle()
        return super()._pull(stride_bytes)


@dataclass(frozen=True, kw_only=True)
class DawdlingFifo(Fifo):
    """Late between an entry and its counter."""

    dawdle: Callable[[], None]

    def advance(self, counter: int) -> None:
        self.dawdle()
        super().advance(counter)


@dataclass(frozen=True, kw_only=True)
class DawdlingLanes(Lanes):
    dawdle: Callable[[], None]

    def fifo(self, sender: int, receiver: int, channel: int) -> Fifo:
        return DawdlingFifo(**vars(super().fifo(sender, receiver, channel)), dawdle=self.dawdle)


class DawdlingTwoSided(HostTwoSided):
    def __init__(self, rank, exchange, seed: int):
        self.dawdle = Dawdle(seed + rank.index)
        super().__init__(rank, exchange)

    def _open_lanes(self) -> tuple[Lanes, Lanes]:
        lanes, prepare = super()._open_lanes()
        return tuple(DawdlingLanes(**vars(each), dawdle=self.dawdle) for each in (lanes, prepare))


DAWDLING = {"one_sided": DawdlingOneSided, "two_sided": DawdlingTwoSided}


class SlowPullOneSided(HostOneSided):
    """One rank pauses before each of its pulls, so that its peers are in the next round when it reads their rows."""

    def __init__(self, rank, exchange, *, slow: int, pause_s: float):
        self.slow, self.pause_s = slow, pause_s
        super().__init__(rank, exchange)

    def _pull(self, stride_bytes: int) -> torch.Tensor:
        if self.ep_rank == self.slow:
            time.sleep(self.pause_s)
        return super()._pull(stride_bytes)

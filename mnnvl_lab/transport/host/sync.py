"""Synchronization over shared memory: spin-wait with backoff and a limit, a memory fence, and flags with epochs."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Mapping, Sequence

import numpy as np

from mnnvl_lab.errors import RankTimeout

WAIT_LIMIT_S = 30.0
SPIN_S = 50e-6  # a peer on another core answers within it
YIELD_S = 5e-4  # then leave the core to whoever wants it, so that more ranks than cores get on
NAP_S = 50e-6  # then sleep between polls: the peer is not merely descheduled

_yield_core = getattr(os, "sched_yield", lambda: time.sleep(0))  # not on macOS


class Backoff:
    """How one wait goes on, poll by poll, until its limit.

    Args:
        limit_s: seconds without progress after which it ends.
    """

    def __init__(self, limit_s: float):
        self.limit_s = limit_s
        self.progressed()

    def progressed(self) -> None:
        """Start afresh: what is waited for came, or came closer."""
        self._since_s = None

    def pause(self, on_timeout: Callable[[], RankTimeout]) -> None:
        """Between two polls.

        Raises:
            RankTimeout: what `on_timeout` returns, when the limit is passed.
        """
        now_s = time.perf_counter()
        self._since_s = self._since_s or now_s
        waited_s = now_s - self._since_s
        if waited_s > self.limit_s:
            raise on_timeout()
        if waited_s > YIELD_S:
            time.sleep(NAP_S)
        elif waited_s > SPIN_S:
            _yield_core()


def wait_until(ready: Callable[[], bool], *, limit_s: float, on_timeout: Callable[[], RankTimeout]) -> None:
    """Poll until `ready`.

    Raises:
        RankTimeout: what `on_timeout` returns, after `limit_s` seconds.
    """
    backoff = Backoff(limit_s)
    while not ready():
        backoff.pause(on_timeout)


class Fence:
    """A full memory fence: what this thread stored and loaded before stays before what follows.

    Needed between rows and the flag that announces them, and between a flag seen and the rows then read. On x86 stores
    are seen in their order, and so are loads, but Arm and POWER promise neither, and Python has no fence of its own. A
    lock's release keeps earlier accesses before it, its acquisition later ones behind it, and the two keep their order.
    """

    def __init__(self):
        self._lock = threading.Lock()
        self._lock.acquire()

    def __call__(self) -> None:
        self._lock.release()
        self._lock.acquire()


class Epochs:
    """The flags of a group of ranks, as one of them sees them.

    Args:
        ranks: global ranks, for what a failure says.
        ep_rank: this rank's place.
        aux_R: for each rank, the auxiliary regions of its row by FlashInfer's names.
    """

    def __init__(self, *, ranks: Sequence[int], ep_rank: int, aux_R: Sequence[Mapping[str, np.ndarray]]):
        self._ranks, self._ep_rank, self._aux_R = ranks, ep_rank, aux_R
        self._fence = Fence()

    @property
    def now(self) -> int:
        return int(self._own["flag_val"][0])

    @property
    def _own(self) -> Mapping[str, np.ndarray]:
        return self._aux_R[self._ep_rank]

    def advance(self) -> int:
        """The next epoch."""
        self._own["flag_val"][0] += 1
        return self.now

    def signal(self, phase: str, active: Sequence[int]) -> None:
        """Raise this rank's flag of a phase at the active peers: its rows are in place."""
        self._fence()
        for peer in active:
            self._aux_R[peer][f"{phase}_completion_flags"][self._ep_rank] = self.now

    def wait(self, phase: str, active: Sequence[int], limit_s: float) -> None:
        """Wait until all active peers have raised theirs.

        Raises:
            RankTimeout: names the first peer that has not, and the epoch that each of them last signalled.
        """
        own, epoch, peers = self._own[f"{phase}_completion_flags"], self.now, list(active)
        wait_until(
            lambda: (own[peers] == epoch).all(),
            limit_s=limit_s,
            on_timeout=lambda: self._on_timeout(phase, {peer: int(own[peer]) for peer in peers}, limit_s),
        )
        self._fence()

    def _on_timeout(self, phase: str, seen: Mapping[int, int], limit_s: float) -> RankTimeout:
        late = {self._ranks[peer]: epoch for peer, epoch in seen.items() if epoch != self.now}
        words = ", ".join(f"rank {rank} last signalled {epoch}" for rank, epoch in late.items())
        me = self._ranks[self._ep_rank]
        cause = f"rank {me} waited {limit_s:g} s for epoch {self.now}: {words or 'all came just now'}"
        return RankTimeout(rank=next(iter(late), me), phase=phase, cause=cause)

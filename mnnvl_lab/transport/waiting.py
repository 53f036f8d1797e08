"""Waiting for other processes through shared memory: spin briefly, then yield, and never for ever."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable

from mnnvl_lab.errors import RankTimeout

WAIT_LIMIT_S = 30.0
SPIN_S = 50e-6  # a peer on another core answers within it
YIELD_S = 5e-3  # then leave the core to whoever wants it, so that more ranks than cores get on
NAP_S = 50e-6  # then sleep between polls: the peer is not merely descheduled

_yield_core = getattr(os, "sched_yield", lambda: time.sleep(0))  # not on macOS


class Patience:
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

    def pause(self, blame: Callable[[], RankTimeout]) -> None:
        """Between two polls.

        Raises:
            RankTimeout: what `blame` returns, when the limit is passed.
        """
        now_s = time.perf_counter()
        self._since_s = self._since_s or now_s
        waited_s = now_s - self._since_s
        if waited_s > self.limit_s:
            raise blame()
        if waited_s > YIELD_S:
            time.sleep(NAP_S)
        elif waited_s > SPIN_S:
            _yield_core()


def wait_until(ready: Callable[[], bool], *, limit_s: float, blame: Callable[[], RankTimeout]) -> None:
    """Poll until `ready`.

    Raises:
        RankTimeout: what `blame` returns, after `limit_s` seconds.
    """
    patience = Patience(limit_s)
    while not ready():
        patience.pause(blame)


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

"""Synchronization of processes on one machine: shared segments, spin-wait with backoff and a limit, a memory fence."""

from __future__ import annotations

import os
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from mnnvl_lab.errors import RankTimeout

SPIN_S = 50e-6  # a peer on another core answers within it
YIELD_S = 5e-4  # then leave the core to whoever wants it, so that more ranks than cores get on
NAP_S = 50e-6  # then sleep between polls: the peer is not merely descheduled
NAP_SHARE = 0.05  # of the time waited so far: naps grow with the wait, so that a long one costs little processor time
LONGEST_NAP_S = 2e-3
CHECK_S = 0.02  # between two calls of `check`

_yield_core = getattr(os, "sched_yield", lambda: time.sleep(0))  # not on macOS


class Backoff:
    """How one wait goes on, poll by poll, until its limit.

    Args:
        limit_s: seconds without progress after which it ends.
        check: called now and then in a long wait; raises if waiting is in vain.
    """

    def __init__(self, limit_s: float, check: Callable[[], None] | None = None):
        self.limit_s, self._check = limit_s, check
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
        if self._since_s is None:
            self._since_s = self._checked_s = now_s
        waited_s = now_s - self._since_s
        if waited_s > self.limit_s:
            raise on_timeout()
        if self._check and now_s - self._checked_s > CHECK_S:
            self._checked_s = now_s
            self._check()
        if waited_s > YIELD_S:
            time.sleep(min(max(NAP_S, waited_s * NAP_SHARE), LONGEST_NAP_S))
        elif waited_s > SPIN_S:
            _yield_core()


def wait_until(
    ready: Callable[[], bool],
    *,
    limit_s: float,
    on_timeout: Callable[[], RankTimeout],
    check: Callable[[], None] | None = None,
) -> None:
    """Poll until `ready`; arguments as in `Backoff`.

    Raises:
        RankTimeout: what `on_timeout` returns, after `limit_s` seconds.
    """
    backoff = Backoff(limit_s, check)
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


@contextmanager
def new_segment(kind: str, size_bytes: int, directory: Path) -> Iterator[str]:
    """A zeroed segment under a path that works for as long as the context is open.

    Args:
        kind: what it is for, as lists of a process's mappings show it.
        directory: private to the ranks, for systems without nameless segments.
    """
    if hasattr(os, "memfd_create"):
        file, name = os.memfd_create(f"mnnvl_lab-{kind}", os.MFD_CLOEXEC), None
        path = f"/proc/{os.getpid()}/fd/{file}"
        os.fchmod(file, 0o600)
    else:
        file, path = tempfile.mkstemp(prefix=f"segment-{kind}-", dir=directory)
        name = path
    try:
        os.ftruncate(file, size_bytes)
        yield path
    finally:
        os.close(file)
        if name:
            os.unlink(name)

"""When to look at ranks that are still at work: a round that has not moved for some seconds hangs."""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Mapping

from mnnvl_lab.postmortem.verdict import Verdict

ROUND_LIMIT_S = 10.0  # rounds take milliseconds; ranks that check large ones on a busy machine differ by seconds
POLL_S = 0.25
APART_S = 0.1  # between the two looks that must agree


class Stall:
    """Watches one call. What the ranks say costs a small file each; only when it stands still are they examined.

    Args:
        phases: what each rank says now.
        examine: reads all ranks, given those that have answered, and judges.
        limit_s: seconds without a new word from anyone.
    """

    def __init__(
        self,
        phases: Callable[[], Mapping[int, str]],
        examine: Callable[[Collection[int]], Verdict],
        limit_s: float,
    ):
        self._phases, self._examine, self._limit_s = phases, examine, limit_s
        self._said: Mapping[int, str] = {}
        self._since_s = self._next_s = time.monotonic()

    def __call__(self, done: Collection[int]) -> Verdict | None:
        """The verdict if a round hangs now, given the ranks that have answered. Cheap to call often."""
        now_s = time.monotonic()
        if now_s < self._next_s:
            return None
        self._next_s = now_s + POLL_S
        said = self._phases()
        if said != self._said:
            self._said, self._since_s = said, now_s
        if now_s - self._since_s < self._limit_s:
            return None
        return self._confirmed(done)

    def _confirmed(self, done: Collection[int]) -> Verdict | None:
        """Two looks that find the same ranks at the same wait: one alone may catch a moment of a running loop."""
        first = self._examine(done)
        if first.hangs_in_round:
            time.sleep(APART_S)
            second = self._examine(done)
            if second.waits == first.waits:
                return second
        self._since_s = time.monotonic()
        return None

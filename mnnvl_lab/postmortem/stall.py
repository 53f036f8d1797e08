"""When to look at ranks that are still at work: a round that has not moved for some seconds hangs."""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Mapping

from mnnvl_lab.postmortem.verdict import Verdict

ROUND_LIMIT_S = 5.0  # rounds take milliseconds
POLL_S = 0.25
APART_S = 0.1  # between the two looks that must agree
AT_WORK = 0.1  # of a core: a rank that uses so much while others wait is late, not absent


class Stall:
    """Watches one call. What the ranks say costs a small file each; only when it stands still are they examined.

    Args:
        phases: what each rank says now.
        seconds_used: processor time of each rank until now, where it can be seen.
        examine: reads all ranks, given those that have answered, and judges.
        limit_s: seconds without a new word from anyone.
    """

    def __init__(
        self,
        *,
        phases: Callable[[], Mapping[int, str]],
        seconds_used: Callable[[], Mapping[int, float]],
        examine: Callable[[Collection[int]], Verdict],
        limit_s: float,
    ):
        self._phases, self._seconds_used, self._examine = phases, seconds_used, examine
        self._limit_s, self._next_s = limit_s, time.monotonic()
        self._said: Mapping[int, str] = {}
        self._begin_anew()

    def __call__(self, done: Collection[int]) -> Verdict | None:
        """The verdict if a round hangs now, given the ranks that have answered. Cheap to call often."""
        if time.monotonic() < self._next_s:
            return None
        self._next_s = time.monotonic() + POLL_S
        said = self._phases()
        if said != self._said:
            self._said = said
            self._begin_anew()
        if time.monotonic() - self._since_s < self._limit_s:
            return None
        return self._confirmed(done)

    def _begin_anew(self) -> None:
        self._since_s, self._used_s = time.monotonic(), self._seconds_used()

    def _confirmed(self, done: Collection[int]) -> Verdict | None:
        """Two looks that find the same ranks at the same wait: one alone may catch a moment of a running loop."""
        first = self._examine(done)
        if first.hangs_in_round and not self._at_work(first.absent):
            time.sleep(APART_S)
            second = self._examine(done)
            if second.waits == first.waits:
                return second
        self._begin_anew()
        return None

    def _at_work(self, absent: Collection[int]) -> bool:
        """Whether an awaited rank computes, as one does that checks a large round; the call's limit holds for it."""
        now_s, elapsed_s = self._seconds_used(), time.monotonic() - self._since_s
        used_s = [now_s[rank] - self._used_s[rank] for rank in absent if rank in now_s and rank in self._used_s]
        return any(seconds > AT_WORK * elapsed_s for seconds in used_s)

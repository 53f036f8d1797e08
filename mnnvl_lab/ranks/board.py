"""All-gather of small objects among processes of one machine, through a segment of memory that all of them map.

On `host` ranks outnumber the cores, and a point on warm ranks calls eight small collectives: through memory they take a
fraction of what they take through Gloo (`python -m benchmarks.lab`).
"""

from __future__ import annotations

import mmap
import os
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from mnnvl_lab.errors import RankError, RankTimeout
from mnnvl_lab.ranks.sync import Fence, new_segment, wait_until

if TYPE_CHECKING:
    from torch.distributed import Store

LINE_BYTES = 64  # a counter has a cache line of its own
SIDES = 2  # a member that is a call ahead writes to the other side: nobody is further ahead, since each call waits


class Board:
    """A slot for each member on each of two sides, and a counter for each member: the calls that it has posted to.

    Args:
        name: equal on all members, and new to the store.
        ranks: global ranks of the members.
        place: this member's.
        slot_bytes: of one posted object, at most.
        store: through which the first member tells the others where the segment is.
        directory: as for `new_segment`.
        check: called now and then in a long wait; raises if waiting is in vain, because a member has died, say.
        limit_s: seconds to wait for the members.

    Raises:
        RankTimeout: the first member has not come within the limit.
        RankError: what it named is another user's.
    """

    def __init__(
        self,
        name: str,
        *,
        ranks: Sequence[int],
        place: int,
        slot_bytes: int,
        store: Store,
        directory: Path,
        check: Callable[[], None],
        limit_s: float,
    ):
        self._name, self._ranks, self._place = name, ranks, place
        self._check, self._limit_s = check, limit_s
        self._calls, self._fence, self._until_met = 0, Fence(), ExitStack()
        counters_bytes = LINE_BYTES * len(ranks)
        size_bytes = counters_bytes + SIDES * len(ranks) * slot_bytes
        with open(self._segment(store, size_bytes, directory), "r+b") as file:
            if os.fstat(file.fileno()).st_uid != os.getuid():  # the store is open to whoever is on this machine
                raise RankError(rank=ranks[0], phase="collective", cause=f"{file.name} is another user's")
            bytes_ = np.frombuffer(mmap.mmap(file.fileno(), size_bytes), dtype=np.uint8)
        self._posted_R = bytes_[:counters_bytes].view(np.int64).reshape(len(ranks), -1)[:, 0]
        self._slots = bytes_[counters_bytes:].reshape(SIDES, len(ranks), slot_bytes)

    def gather(self, data: bytes) -> list[bytes]:
        """Every member's bytes, filled up with zeros to the size of a slot.

        Raises:
            RankTimeout: names the first member that has not come.
        """
        self._calls += 1
        side = self._slots[self._calls % SIDES]
        side[self._place, : len(data)] = np.frombuffer(data, dtype=np.uint8)
        self._fence()
        self._posted_R[self._place] = self._calls
        self._wait(lambda: bool((self._posted_R >= self._calls).all()))
        self._fence()
        self._until_met.close()  # all have mapped it
        return [slot.tobytes() for slot in side]

    def _segment(self, store: Store, size_bytes: int, directory: Path) -> str:
        """Path of the segment, which the first member makes."""
        if self._place == 0:
            path = self._until_met.enter_context(new_segment("board", size_bytes, directory))
            store.set(self._name, path)
            return path
        self._wait(lambda: store.check([self._name]))
        return store.get(self._name).decode()

    def _wait(self, ready: Callable[[], bool]) -> None:
        wait_until(ready, limit_s=self._limit_s, on_timeout=self._on_timeout, check=self._check)

    def _on_timeout(self) -> RankTimeout:
        late = self._late()
        me, missing = self._ranks[self._place], ", ".join(map(str, late))
        awaited = f"rank {missing}" if late else "ranks that came just now"
        cause = f"rank {me} waited {self._limit_s:g} s in a collective call ({self._name}) for {awaited}"
        return RankTimeout(rank=next(iter(late), me), phase="collective", cause=cause)

    def _late(self) -> list[int]:
        """Members that have not posted; before the first call the one whose segment is awaited."""
        if not self._calls:
            return [self._ranks[0]]
        return [self._ranks[place] for place in np.flatnonzero(self._posted_R < self._calls)]

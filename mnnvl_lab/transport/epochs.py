"""Epochs and completion flags: how one-sided ranks know that all their peers are done with a phase.

Dispatch and combine each move `flag_val` on by one, write it into their flag at every peer once their rows are there,
and wait until every flag of their own equals it (`moeAlltoAllKernels.cu`; each phase has flags of its own).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from mnnvl_lab.errors import RankTimeout
from mnnvl_lab.transport.waiting import WAIT_LIMIT_S, Fence, wait_until


class Epochs:
    """The flags of a group of ranks, as one of them sees them.

    Args:
        ranks: global ranks, for what a failure says.
        ep_rank: this rank's place.
        aux_R: for each rank, the auxiliary regions of its row by FlashInfer's names.

    Attributes:
        limit_s: seconds after which waiting ends.
    """

    def __init__(self, *, ranks: Sequence[int], ep_rank: int, aux_R: Sequence[Mapping[str, np.ndarray]]):
        self.limit_s, self._ranks, self._ep_rank, self._aux_R = WAIT_LIMIT_S, ranks, ep_rank, aux_R
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

    def complete(self, phase: str, active: Sequence[int]) -> None:
        """Tell the active peers that this rank's rows of a phase are in place, and wait until they all say so.

        Raises:
            RankTimeout: names the first peer that has not, and the epoch that each of them last signalled.
        """
        flags, epoch = f"{phase}_completion_flags", self.now
        self._fence()
        for peer in active:
            self._aux_R[peer][flags][self._ep_rank] = epoch
        own, peers = self._own[flags], list(active)
        wait_until(
            lambda: (own[peers] == epoch).all(),
            limit_s=self.limit_s,
            blame=lambda: self._blame(phase, {peer: int(own[peer]) for peer in peers}),
        )
        self._fence()

    def _blame(self, phase: str, seen: Mapping[int, int]) -> RankTimeout:
        late = {self._ranks[peer]: epoch for peer, epoch in seen.items() if epoch != self.now}
        words = ", ".join(f"rank {rank} last signalled {epoch}" for rank, epoch in late.items())
        me = self._ranks[self._ep_rank]
        cause = f"rank {me} waited {self.limit_s:g} s for epoch {self.now}: {words or 'all came just now'}"
        return RankTimeout(rank=next(iter(late), me), phase=phase, cause=cause)

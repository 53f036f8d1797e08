"""Flags with epochs: how the ranks of a `host` workspace tell one another that rows are in place."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence

import numpy as np

from mnnvl_lab.errors import RankTimeout
from mnnvl_lab.ranks.sync import Fence, wait_until

WAIT_LIMIT_S = 30.0  # without progress, after which a rank that waits for another gives up


class Epochs:
    """The flags of a group of ranks, as one of them sees them.

    Args:
        ranks: global ranks, for what a failure says.
        ep_rank: this rank's place.
        aux_R: for each rank, the auxiliary regions of its row by FlashInfer's names.
        require_alive: raises if the process of one of these global ranks has ended.
    """

    def __init__(
        self,
        *,
        ranks: Sequence[int],
        ep_rank: int,
        aux_R: Sequence[Mapping[str, np.ndarray]],
        require_alive: Callable[[Iterable[int]], None],
    ):
        self._ranks, self._ep_rank, self._aux_R, self._require_alive = ranks, ep_rank, aux_R, require_alive
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
            RankDied: the process of one of them ended.
        """
        own, epoch, peers = self._own[f"{phase}_completion_flags"], self.now, list(active)
        wait_until(
            lambda: (own[peers] == epoch).all(),
            limit_s=limit_s,
            on_timeout=lambda: self._on_timeout(phase, {peer: int(own[peer]) for peer in peers}, limit_s),
            check=lambda: self._require_alive(self._ranks[peer] for peer in peers),
        )
        self._fence()

    def _on_timeout(self, phase: str, seen: Mapping[int, int], limit_s: float) -> RankTimeout:
        late = {self._ranks[peer]: epoch for peer, epoch in seen.items() if epoch != self.now}
        words = ", ".join(f"rank {rank} last signalled {epoch}" for rank, epoch in late.items())
        me = self._ranks[self._ep_rank]
        cause = f"rank {me} waited {limit_s:g} s for epoch {self.now}: {words or 'all came just now'}"
        return RankTimeout(rank=next(iter(late), me), phase=phase, cause=cause)

"""Send plan: which of a rank's rows go to which target, and in which slot; the kernels compute it with atomics."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass

import numpy as np

from mnnvl_lab.routing.padding import target_ranks


@dataclass(frozen=True, kw_only=True)
class SendPlan:
    """What one rank sends.

    Attributes:
        targets_TK: int32 `[T, K]`, the target at the first choice that names it, -1 at others (`topk_target_ranks`).
        slots_TK: int32 `[T, K]`, the row's place among those for its target, -1 likewise (`topk_send_indices`). Ascends
            with the token; the kernels leave the order to chance.
        tokens_R: for each target, the tokens that it gets, ascending.
    """

    targets_TK: np.ndarray
    slots_TK: np.ndarray
    tokens_R: tuple[np.ndarray, ...]

    @classmethod
    def of(
        cls,
        experts_TK: np.ndarray,
        *,
        experts: int,
        ep_size: int,
        active_ranks: Collection[int] | None = None,
        invalid_ids: str = "refuse",
    ) -> SendPlan:
        """The plan for these choices; ranks that are not active get nothing. `invalid_ids`: as in `Exchange`."""
        owner_TK = target_ranks(experts_TK, experts=experts, ep_size=ep_size, invalid_ids=invalid_ids)
        targets_TK, slots_TK = (np.full(owner_TK.shape, -1, dtype=np.int32) for _ in range(2))
        tokens_R = []
        for target in range(ep_size):
            hit_TK = owner_TK == target if active_ranks is None or target in active_ranks else owner_TK > ep_size
            tokens = np.flatnonzero(hit_TK.any(axis=1))
            choice = hit_TK[tokens].argmax(axis=1)
            targets_TK[tokens, choice] = target
            slots_TK[tokens, choice] = np.arange(len(tokens))
            tokens_R.append(tokens)
        return cls(targets_TK=targets_TK, slots_TK=slots_TK, tokens_R=tuple(tokens_R))

    @property
    def counts_R(self) -> np.ndarray:
        """int32 `[R]`: rows for each target."""
        return np.array([len(tokens) for tokens in self.tokens_R], dtype=np.int32)

    def offsets_TK(self, first_R: np.ndarray, row_bytes: int) -> np.ndarray:
        """int64 `[T, K]`: first byte of each slot's row where those of target r begin at `first_R[r]`; -1 if empty."""
        begin_TK = np.asarray(first_R, dtype=np.int64)[self.targets_TK] + self.slots_TK.astype(np.int64) * row_bytes
        return np.where(self.targets_TK < 0, -1, begin_TK)

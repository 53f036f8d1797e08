"""Where dispatch must bring each token: once to every rank that owns one of its experts."""

from __future__ import annotations

from collections.abc import Collection, Sequence

import numpy as np

from mnnvl_lab.layout import expert_owner


def target_ranks(
    experts_TK: np.ndarray, *, experts: int, ep_size: int, active_ranks: Collection[int] | None = None
) -> np.ndarray:
    """int32 `[T, K]`: the target at the first choice that names a rank, -1 at later ones and at ranks left out.

    `topk_target_ranks` of FlashInfer's workspace (moeAlltoAllKernels.cu, moeA2ADispatchKernel).
    """
    owner_TK = expert_owner(experts_TK, experts=experts, ep_size=ep_size)
    named_TR = np.zeros((len(owner_TK), ep_size), dtype=bool)
    if active_ranks is not None:
        named_TR[:, [r for r in range(ep_size) if r not in active_ranks]] = True
    targets_TK = np.full(owner_TK.shape, -1, dtype=np.int32)
    token_T = np.arange(len(owner_TK))
    for k, owner_T in enumerate(owner_TK.T):
        targets_TK[:, k] = np.where(named_TR[token_T, owner_T], -1, owner_T)
        named_TR[token_T, owner_T] = True
    return targets_TK


def sent_tokens(targets_TK: np.ndarray, target: int) -> np.ndarray:
    """int64, ascending: the tokens that a source with these targets sends to `target`."""
    return np.flatnonzero((targets_TK == target).any(axis=1))


def counts_RR(targets_by_source: Sequence[np.ndarray], *, ep_size: int) -> np.ndarray:
    """int64 `[R, R]`: rows that each source sends to each target."""
    return np.array([np.bincount(t[t >= 0], minlength=ep_size) for t in targets_by_source]).reshape(-1, ep_size)

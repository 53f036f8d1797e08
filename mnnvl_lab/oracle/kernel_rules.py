"""Rules of the kernels: the target ranks of each token, and the order in which combine adds."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from functools import lru_cache
from typing import TypeVar

import numpy as np

from mnnvl_lab.errors import Refused
from mnnvl_lab.oracle.payload import expert_factor


def owners(experts_TK: np.ndarray, *, experts: int, ep_size: int, invalid_ids: str = "refuse") -> np.ndarray:
    """int64, the shape of `experts_TK`: the rank that owns each expert, or that padding is sent to; -1 for nowhere.

    Consecutive blocks, of which the first `experts % ep_size` hold one more: what `np.array_split` does. The transports
    compute owners by `mnnvl_lab.layout` or in FlashInfer's kernels.

    Args:
        invalid_ids: `refuse` ids of padding; or send -1 `as_kernel` to rank 0, provided that it owns two experts or
            more, and E nowhere; or `drop` both.

    Raises:
        Refused: an id outside `[0, experts)` that is no padding's.
    """
    ids_TK, beyond = np.asarray(experts_TK), int(invalid_ids != "refuse")
    if ids_TK.size and not (-beyond <= ids_TK.min() and ids_TK.max() < experts + beyond):
        raise Refused(
            f"expert ids span {ids_TK.min()} to {ids_TK.max()}: the oracle knows those in [0, experts = {experts}); "
            "look for the rank that made others of them"
        )
    return _owner_by_id(experts, ep_size, invalid_ids)[ids_TK + 1]


@lru_cache(maxsize=16)
def _owner_by_id(experts: int, ep_size: int, invalid_ids: str) -> np.ndarray:
    """Owners of -1, of every expert, and of E."""
    blocks_R = [len(block) for block in np.array_split(np.arange(experts), ep_size)]
    of_minus_one = 0 if invalid_ids == "as_kernel" and blocks_R[0] > 1 else -1
    return np.concatenate([[of_minus_one], np.repeat(np.arange(ep_size), blocks_R), [-1]])


def target_ranks(
    experts_TK: np.ndarray,
    *,
    experts: int,
    ep_size: int,
    active_ranks: Collection[int] | None = None,
    invalid_ids: str = "refuse",
) -> np.ndarray:
    """int32 `[T, K]`: the target at the first choice that names a rank, -1 at later ones and at ranks left out.

    `topk_target_ranks` of FlashInfer's workspace (moeAlltoAllKernels.cu, moeA2ADispatchKernel).
    """
    owner_TK = owners(experts_TK, experts=experts, ep_size=ep_size, invalid_ids=invalid_ids)
    named_TR = np.zeros((len(owner_TK), ep_size + 1), dtype=bool)
    named_TR[:, -1] = True  # an owner of -1 is no target
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


TREE_TOP_K = (1, 2, 4, 6, 8, 10, 16, 22)  # others (12, 14, 18) take the kernel's generic fallback, a plain loop

Array = TypeVar("Array")


def reduce_slots(slots: Sequence[Array]) -> Array:
    """The sum of K slots in the kernel's grouping: neighbours pairwise, level by level, or one after the other.

    The host transports find the same grouping by another way (`mnnvl_lab.transport.host.combine_sum.kernel_sum`).
    Uses `+` alone, so it serves NumPy and torch alike. An odd slot out waits at the end for the next level.
    """
    level = list(slots)
    if len(level) not in TREE_TOP_K:
        level = [_sum_in_order(level)]
    while len(level) > 1:
        odd = level[len(level) // 2 * 2 :]
        level = [left + right for left, right in zip(level[::2], level[1::2], strict=False)] + odd
    return level[0]


def partial_factor(
    experts_TK: np.ndarray, weights_TK: np.ndarray, *, ep_rank: int, experts: int, ep_size: int
) -> np.ndarray:
    """float32 `[T]`: weight times scale, added up over those of a token's experts that `ep_rank` owns.

    In slot order, product and sum rounded apart (no fused multiply-add); a choice that another rank owns adds 0, and so
    does padding that names no expert.
    """
    mine_TK = owners(experts_TK, experts=experts, ep_size=ep_size, invalid_ids="drop") == ep_rank
    terms_TK = np.where(mine_TK, weights_TK.astype(np.float32) * expert_factor(experts_TK), np.float32(0))
    return _sum_in_order([np.zeros(len(terms_TK), dtype=np.float32), *terms_TK.T])


def _sum_in_order(terms: Sequence[Array]) -> Array:
    total, *rest = terms
    for term in rest:
        total = total + term
    return total

"""What combine must return, in the kernel's own order of additions.

vectorized_combine_impl of FlashInfer's moeAlltoAllKernels.cu: each token has K slots; slot k holds the row of the rank
that choice k is the first to name, converted to float32, or +0.0. Slots are added up in float32 and the sum is rounded
once.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeVar

import numpy as np

from mnnvl_lab.oracle.dispatch import owners
from mnnvl_lab.oracle.payload import expert_gain

TREE_TOP_K = (1, 2, 4, 6, 8, 10, 16, 22)  # others (12, 14, 18) take the kernel's generic fallback, a plain loop

Array = TypeVar("Array")


def reduce_slots(slots: Sequence[Array]) -> Array:
    """The sum of K slots in the kernel's grouping: neighbours pairwise, level by level, or one after the other.

    The host transports find the same grouping by another way (`mnnvl_lab.transport.slot_sum.kernel_sum`).
    Uses `+` alone, so it serves NumPy and torch alike. An odd slot out waits at the end for the next level.
    """
    level = list(slots)
    if len(level) not in TREE_TOP_K:
        level = [_sum_in_order(level)]
    while len(level) > 1:
        odd = level[len(level) // 2 * 2 :]
        level = [left + right for left, right in zip(level[::2], level[1::2], strict=False)] + odd
    return level[0]


def partial_gain(
    experts_TK: np.ndarray, weights_TK: np.ndarray, *, ep_rank: int, experts: int, ep_size: int
) -> np.ndarray:
    """float32 `[T]`: weight times gain, added up over those of a token's experts that `ep_rank` owns.

    In slot order, product and sum rounded apart (no fused multiply-add); a choice that another rank owns adds 0.
    """
    mine_TK = owners(experts_TK, experts=experts, ep_size=ep_size) == ep_rank
    terms_TK = np.where(mine_TK, weights_TK.astype(np.float32) * expert_gain(experts_TK), np.float32(0))
    return _sum_in_order([np.zeros(len(terms_TK), dtype=np.float32), *terms_TK.T])


def _sum_in_order(terms: Sequence[Array]) -> Array:
    total, *rest = terms
    for term in rest:
        total = total + term
    return total

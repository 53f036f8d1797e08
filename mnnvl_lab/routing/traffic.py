"""Who sends how much to whom: matrices `[source, target]` of one load.

Two measures: **rows**, what the transports move, one a token and rank however many of the rank's experts it chose; and
**copies**, one a token and expert, what an expert-major dispatch would move.
"""

from __future__ import annotations

import numpy as np

from mnnvl_lab.layout import expert_owner
from mnnvl_lab.routing.load import Load


def rows_RR(load: Load, *, experts: int, top_k: int, ep_size: int, logical: bool = True) -> np.ndarray:
    """int64 `[R, R]`: distinct (token, rank) pairs.

    Args:
        logical: count the rows that a rank keeps for itself; False counts the wire only.
    """
    rows = np.zeros((ep_size, ep_size), dtype=np.int64)
    for source, owner_TK in enumerate(_owners(load, experts, top_k, ep_size)):
        reached_TR = np.zeros((len(owner_TK), ep_size), dtype=bool)
        np.put_along_axis(reached_TR, owner_TK, True, axis=1)
        rows[source] = reached_TR.sum(axis=0)
    return rows if logical else wire(rows)


def copies_RR(load: Load, *, experts: int, top_k: int, ep_size: int, logical: bool = True) -> np.ndarray:
    """int64 `[R, R]`: (token, expert) pairs by source and by the rank that owns the expert."""
    owners = _owners(load, experts, top_k, ep_size)
    copies = np.array([np.bincount(owner_TK.ravel(), minlength=ep_size) for owner_TK in owners])
    return copies if logical else wire(copies)


def copies_E(load: Load, *, experts: int, top_k: int, ep_size: int) -> np.ndarray:
    """int64 `[E]`: tokens that chose each expert, over all ranks."""
    shape = {"experts": experts, "top_k": top_k, "ep_size": ep_size}
    return sum(np.bincount(load.experts_TK(r, **shape).ravel(), minlength=experts) for r in range(ep_size))


def wire(matrix_RR: np.ndarray) -> np.ndarray:
    """The matrix without its diagonal: what a rank keeps never crosses a link."""
    return matrix_RR - np.diag(np.diag(matrix_RR))


def to_bytes(matrix_RR: np.ndarray, *, bytes_per_token: int) -> np.ndarray:
    """int64 `[R, R]` in bytes."""
    return matrix_RR * np.int64(bytes_per_token)


def _owners(load: Load, experts: int, top_k: int, ep_size: int):
    """The owner `[T, K]` of each choice, one source after the other."""
    for source in range(ep_size):
        experts_TK = load.experts_TK(source, experts=experts, top_k=top_k, ep_size=ep_size)
        yield expert_owner(experts_TK, experts=experts, ep_size=ep_size)

"""Routings without chance: perfectly balanced, or replayed from a table."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field
from typing import ClassVar

import numpy as np

from mnnvl_lab.errors import Refused
from mnnvl_lab.layout import expert_owner, expert_range
from mnnvl_lab.routing.base import Router, Routing


@dataclass(frozen=True, kw_only=True)
class Balanced(Routing):
    """Every rank receives the same number of rows, and experts get the same load up to rounding.

    With equal token counts, rows are exactly equal: a token goes to min(K, R) ranks. Where the experts do not divide
    by R, equal rows come first: then, if K < R, only the experts of one rank have equal loads, since a rank with one
    expert more shares the same rows among more of them.
    """

    label: ClassVar[str] = "balanced"

    def _choose(self, router: Router, tokens: slice) -> np.ndarray:
        tokens_T = np.arange(tokens.start, tokens.stop)
        if router.experts % router.ep_size and router.top_k >= router.ep_size:
            cycle = _greedy_cycle(router)
            return cycle[(tokens_T * router.ep_size + router.rank) % len(cycle)]
        return _round_robin(router, tokens_T)


def _round_robin(router: Router, tokens_T: np.ndarray) -> np.ndarray:
    """Token t of rank s visits K consecutive ranks from (t + s) K on, and there the experts in turn.

    In step t the R tokens of all ranks cover R K consecutive places, so each rank gets K of them, numbered on from t K.
    """
    slot_K = np.arange(router.top_k)
    place_TK = (tokens_T + router.rank)[:, None] * router.top_k + slot_K
    owner_TK = place_TK % router.ep_size
    turn_TK = tokens_T[:, None] * router.top_k + (router.rank * router.top_k + slot_K) // router.ep_size
    ranges = _ranges(router)
    first_R = np.array([r.start for r in ranges])
    count_R = np.array([len(r) for r in ranges])
    return first_R[owner_TK] + turn_TK % count_R[owner_TK]


def _greedy_cycle(router: Router) -> np.ndarray:
    """E tokens, in each one expert of every rank, then the least loaded: after them loads are as equal as can be."""
    ranges = _ranges(router)
    owner_E = expert_owner(np.arange(router.experts), experts=router.experts, ep_size=router.ep_size)
    load_E = np.zeros(router.experts, dtype=np.int64)
    cycle = np.empty((router.experts, router.top_k), dtype=np.int64)
    for chosen_K in cycle:
        order_E = np.argsort(load_E, kind="stable")
        least_R = order_E[[int(np.argmax(owner_E[order_E] == rank)) for rank in range(len(ranges))]]
        rest = order_E[~np.isin(order_E, least_R)]
        chosen_K[:] = np.concatenate([least_R, rest])[: router.top_k]
        load_E[chosen_K] += 1
    return cycle


def _ranges(router: Router) -> list[range]:
    return [expert_range(experts=router.experts, ep_size=router.ep_size, ep_rank=r) for r in range(router.ep_size)]


@dataclass(frozen=True, eq=False)
class Replay(Routing):
    """Choices that were recorded: token t of rank r is row t R + r of the table, which repeats.

    Args:
        table_TK: integers `[tokens, K]`, one row a token, distinct within a row.

    Raises:
        Refused: the table is not of that form, or is asked for another K or fewer experts.
    """

    table_TK: np.ndarray = field(repr=False)
    label: ClassVar[str] = "replay"

    def __post_init__(self):
        table_TK = np.array(self.table_TK)
        if table_TK.ndim != 2 or not table_TK.size or table_TK.dtype.kind not in "iu":
            raise Refused(f"replay table is {table_TK.dtype} {list(table_TK.shape)}: give integers [tokens, top_k]")
        ordered = np.sort(table_TK, axis=1)
        if (ordered[:, 1:] == ordered[:, :-1]).any() or ordered.min() < 0:
            raise Refused("replay table names an expert twice in a row, or below 0: a token's experts are distinct ids")
        table_TK = table_TK.astype(np.int32)
        table_TK.flags.writeable = False
        object.__setattr__(self, "table_TK", table_TK)

    @property
    def digest(self) -> str:
        """Eight hexadecimal digits that stand for the table in labels."""
        shape = str(self.table_TK.shape).encode()
        return hashlib.sha256(shape + self.table_TK.tobytes()).hexdigest()[:8]

    def _choose(self, router: Router, tokens: slice) -> np.ndarray:
        if self.table_TK.shape[1] != router.top_k or self.table_TK.max() >= router.experts:
            raise Refused(
                f"replay table has top_k {self.table_TK.shape[1]} and experts up to {self.table_TK.max()}, "
                f"asked for top_k {router.top_k} of {router.experts} experts: ask for the recorded shape"
            )
        rows = np.arange(tokens.start, tokens.stop) * router.ep_size + router.rank
        return self.table_TK[rows % len(self.table_TK)]

    def __str__(self):
        return f"{self.label}:{self.digest}"

    def __eq__(self, other):
        return isinstance(other, Replay) and np.array_equal(self.table_TK, other.table_TK)

    def __hash__(self):
        return hash(self.digest)

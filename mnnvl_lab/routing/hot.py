"""Routings with one hot spot: an expert, or all the experts of a rank."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from mnnvl_lab.arguments import is_real
from mnnvl_lab.errors import Refused, is_whole, shown
from mnnvl_lab.layout import expert_range
from mnnvl_lab.routing.base import Router, Routing, first_k
from mnnvl_lab.routing.streams import uniform


@dataclass(frozen=True, kw_only=True)
class HotExpert(Routing):
    """A `share` of the tokens has `expert` as first choice; all other choices are uniform over the other experts."""

    share: float
    expert: int = 0
    label: ClassVar[str] = "hot_expert"

    def __post_init__(self):
        _require_share(self.label, self.share)

    def _choose(self, router: Router, tokens: slice) -> np.ndarray:
        _require_below("hot expert", self.expert, "experts", router.experts)
        words = router.draw(tokens, router.experts + 1)
        hot_TK = np.zeros((len(words), router.top_k), dtype=bool)
        hot_TK[:, 0] = uniform(words[:, 0]) < self.share
        return _from_two_pools(words[:, 1:], hot_TK, range(self.expert, self.expert + 1))


@dataclass(frozen=True, kw_only=True)
class HotRank(Routing):
    """Each choice falls, with probability `share`, on the experts of `rank` (an ep_rank), else on the others.

    Within either pool choices are uniform. A pool that runs out of experts leaves the rest to the other one.
    """

    share: float
    rank: int = 0
    label: ClassVar[str] = "hot_rank"

    def __post_init__(self):
        _require_share(self.label, self.share)

    def _choose(self, router: Router, tokens: slice) -> np.ndarray:
        _require_below("hot rank", self.rank, "ep_size", router.ep_size)
        words = router.draw(tokens, router.experts + router.top_k)
        hot_TK = uniform(words[:, : router.top_k]) < self.share
        pool = expert_range(experts=router.experts, ep_size=router.ep_size, ep_rank=self.rank)
        return _from_two_pools(words[:, router.top_k :], hot_TK, pool)


def _from_two_pools(keys_TE: np.ndarray, hot_TK: np.ndarray, pool: range) -> np.ndarray:
    """`[T, K]` distinct experts: those of `pool` where `hot_TK`, the others elsewhere, as far as either pool lasts."""
    experts, top_k = keys_TE.shape[1], hot_TK.shape[1]
    others = np.delete(np.arange(experts), pool)
    hot_TK = hot_TK & (np.cumsum(hot_TK, axis=1) <= len(pool))
    hot_TK = hot_TK | (np.cumsum(~hot_TK, axis=1) > len(others))
    chosen_TK = np.empty(hot_TK.shape, dtype=np.int64)
    for members, mine_TK in ((np.asarray(pool), hot_TK), (others, ~hot_TK)):
        if len(members):
            order_TK = members[first_k(keys_TE[:, members], min(top_k, len(members)))]
            nth_TK = np.cumsum(mine_TK, axis=1) - 1
            chosen_TK[mine_TK] = np.take_along_axis(order_TK, nth_TK.clip(0, order_TK.shape[1] - 1), axis=1)[mine_TK]
    return chosen_TK


def _require_share(name: str, share: float) -> None:
    if not is_real(share) or not 0 <= share <= 1:
        raise Refused(f"{name} share is {shown(share)}: it must lie in [0, 1], such as 0.5 for one half")


def _require_below(name: str, value: int, of: str, limit: int) -> None:
    if not is_whole(value) or not 0 <= value < limit:
        raise Refused(f"{name} is {shown(value)}: it must lie in [0, {of} = {limit}); name one that exists")

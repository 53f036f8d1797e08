"""The routing without chance or skew: what a perfect load balancer would reach."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from mnnvl_lab.layout import expert_range
from mnnvl_lab.routing.base import Router, Routing


@dataclass(frozen=True, kw_only=True)
class Balanced(Routing):
    """Every rank receives the same number of rows, and every expert the same load up to rounding.

    With equal token counts rows are exactly equal: each token goes to min(K, R) ranks, and these take turns. Experts'
    loads differ by at most 1; where E does not divide by R, by at most 2. Equal rows come first, though: with such an E
    and K < R, or a K so small that one copy a token is already more than a small rank's fair share, loads are equal
    only within a rank.
    """

    label: ClassVar[str] = "balanced"

    def _choose(self, router: Router, tokens: slice) -> np.ndarray:
        token_T = np.arange(tokens.start, tokens.stop)
        # All ranks' tokens share one numbering, in which a rank's place shifts from step to step.
        number_T = token_T * router.ep_size + (token_T + router.rank) % router.ep_size
        cycle_DR = _copies_in_cycle(router)
        cycles_T, phase_T = np.divmod(number_T, len(cycle_DR))
        copies_TR = cycle_DR[phase_T]
        earlier_TR = (np.cumsum(cycle_DR, axis=0) - cycle_DR)[phase_T] + cycles_T[:, None] * cycle_DR.sum(axis=0)
        experts_TK = _experts_in_turn(router, copies_TR, earlier_TR)
        slot_TK = (number_T[:, None] + np.arange(router.top_k)) % router.top_k  # no rank is always the first choice
        return np.take_along_axis(experts_TK, slot_TK, axis=1)


def _copies_in_cycle(router: Router) -> np.ndarray:
    """int64 `[D, R]`: how many experts of each rank a token chooses, over a cycle of D tokens.

    Systematic sampling: each rank's mean is met exactly over the cycle, each row sums to K, and a count is its mean
    rounded down or up. Phases advance by nearly the golden ratio, so parts of a cycle are even too.
    """
    length, total_R = _shares(router)
    floor_R, extra_R = np.divmod(total_R, length)
    upper_R = np.cumsum(extra_R)
    phase_D = np.arange(length)[:, None] * _golden_step(length) % length
    return floor_R + (phase_D + upper_R) // length - (phase_D + upper_R - extra_R) // length


def _shares(router: Router) -> tuple[int, np.ndarray]:
    """A number of tokens, and the copies that each rank should get from them."""
    count_R = np.array([len(owned) for owned in _ranges(router)])
    base, larger = divmod(router.experts, router.ep_size)
    if larger == 0 or router.top_k < router.ep_size:
        return router.ep_size, np.full(router.ep_size, router.top_k)
    if base * router.top_k >= router.experts:  # a fair share is at least one copy a token on every rank
        return router.experts, router.top_k * count_R
    return larger, np.where(count_R > base, router.top_k - (router.ep_size - larger), larger)


def _experts_in_turn(router: Router, copies_TR: np.ndarray, earlier_TR: np.ndarray) -> np.ndarray:
    """`[T, K]`: the next experts of each rank in turn, after `earlier_TR` copies that it has had."""
    owner_TK = np.repeat(np.tile(np.arange(router.ep_size), len(copies_TR)), copies_TR.ravel())
    owner_TK = owner_TK.reshape(-1, router.top_k)
    before_TR = np.cumsum(copies_TR, axis=1) - copies_TR
    turn_TK = np.arange(router.top_k) + np.take_along_axis(earlier_TR - before_TR, owner_TK, axis=1)
    ranges = _ranges(router)
    first_R, count_R = np.array([owned.start for owned in ranges]), np.array([len(owned) for owned in ranges])
    return first_R[owner_TK] + turn_TK % count_R[owner_TK]


def _golden_step(length: int) -> int:
    """The number from 0.618 `length` on that has no divisor in common with it."""
    return next(step for step in range(math.ceil(0.618 * length), 2 * length + 2) if math.gcd(step, length) == 1)


def _ranges(router: Router) -> list[range]:
    return [expert_range(experts=router.experts, ep_size=router.ep_size, ep_rank=r) for r in range(router.ep_size)]

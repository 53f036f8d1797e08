"""Rows between ranks for a prediction: drawn where a round is small, expected values where drawing would take long.

A redraw of the explorer asks for dozens of rounds, the largest of millions of choices. Above `DRAWN_TOKENS` the mean of
each rank's rows is computed from the routing's law, and the fullest rank is taken to lie above its mean by what chance
makes of the largest of R normal numbers.
"""

from __future__ import annotations

from functools import lru_cache
from math import lgamma

import numpy as np
from scipy.optimize import brentq
from scipy.special import ndtri

from mnnvl_lab.layout import expert_range
from mnnvl_lab.routing import Balanced, Load, Routing, Uniform, traffic
from mnnvl_lab.routing.distributions import Weighted

DRAWN_TOKENS = 1024
"""Tokens of all ranks together up to which they are drawn, and of which other routings' means are taken."""


@lru_cache(maxsize=1024)
def expected_rows_RR(
    routing: Routing, *, tokens: int, experts: int, top_k: int, ep_size: int, seed: int = 0
) -> np.ndarray:
    """float64 `[R, R]`: distinct (token, rank) pairs by source and target, not to be written to.

    Raises:
        Refused: the routing cannot be drawn with these numbers.
    """
    shape = {"experts": experts, "top_k": top_k, "ep_size": ep_size}
    if tokens * ep_size <= DRAWN_TOKENS:
        rows = traffic.rows_RR(Load(routing=routing, tokens=tokens, seed=seed), **shape).astype(float)
    else:
        reach_R = _reach_R(routing, tokens=tokens, seed=seed, **shape)
        rows = np.tile(tokens * reach_R, (ep_size, 1)) * (1 + _excess_R(routing, reach_R, tokens * ep_size))
    rows.flags.writeable = False
    return rows


def _reach_R(routing: Routing, *, tokens: int, experts: int, top_k: int, ep_size: int, seed: int) -> np.ndarray:
    """Probability that a token goes to each rank."""
    owned_R = np.array([len(expert_range(experts=experts, ep_size=ep_size, ep_rank=r)) for r in range(ep_size)])
    if isinstance(routing, Balanced):
        return np.full(ep_size, min(top_k, ep_size) / ep_size)
    if isinstance(routing, Uniform):
        return np.array([1 - _missed(experts, int(owned), top_k) for owned in owned_R])
    if isinstance(routing, Weighted):
        return _weighted_reach_R(routing.popularity(seed=seed, experts=experts), owned_R, top_k)
    drawn = max(1, min(tokens, DRAWN_TOKENS // ep_size))
    load = Load(routing=routing, tokens=drawn, seed=seed)
    return traffic.rows_RR(load, experts=experts, top_k=top_k, ep_size=ep_size).mean(axis=0) / drawn


def _missed(experts: int, owned: int, top_k: int) -> float:
    """Probability that none of K distinct uniform choices is among `owned` of E experts (hypergeometric)."""
    others = experts - owned
    if others < top_k:
        return 0.0
    log = lgamma(others + 1) - lgamma(others - top_k + 1) - lgamma(experts + 1) + lgamma(experts - top_k + 1)
    return float(np.exp(log))


def _weighted_reach_R(popularity_E: np.ndarray, owned_R: np.ndarray, top_k: int) -> np.ndarray:
    """For K choices without replacement by popularity, an exponential race stopped when K experts are expected home."""
    if top_k >= len(popularity_E):
        return (owned_R > 0).astype(float)

    def surplus(log_time: float) -> float:
        return float(-np.expm1(-np.exp(log_time) * popularity_E).sum() - top_k)

    time = np.exp(brentq(surplus, -20, np.log(1e3 / popularity_E.min())))
    share_R = np.add.reduceat(np.append(popularity_E, 0.0), np.cumsum(owned_R) - owned_R)
    return -np.expm1(-time * np.where(owned_R > 0, share_R, 0.0))


def _excess_R(routing: Routing, reach_R: np.ndarray, drawn: int) -> np.ndarray:
    """Relative surplus of each rank's rows were it the one that chance has made the fullest (Blom's score)."""
    if isinstance(routing, Balanced) or len(reach_R) == 1:
        return np.zeros_like(reach_R)
    ranks = len(reach_R)
    score = ndtri((ranks - 0.375) / (ranks + 0.25))
    odds_R = np.sqrt(np.clip(1 - reach_R, 0, 1) / np.maximum(reach_R * drawn, 1e-12))
    is_fullest_R = np.arange(ranks) == int(np.argmax(reach_R * (1 + score * odds_R)))
    return np.where(is_fullest_R, score * odds_R, 0.0)

"""Routings in which each expert has a popularity: uniform, Zipf, log-normal."""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from mnnvl_lab.arguments import is_real
from mnnvl_lab.errors import Refused, shown
from mnnvl_lab.routing.base import Router, Routing, first_k
from mnnvl_lab.routing.streams import Purpose, bits, uniform


@dataclass(frozen=True, kw_only=True)
class Uniform(Routing):
    """Every set of K experts is equally likely."""

    label: ClassVar[str] = "uniform"

    def _choose(self, router: Router, tokens: slice) -> np.ndarray:
        return first_k(router.draw(tokens, router.experts), router.top_k)


@dataclass(frozen=True, kw_only=True)
class Weighted(Routing):
    """K experts one after the other without replacement, each with a probability proportional to its popularity.

    An exponential race: expert e arrives at time Exp(1) / popularity, and the first K win. With times on a log scale
    it is Gumbel top-k (Kool et al. 2019, arXiv:1903.06059), the same law.
    """

    def _choose(self, router: Router, tokens: slice) -> np.ndarray:
        popularity_E = self.popularity(seed=router.seed, experts=router.experts)
        arrivals = -np.log(uniform(router.draw(tokens, router.experts))) / popularity_E
        return first_k(arrivals.view(np.uint64), router.top_k)  # positive floats sort as their bits do

    @abstractmethod
    def popularity(self, *, seed: int, experts: int) -> np.ndarray:
        """float64 `[E]`, positive, sums to 1, the same for all ranks."""


@dataclass(frozen=True, kw_only=True)
class Zipf(Weighted):
    """The n-th most popular expert has popularity n^-exponent; which expert is n-th is drawn once a seed."""

    exponent: float = 1.0
    label: ClassVar[str] = "zipf"

    def __post_init__(self):
        _require_at_least_zero("zipf exponent", self.exponent)

    def popularity(self, *, seed: int, experts: int) -> np.ndarray:
        place_E = np.argsort(bits(experts, seed=seed, purpose=Purpose.POPULARITY), kind="stable")
        return _normalised(-self.exponent * np.log1p(place_E))


@dataclass(frozen=True, kw_only=True)
class LogNormal(Weighted):
    """Popularities drawn once a seed from a log-normal law, which fits DeepSeek-V3's experts best (DeepEP #393)."""

    sigma: float = 1.0
    label: ClassVar[str] = "log_normal"

    def __post_init__(self):
        _require_at_least_zero("log_normal sigma", self.sigma)

    def popularity(self, *, seed: int, experts: int) -> np.ndarray:
        radius_E, angle_E = uniform(bits(2 * experts, seed=seed, purpose=Purpose.POPULARITY)).reshape(-1, 2).T
        normal_E = np.sqrt(-2 * np.log(radius_E)) * np.cos(2 * np.pi * angle_E)  # Box and Muller
        return _normalised(self.sigma * normal_E)


def _normalised(log_popularity_E: np.ndarray) -> np.ndarray:
    popularity_E = np.exp(log_popularity_E - log_popularity_E.max())
    return popularity_E / popularity_E.sum()


def _require_at_least_zero(name: str, value: float) -> None:
    # Beyond 10, popularities of a few hundred experts leave float64's exact range.
    if not is_real(value) or not 0 <= value <= 10:
        raise Refused(f"{name} is {shown(value)}: it must lie in [0, 10], 0 being uniform; choose a milder skew")

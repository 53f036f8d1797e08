"""What a prediction is made of: parts of a round with their parameters, and what each phase spends on what."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np

from mnnvl_lab.analysis.latency_model import Parameter, Point

LAUNCHES, LINK, PACKETS, MEMORY = "launches and flags", "link", "packets", "memory"
CAUSES = (LAUNCHES, LINK, PACKETS, MEMORY)
DISPATCH, COMBINE = "dispatch", "combine"
"""Phases that are predicted; two-sided's `prepare` counts towards dispatch, which cannot begin without it."""

Counts = Mapping[str, float]
Costs = Mapping[tuple[str, str], float]
"""Microseconds by phase and cause; their sum is the latency of the part."""


@dataclass(frozen=True, kw_only=True)
class Part:
    """A part of a round that was fitted by itself: all of it, or one phase.

    Attributes:
        mode: whose round it belongs to.
        name: `round`, `prepare`, `dispatch` or `combine`.
        parameters: in the order of the fit.
        count: work of a point, from its rows `[source, target]`.
        costs: microseconds by phase and cause, from parameter values by name and the work; of several points at once
            where the counts are arrays.
    """

    mode: str
    name: str
    parameters: tuple[Parameter, ...]
    count: Callable[[Point, np.ndarray], Counts]
    costs: Callable[[Mapping[str, float], Counts], Costs]

    def latency_us(self, logs: np.ndarray, work: Counts) -> float:
        """Latency at these log-parameters."""
        return sum(self.costs(self.values(logs), work).values())

    def values(self, logs: np.ndarray) -> dict[str, float]:
        return dict(zip((p.name for p in self.parameters), np.exp(logs), strict=True))


def stacked(counts: list[Counts]) -> dict[str, np.ndarray]:
    """Counts of several points as arrays."""
    return {name: np.array([one[name] for one in counts], dtype=float) for name in counts[0]}

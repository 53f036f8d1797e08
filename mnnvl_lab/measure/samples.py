"""How many samples are enough, decided by all ranks together from the same numbers."""

from __future__ import annotations

import time
from collections.abc import Iterator
from itertools import islice

import numpy as np

from mnnvl_lab.measure.clocks import Sample
from mnnvl_lab.measure.point import Sampling
from mnnvl_lab.order_statistics import median_interval, median_ranks
from mnnvl_lab.ranks.group import Group


def collect(iterations: Iterator[list[Sample]], sampling: Sampling, group: Group) -> tuple[list[Sample], str]:
    """Take iterations until the slowest rank's median is known well enough. Collective.

    Returns:
        This rank's samples, and what ended the sampling: `converged`, `budget` or `max_samples`.
    """
    kept: list[Sample] = []
    began_s = time.perf_counter()
    while True:
        for samples in islice(iterations, sampling.min_samples):
            kept.extend(samples)
        elapsed_s = time.perf_counter() - began_s
        if reason := _reason_to_stop(group.allgather((elapsed_s, _rounds_us(kept))), sampling):
            return kept, reason


def _rounds_us(samples: list[Sample]) -> list[float]:
    """Latency of whole rounds, or of the phase timed last where no rounds are."""
    last = samples[-1].phase
    return [sample.latency_us for sample in samples if sample.phase == last]


def _reason_to_stop(answers: list[tuple[float, list[float]]], sampling: Sampling) -> str | None:
    slowest_us = np.max([rounds for _, rounds in answers], axis=0)
    if median_uncertainty(slowest_us) <= sampling.target:
        return "converged"
    if max(elapsed_s for elapsed_s, _ in answers) >= sampling.budget_s:
        return "budget"
    return "max_samples" if len(slowest_us) >= sampling.max_samples else None


def median_uncertainty(values: np.ndarray) -> float:
    """Half width of the 95 % confidence interval of the median, as a share of the median.

    From order statistics (`order_statistics.median_interval`). Below six samples no pair encloses the median: infinite.
    """
    if median_ranks(len(values)) is None:
        return float("inf")
    low, high = median_interval(values)
    return float((high - low) / 2 / np.median(values))

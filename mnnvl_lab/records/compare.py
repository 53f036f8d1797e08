"""Same or different: a question asked of samples, not of two medians."""

from __future__ import annotations

import math

import numpy as np
import pandas as pd

from mnnvl_lab.errors import RecordError
from mnnvl_lab.records.columns import POINT_COLUMNS
from mnnvl_lab.records.statistics import slowest_rank

ALPHA = 0.01
"""Chance of calling two equal distributions different."""


def p_value(a: np.ndarray, b: np.ndarray) -> float:
    """Two-sided Mann-Whitney U test: chance of such ranks if both come from one distribution.

    It needs no normal distribution and is not moved by outliers. Normal approximation with tie and continuity
    correction (Mann and Whitney 1947; Lehmann, Nonparametrics, 1975), good from 8 samples a side on.
    """
    n, m = len(a), len(b)
    pooled = pd.Series(np.concatenate([a, b]))
    u = pooled.rank().iloc[:n].sum() - n * (n + 1) / 2
    ties = pooled.value_counts().to_numpy()
    variance = n * m / 12 * ((n + m + 1) - (ties**3 - ties).sum() / ((n + m) * (n + m - 1)))
    if variance <= 0:
        return 1.0
    distance = max(abs(u - n * m / 2) - 0.5, 0)
    return math.erfc(distance / math.sqrt(2 * variance))


def is_different(a: np.ndarray, b: np.ndarray, *, alpha: float = ALPHA) -> bool:
    """Whether samples `a` and `b` come from different distributions.

    Args:
        a, b: latencies in one unit, at least 5 each: fewer cannot reach `alpha`.
        alpha: chance of a false alarm.

    Raises:
        RecordError: too few samples.
    """
    a, b = np.asarray(a, dtype=float), np.asarray(b, dtype=float)
    if min(len(a), len(b)) < 5:
        raise RecordError(f"{len(a)} and {len(b)} samples: a comparison needs 5 a side; measure with more samples")
    return p_value(a, b) < alpha


def compare(a: pd.DataFrame, b: pd.DataFrame, *, alpha: float = ALPHA) -> pd.DataFrame:
    """Two tables point by point, over the points that both have.

    Args:
        alpha: chance of even one false alarm in the whole table (Holm's correction for many points).

    Returns:
        A row a point and phase: `POINT_COLUMNS`, `p50_us_a`, `p50_us_b`, `change_percent` (of b against a),
        `p_value`, `verdict` (`same`, `faster`, `slower`: b against a). `attrs` counts points of one table alone.

    Raises:
        RecordError: no point in common.
    """
    sides = [_iterations(a), _iterations(b)]
    shared = [point for point in sides[0] if point in sides[1]]
    if not shared:
        raise RecordError("no point in common: two tables compare where layout, load, mode, phase and clock are equal")
    rows = [dict(zip(POINT_COLUMNS, point, strict=True)) | _verdict(*(s[point] for s in sides)) for point in shared]
    table = pd.DataFrame(rows)
    different = _holm(table["p_value"].to_numpy(), alpha) & (table["change_percent"] != 0)
    table["verdict"] = np.where(different, np.where(table["change_percent"] < 0, "faster", "slower"), "same")
    table.attrs = {"only_a": len(sides[0]) - len(shared), "only_b": len(sides[1]) - len(shared)}
    return table


def _iterations(table: pd.DataFrame) -> dict[tuple, np.ndarray]:
    slowest = slowest_rank(table).groupby(list(POINT_COLUMNS), sort=False)["latency_us"]
    return {point: samples.to_numpy() for point, samples in slowest}


def _verdict(a: np.ndarray, b: np.ndarray) -> dict[str, float]:
    before, after = float(np.median(a)), float(np.median(b))
    return {
        "p50_us_a": before,
        "p50_us_b": after,
        "change_percent": 100 * (after / before - 1),
        "p_value": p_value(a, b),
    }


def _holm(p: np.ndarray, alpha: float) -> np.ndarray:
    """Which hypotheses fall, from the smallest p on, each against a stricter share of `alpha` (Holm 1979)."""
    order = np.argsort(p, kind="stable")
    passes = p[order] < alpha / np.arange(len(p), 0, -1)
    fallen = np.zeros(len(p), dtype=bool)
    fallen[order] = np.logical_and.accumulate(passes)
    return fallen

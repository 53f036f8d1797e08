"""Same or different: a question asked of samples, not of two medians."""

from __future__ import annotations

import math
from statistics import NormalDist

import numpy as np
import pandas as pd

from mnnvl_lab.errors import RecordError
from mnnvl_lab.records.columns import POINT_COLUMNS
from mnnvl_lab.records.statistics import slowest_rank
from mnnvl_lab.records.tables import provenance_of

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


def change_interval(a: np.ndarray, b: np.ndarray, *, alpha: float = ALPHA) -> tuple[float, float]:
    """Factors from `a` to `b` that the samples leave open: those which, taken out, `p_value` would not refuse.

    Order statistics of the ratios of all pairs (Moses 1965; Lehmann, Nonparametrics, 1975, section 2.6).
    """
    ratios = np.sort(np.divide.outer(b, a), axis=None)
    n, m = len(a), len(b)
    reach = NormalDist().inv_cdf(1 - alpha / 2) * math.sqrt(n * m * (n + m + 1) / 12)
    cut = max(math.floor(n * m / 2 - 0.5 - reach), 0)
    return float(ratios[cut]), float(ratios[-1 - cut])


def compare(a: pd.DataFrame, b: pd.DataFrame, *, alpha: float = ALPHA) -> pd.DataFrame:
    """Two tables point by point, over the points that both have.

    Args:
        alpha: chance of even one false alarm in the whole table (Holm's correction for many points).

    Returns:
        A row a point and phase: `POINT_COLUMNS`, `p50_us_a`, `p50_us_b`, `change_percent` (of b against a, medians),
        `low_percent` and `high_percent` (of that point by itself, see `change_interval`), `p_value`, `verdict` (`same`,
        `faster`, `slower`: b against a). `attrs` counts points of one table alone (`only_a`, `only_b`) and keeps where
        each comes from (`origin_a`, `origin_b`).

    Raises:
        RecordError: no point in common.
    """
    sides = [_iterations(a), _iterations(b)]
    shared = [point for point in sides[0] if point in sides[1]]
    if not shared:
        raise RecordError(
            f"no point in common{_apart(a, b)}: two tables compare where layout, load, mode, phase and clock "
            "are equal; measure both alike"
        )
    rows = [
        dict(zip(POINT_COLUMNS, point, strict=True)) | _change(*(side[point] for side in sides), alpha)
        for point in shared
    ]
    table = pd.DataFrame(rows)
    different = _holm(table["p_value"].to_numpy(), alpha) & (table["change_percent"] != 0)
    table["verdict"] = np.where(different, np.where(table["change_percent"] < 0, "faster", "slower"), "same")
    for name, side, points in (("a", a, sides[0]), ("b", b, sides[1])):
        table.attrs |= {f"only_{name}": len(points) - len(shared), f"origin_{name}": provenance_of(side)}
    return table


def _iterations(table: pd.DataFrame) -> dict[tuple, np.ndarray]:
    slowest = slowest_rank(table).groupby(list(POINT_COLUMNS), sort=False)["latency_us"]
    return {point: samples.to_numpy() for point, samples in slowest}


def _apart(a: pd.DataFrame, b: pd.DataFrame) -> str:
    """The first column of which the two have no value in common, in words."""
    for name in POINT_COLUMNS:
        sides = [list(dict.fromkeys(side[name])) for side in (a, b)]
        if not set(sides[0]) & set(sides[1]):
            return f" ({name} is {' and '.join(', '.join(map(str, values)) for values in sides)})"
    return ""


def _change(a: np.ndarray, b: np.ndarray, alpha: float) -> dict[str, float]:
    before, after = float(np.median(a)), float(np.median(b))
    low, high = change_interval(a, b, alpha=alpha)
    return {
        "p50_us_a": before,
        "p50_us_b": after,
        "change_percent": 100 * (after / before - 1),
        "low_percent": 100 * (low - 1),
        "high_percent": 100 * (high - 1),
        "p_value": p_value(a, b),
    }


def _holm(p: np.ndarray, alpha: float) -> np.ndarray:
    """Which hypotheses fall, from the smallest p on, each against a stricter share of `alpha` (Holm 1979)."""
    order = np.argsort(p, kind="stable")
    passes = p[order] < alpha / np.arange(len(p), 0, -1)
    fallen = np.zeros(len(p), dtype=bool)
    fallen[order] = np.logical_and.accumulate(passes)
    return fallen

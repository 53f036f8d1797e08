"""Compare two records point by point, by tests on samples, not by two medians."""

from __future__ import annotations

from numbers import Real

import numpy as np
import pandas as pd

from mnnvl_lab.errors import RecordError, Refused, shown
from mnnvl_lab.records.schema import POINT_COLUMNS
from mnnvl_lab.records.statistics import least_p, p_value, ratio_interval, slowest_rank
from mnnvl_lab.records.table import provenance_of

ALPHA = 0.01
"""Chance of calling two equal distributions different."""
MIN_ALPHA = 1e-100
TOO_FEW = "too few samples"
"""Verdict on a point whose samples could not differ enough to tell, whatever their values."""
VERDICTS = ("same", "faster", "slower", TOO_FEW)


def is_different(a: np.ndarray, b: np.ndarray, *, alpha: float = ALPHA) -> bool:
    """Whether samples `a` and `b` come from different distributions.

    Args:
        a, b: latencies in one unit.
        alpha: chance of a false alarm.

    Raises:
        RecordError: too few samples: even complete separation could not reach `alpha`. Refused: `alpha` is no chance.
    """
    a, b = np.asarray(a, dtype=float), np.asarray(b, dtype=float)
    if least_p(len(a), len(b)) >= require_alpha(alpha):
        least = next(n for n in range(1, 2000) if least_p(n, n) < alpha)
        raise RecordError(
            f"{len(a)} and {len(b)} samples: even complete separation would happen by chance with p = "
            f"{least_p(len(a), len(b)):.2g}, not below alpha = {alpha:g}; measure at least {least} per side"
        )
    return p_value(a, b) < alpha


def require_alpha(alpha: float) -> float:
    """`alpha`, if it is a chance of a false alarm: a number between 0 and 1.

    Raises:
        Refused: it is not.
    """
    if isinstance(alpha, bool) or not isinstance(alpha, Real) or not MIN_ALPHA <= alpha < 1:
        raise Refused(
            f"alpha is {shown(alpha)}: it is the chance of a false alarm, a number from {MIN_ALPHA:g} to below 1; "
            "use 0.01"
        )
    return float(alpha)


def compare(a: pd.DataFrame, b: pd.DataFrame, *, alpha: float = ALPHA) -> pd.DataFrame:
    """Two tables point by point, over the points that both have.

    Args:
        alpha: chance of even one false alarm in the whole table (Holm's correction for many points).

    Returns:
        A row per point and phase: `POINT_COLUMNS`, `p50_us_a`, `p50_us_b`, `change_percent` (of b against a, medians),
        `low_percent` and `high_percent` (of that point by itself, see `rank_test.ratio_interval`; -100 and infinity
        where there are too few samples), `p_value`, `verdict`: `faster` or `slower` (b against a); `too few samples`,
        where even complete separation of the two sides would not have been told from chance in a table of so many
        rows; else `same`. `attrs` counts points of one table alone (`only_a`, `only_b`) and keeps where each comes from
        (`origin_a`, `origin_b`).

    Raises:
        RecordError: no point in common. Refused: `alpha` is no chance.
    """
    require_alpha(alpha)
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
    table["verdict"] = verdicts(table, alpha=alpha)
    table = table.drop(columns="least_p")
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
    low, high = ratio_interval(a, b, alpha=alpha)
    return {
        "p50_us_a": before,
        "p50_us_b": after,
        "change_percent": 100 * (after / before - 1),
        "low_percent": 100 * (low - 1),
        "high_percent": 100 * (high - 1),
        "p_value": p_value(a, b),
        "least_p": least_p(len(a), len(b)),
    }


def verdicts(table: pd.DataFrame, *, alpha: float) -> np.ndarray:
    """`faster`, `slower`, `same` or `too few samples` for each row of `p_value`, `least_p` and `change_percent`.

    Holm's step-down test (Holm 1979): from the smallest p on, each against a less strict share of `alpha`, up to the
    first that does not fall below its share. A row that falls nowhere has too few samples if the least p that its
    counts allow would not have fallen below that share either.
    """
    p = table["p_value"].to_numpy()
    ordered, shares = np.sort(p), alpha / np.arange(len(p), 0, -1)
    fallen = int(np.logical_and.accumulate(ordered < shares).sum())
    share = shares[min(fallen, len(p) - 1)]
    different = p <= ordered[fallen - 1] if fallen else np.zeros(len(p), dtype=bool)
    change = table["change_percent"].to_numpy()
    moved = np.select([different & (change < 0), different & (change > 0)], ["faster", "slower"], "same")
    return np.where(~different & (table["least_p"].to_numpy() >= share), TOO_FEW, moved)

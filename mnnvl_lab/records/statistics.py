"""Order statistics: the confidence interval of a median, without an assumption about the distribution.

SciPy is loaded where it is used: it takes longer than all else that rank processes load, and they need none of it.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from math import comb

import numpy as np
import pandas as pd

from mnnvl_lab.errors import RecordError, Refused, named_arguments
from mnnvl_lab.records.schema import POINT_COLUMNS, ep_groups

CONFIDENCE = 0.95
MIN_SAMPLES = 6
"""Fewer samples than these have no pair that encloses the median with a confidence of 95 %."""


def median_ranks(count: int, *, confidence: float = CONFIDENCE) -> tuple[int, int] | None:
    """Places, from 0, of the two ordered samples that enclose the median with at least `confidence`.

    Exact: the number of samples below the median is binomial with p = 1/2, so the pair (k, n - 1 - k) misses it with
    probability 2 P(B <= k) (Conover, Practical Nonparametric Statistics, section 3.2). The largest such k is taken.

    Returns:
        None where even the least and the largest sample do not reach `confidence`.
    """
    from scipy.special import bdtr

    places = np.flatnonzero(bdtr(np.arange(count // 2), count, 0.5) <= (1 - confidence) / 2)
    return (int(places[-1]), count - 1 - int(places[-1])) if len(places) else None


def median_interval(values: np.ndarray, *, confidence: float = CONFIDENCE) -> tuple[float, float]:
    """The two samples that enclose the median with at least `confidence`.

    Raises:
        Refused: too few samples.
    """
    places = median_ranks(len(values), confidence=confidence)
    if places is None:
        least = next(n for n in range(len(values), 10**4) if median_ranks(n, confidence=confidence))
        raise Refused(f"{len(values)} iterations of a point: an interval of the median needs {least}; sample more")
    low, high = np.sort(np.asarray(values))[list(places)]
    return float(low), float(high)


def slowest_rank(table: pd.DataFrame) -> pd.DataFrame:
    """One row per iteration and EP group: that of the rank which took longest.

    As FlashInfer's `benchmarks/routines/moe_comm.py` counts. With pipeline stages, each has an EP group of its own,
    which neither waits for the others nor samples as often: the column `ep_group` keeps them apart.
    """
    if "ep_group" not in table.columns and {"pp", "rank"} <= set(table.columns):
        table = table.assign(ep_group=ep_groups(table))
    iterations = table.groupby([*_points(table), "iteration"], sort=False)["latency_us"]
    return table.loc[iterations.idxmax()].reset_index(drop=True)


@named_arguments
def summary(table: pd.DataFrame, *, by: Sequence[str] | None = None) -> pd.DataFrame:
    """Percentiles over iterations of the slowest rank.

    Args:
        table: samples of all ranks; raw, as `measure.run` returns them.
        by: columns that tell the rows of the result apart; all point columns by default.

    Returns:
        Columns `by`, then `p50_us, p90_us, p99_us, min_us, spread, n, low_us, high_us`; percentiles interpolate
        linearly, `spread` is the interquartile range over the median, `low_us` and `high_us` enclose the median with
        95 % confidence (`median_ranks`), NaN where fewer than six iterations leave it open.

    Raises:
        RecordError: `by` would mix independent EP groups.
    """
    slowest = slowest_rank(table)
    by = list(by) if by is not None else _points(slowest)
    _require_one_ep_group(slowest, by)
    groups = slowest.groupby(by, sort=False)["latency_us"]
    quantile = groups.quantile([0.25, 0.5, 0.75, 0.9, 0.99]).unstack()
    derived = pd.DataFrame(
        {
            "p50_us": quantile[0.5],
            "p90_us": quantile[0.9],
            "p99_us": quantile[0.99],
            "min_us": groups.min(),
            "spread": (quantile[0.75] - quantile[0.25]) / quantile[0.5],
            "n": groups.size(),
        }
    )
    derived[["low_us", "high_us"]] = [_interval(values.to_numpy()) for _, values in groups]
    derived = derived.reset_index()
    derived.attrs = dict(table.attrs)
    return derived


def _interval(values: np.ndarray) -> tuple[float, float]:
    """The samples that enclose the median, or nothing where there are too few."""
    places = median_ranks(len(values))
    return tuple(np.sort(values)[list(places)]) if places else (np.nan, np.nan)


def _require_one_ep_group(slowest: pd.DataFrame, by: list[str]) -> None:
    if "ep_group" in by or "ep_group" not in slowest or slowest["ep_group"].nunique() == 1:
        return
    if not by or slowest.groupby(by, sort=False)["ep_group"].nunique().max() > 1:
        raise RecordError(
            f"ep_group has the values {', '.join(map(str, slowest['ep_group'].unique()))}: pipeline stages are "
            "independent; add ep_group to by, or select one of them"
        )


def _points(table: pd.DataFrame) -> list[str]:
    """Point columns of a table, with the device where joined tables made it one."""
    return [name for name in (*POINT_COLUMNS, "device") if name in table.columns]


MOST_TIED_STEPS = 6e7
"""Additions that an exact distribution with ties may take, about 0.1 s; beyond, some 60 samples per side, the normal
approximation with correction for ties is used."""
MOST_PAIRS = 10**7
"""Pairs of samples up to which the distribution without ties is computed; beyond it the normal law is as good."""


def p_value(a: np.ndarray, b: np.ndarray) -> float:
    """Two-sided Mann-Whitney U test: chance of ranks so far from the middle if both come from one distribution.

    It needs no normal distribution and outliers do not move it (Mann and Whitney 1947). With ties, the chance is over
    all ways to deal out the pooled values (a permutation test).
    """
    from scipy.stats import mannwhitneyu, rankdata

    n, m = len(a), len(b)
    doubled = np.rint(2 * rankdata(np.concatenate([a, b]))).astype(np.int64)
    has_ties = len(np.unique(doubled)) < len(doubled)
    if has_ties and 2 * (min(n, m) * (n + m)) ** 2 <= MOST_TIED_STEPS:
        few = doubled[:n] if n <= m else doubled[n:]
        return _p_with_ties(doubled, len(few), int(few.sum()))
    if has_ties or n * m > MOST_PAIRS:
        return float(mannwhitneyu(a, b, method="asymptotic").pvalue)
    u = (int(doubled[:n].sum()) - n * (n + 1)) // 2
    return min(1.0, 2 * float(_cumulative(*sorted((n, m)))[min(u, n * m - u)]))


def least_p(n: int, m: int) -> float:
    """The p-value of complete separation: every sample of one side above every sample of the other."""
    return min(1.0, 2 / comb(n + m, n))


def ratio_interval(a: np.ndarray, b: np.ndarray, *, alpha: float) -> tuple[float, float]:
    """Confidence interval of the ratio b/a (Hodges-Lehmann): the factors that the exact test does not reject.

    Order statistics of the ratios of all pairs (Moses 1965; Lehmann, Nonparametrics, 1975, section 2.6). The interval
    excludes 1 exactly if `p_value` is below `alpha`; with ties it may be wider.

    Returns:
        `(0, inf)` where even complete separation would not be rejected.
    """
    ratios = np.sort(np.divide.outer(b, a), axis=None)
    cut = _rejected(len(a), len(b), alpha)
    return (float(ratios[cut - 1]), float(ratios[-cut])) if cut else (0.0, np.inf)


def _rejected(n: int, m: int, alpha: float) -> int:
    """How many values of U, from 0 on, the two-sided test rejects."""
    if n * m > MOST_PAIRS:
        from scipy.special import ndtri

        reach = ndtri(1 - alpha / 2) * np.sqrt(n * m * (n + m + 1) / 12)
        return max(int(np.ceil(n * m / 2 - 0.5 - reach)), 0)
    return int(np.searchsorted(2 * _cumulative(*sorted((n, m))), alpha, side="left"))


@lru_cache(maxsize=64)
def _cumulative(few: int, many: int) -> np.ndarray:
    """P(U <= u) without ties, for u from 0 to the middle.

    The generating function is the Gaussian binomial: the product over i of (1 - q^(many + i)) / (1 - q^i). A division
    by 1 - q^i adds up every i-th coefficient; dividing by the number of splits on the way keeps floats in range.
    """
    half = few * many // 2 + 1
    density = np.zeros(half)
    density[0] = 1.0
    for i in range(1, few + 1):
        density = _cumulative_sums(density, i)
        density[many + i :] -= density[: max(half - many - i, 0)].copy()
        density *= i / (many + i)
    return np.cumsum(density)


def _cumulative_sums(values: np.ndarray, step: int) -> np.ndarray:
    """Each value plus those `step`, twice `step` and so on places before it."""
    padded = np.zeros(-(-len(values) // step) * step)
    padded[: len(values)] = values
    return padded.reshape(-1, step).cumsum(axis=0).ravel()[: len(values)]


def _p_with_ties(doubled: np.ndarray, few: int, observed: int) -> float:
    """Share of all choices of `few` ranks whose sum is as far from the mean as the observed one.

    Args:
        doubled: twice the midranks of all samples, which makes them integers.
        few: samples of the smaller side.
        observed: sum of its doubled ranks.
    """
    largest = int(np.sort(doubled)[-few:].sum())
    chances = np.zeros((few + 1, largest + 1))  # [chosen so far, sum], as a share of all choices
    chances[0, 0] = 1.0
    for seen, rank in enumerate(doubled, start=1):
        for chosen in range(min(few, seen), 0, -1):
            chances[chosen, rank:] += chances[chosen - 1, : largest + 1 - rank]
    counts = chances[few]
    mean = few * int(doubled.sum()) / len(doubled)
    far = np.abs(np.arange(largest + 1) - mean) >= abs(observed - mean) - 1e-9
    return float(counts[far].sum() / counts.sum())

"""Order statistics: the confidence interval of a median, without an assumption about the distribution."""

from __future__ import annotations

import numpy as np
from scipy.special import bdtr

from mnnvl_lab.errors import Refused

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

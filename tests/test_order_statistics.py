"""The interval of a median, against scipy's quantile test and against the binomial law it rests on."""

import numpy as np
import pytest
from scipy.stats import binom, quantile_test

from mnnvl_lab.errors import Refused
from mnnvl_lab.records.statistics import MIN_SAMPLES, median_interval, median_ranks


@pytest.mark.parametrize("count", [6, 7, 8, 10, 11, 20, 59, 60, 100, 199, 200, 1000])
def test_the_interval_is_that_of_scipy(count):
    values = np.random.default_rng(count).permutation(count).astype(float)
    expected = quantile_test(values, p=0.5).confidence_interval(confidence_level=0.95)
    assert median_interval(values) == (expected.low, expected.high)


@pytest.mark.parametrize("confidence", [0.8, 0.95, 0.99])
def test_the_interval_is_the_shortest_that_reaches_its_confidence(confidence):
    for count in range(12, 300):
        low, high = median_ranks(count, confidence=confidence)
        assert low + high == count - 1
        assert 1 - 2 * binom.cdf(low, count, 0.5) >= confidence > 1 - 2 * binom.cdf(low + 1, count, 0.5)


def test_too_few_samples_have_no_interval():
    assert median_ranks(0) is None
    assert median_ranks(MIN_SAMPLES - 1) is None
    assert median_ranks(MIN_SAMPLES) == (0, 5)
    with pytest.raises(Refused, match="5 iterations of a point: an interval of the median needs 6"):
        median_interval(np.arange(5.0))


def test_the_interval_covers_the_median_as_often_as_it_says():
    random = np.random.default_rng(5)
    samples = random.exponential(size=(4000, 25))
    intervals = np.array([median_interval(row) for row in samples])
    covered = np.mean((intervals[:, 0] <= np.log(2)) & (np.log(2) <= intervals[:, 1]))
    assert 0.95 <= covered < 0.97  # 95.7 % by the binomial law

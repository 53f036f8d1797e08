"""Random numbers that any rank can compute for any other: a function of (seed, purpose, rank, block), without state.

Only Philox's raw bits are used, whose stream NumPy guarantees for ever (NEP 19); its distributions it does not.
"""

from __future__ import annotations

from enum import IntEnum

import numpy as np

from mnnvl_lab.errors import Refused


class Purpose(IntEnum):
    """What the numbers are for; each purpose has a stream of its own."""

    CHOICES = 1
    POPULARITY = 2
    WEIGHTS = 3
    NOISE = 4
    BATCHES = 5


def bits(count: int, *, seed: int, purpose: Purpose, rank: int = 0, block: int = 0) -> np.ndarray:
    """The first `count` 64-bit words of a stream, uint64.

    Raises:
        Refused: the seed does not fit the generator's key.
    """
    if not 0 <= seed < 2**64:
        raise Refused(f"seed is {seed}: it must lie in [0, 2^64), the generator's key; choose another seed")
    key = np.array([seed, purpose], dtype=np.uint64)
    counter = np.array([0, block, rank, 0], dtype=np.uint64)
    return np.random.Philox(key=key, counter=counter).random_raw(count)


def uniform(words: np.ndarray) -> np.ndarray:
    """Words as float64 in (0, 1), neither end included: 52 bits, so that the half added is exact."""
    return ((words >> np.uint64(12)) + 0.5) * 2.0**-52

"""What a routing is: seeded choices of experts, equal on whichever rank computes them."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import astuple, dataclass
from typing import ClassVar

import numpy as np

from mnnvl_lab.errors import Refused
from mnnvl_lab.routing.streams import Purpose, bits

BLOCK_TOKENS = 512  # tokens drawn at a time: their E keys each stay in a core's cache


@dataclass(frozen=True, kw_only=True)
class Router:
    """The numbers that a routing is asked with.

    Raises:
        Refused: a number is out of range.
    """

    seed: int
    rank: int
    experts: int
    top_k: int
    ep_size: int

    def __post_init__(self):
        if not 1 <= self.top_k <= self.experts:
            raise Refused(f"top_k is {self.top_k}: it must lie in [1, experts = {self.experts}]; choose fewer experts")
        if not 1 <= self.ep_size <= self.experts:
            raise Refused(f"ep_size is {self.ep_size}: it must lie in [1, experts = {self.experts}]; use fewer ranks")
        if not 0 <= self.rank < self.ep_size:
            raise Refused(f"rank is {self.rank}: it must lie in [0, ep_size = {self.ep_size}); give an ep_rank")

    def draw(self, tokens: slice, width: int) -> np.ndarray:
        """uint64 `[T, width]` of one block of tokens: `width` words a token, the same however many tokens follow."""
        count = (tokens.stop - tokens.start) * width
        words = bits(count, seed=self.seed, purpose=Purpose.CHOICES, rank=self.rank, block=tokens.start // BLOCK_TOKENS)
        return words.reshape(-1, width)


@dataclass(frozen=True, kw_only=True)
class Routing(ABC):
    """How tokens choose their experts. `str(routing)` is its label in records, `parse` the inverse."""

    label: ClassVar[str]

    def experts(self, *, seed: int, rank: int, tokens: int, experts: int, top_k: int, ep_size: int) -> np.ndarray:
        """int32 `[T, K]`: the experts of each token of `rank` (an ep_rank), distinct within a token.

        The first n tokens do not depend on how many follow.

        Raises:
            Refused: a number is out of range.
        """
        if tokens < 0:
            raise Refused(f"tokens is {tokens}: a rank has none or more; give 0 for an idle rank")
        router = Router(seed=seed, rank=rank, experts=experts, top_k=top_k, ep_size=ep_size)
        starts = range(0, tokens, BLOCK_TOKENS)
        blocks = [self._choose(router, slice(start, min(start + BLOCK_TOKENS, tokens))) for start in starts]
        return np.concatenate([np.empty((0, top_k)), *blocks]).astype(np.int32)

    @abstractmethod
    def _choose(self, router: Router, tokens: slice) -> np.ndarray:
        """`[T, K]` for one block of tokens."""

    def __str__(self):
        return ":".join([self.label, *(repr(value).removesuffix(".0") for value in astuple(self))])


def first_k(keys_TE: np.ndarray, k: int) -> np.ndarray:
    """Indices `[T, k]` of each row's k smallest uint64 keys, smallest first.

    The index takes the place of a key's lowest bits, so that a partition of values finds it (several times faster than
    of indices) and equal keys are ordered the same on every machine.
    """
    width = keys_TE.shape[1]
    mask = np.uint64((1 << (width - 1).bit_length()) - 1)
    packed = (keys_TE & ~mask) | np.arange(width, dtype=np.uint64)
    chosen = np.partition(packed, k - 1, axis=1)[:, :k] if k < width else packed
    return (np.sort(chosen, axis=1) & mask).astype(np.int64)

"""A load: a routing, how many tokens each rank has, and a seed."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from mnnvl_lab.errors import Refused
from mnnvl_lab.routing.base import Routing
from mnnvl_lab.routing.streams import Purpose, bits, uniform


@dataclass(frozen=True, kw_only=True)
class Load:
    """What the ranks of an EP group send in one round, known to each of them without communication.

    Attributes:
        routing: how tokens choose experts.
        tokens: T of every rank, or one T an ep_rank; 0 for an idle rank.
        seed: of choices, weights and payloads.

    Raises:
        Refused: a negative token count.
    """

    routing: Routing
    tokens: int | tuple[int, ...]
    seed: int = 0

    def __post_init__(self):
        if not isinstance(self.tokens, int | np.integer):
            object.__setattr__(self, "tokens", tuple(int(n) for n in self.tokens))
        if min(self._tokens, default=-1) < 0:
            raise Refused(f"tokens is {self.tokens}: give 0 or more for each rank, and at least one rank")

    @property
    def _tokens(self) -> tuple[int, ...]:
        return self.tokens if isinstance(self.tokens, tuple) else (int(self.tokens),)

    @property
    def max_tokens(self) -> int:
        """M, tokens of the fullest rank."""
        return max(self._tokens)

    def tokens_R(self, ep_size: int) -> tuple[int, ...]:
        """T of each rank.

        Raises:
            Refused: token counts were given for another number of ranks.
        """
        if not isinstance(self.tokens, tuple):
            return self._tokens * ep_size
        if len(self.tokens) != ep_size:
            raise Refused(f"tokens has {len(self.tokens)} counts but ep_size is {ep_size}: give one count a rank")
        return self.tokens

    def experts_TK(self, rank: int, *, experts: int, top_k: int, ep_size: int) -> np.ndarray:
        """int32 `[T, K]`: the choices of `rank`'s tokens."""
        tokens = self.tokens_R(ep_size)[rank]
        return self.routing.experts(
            seed=self.seed, rank=rank, tokens=tokens, experts=experts, top_k=top_k, ep_size=ep_size
        )

    def weights_TK(self, rank: int, *, top_k: int) -> np.ndarray:
        """float32 `[T, K]`: the router's weights, positive, each token's sum 1 up to rounding."""
        tokens = self._tokens[rank] if isinstance(self.tokens, tuple) else self.tokens
        words = bits(tokens * top_k, seed=self.seed, purpose=Purpose.WEIGHTS, rank=rank)
        # No weight is small against another: an expert left out must show after rounding to bf16.
        raw_TK = 0.25 + uniform(words).reshape(tokens, top_k)
        return (raw_TK / raw_TK.sum(axis=1, keepdims=True)).astype(np.float32)

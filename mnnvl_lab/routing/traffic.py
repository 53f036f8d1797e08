"""A load: a routing, how many tokens each rank has, and a seed."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from mnnvl_lab.arguments import MOST_SEED, as_axis, require_type
from mnnvl_lab.errors import Refused, is_whole, require_count
from mnnvl_lab.layout import expert_owner
from mnnvl_lab.routing.distributions import Routing, parse
from mnnvl_lab.routing.random_bits import Purpose, bits, uniform

EQUAL = "equal"
"""Stands for the token counts of ranks that all have the same."""


@dataclass(frozen=True, kw_only=True)
class Load:
    """What the ranks of an EP group send in one round, known to each of them without communication.

    Attributes:
        routing: how tokens choose experts.
        tokens: T of every rank, or one T an ep_rank; 0 for an idle rank.
        seed: of choices, weights and payloads.
        runtime_max_tokens: M that all ranks agree on, at least the fullest rank's tokens; None for just these.

    Raises:
        Refused: a token count or the seed is out of range, or more tokens than `runtime_max_tokens`.
    """

    routing: Routing
    tokens: int | tuple[int, ...]
    seed: int = 0
    runtime_max_tokens: int | None = None

    def __post_init__(self):
        require_type("routing", self.routing, Routing)
        remedy = "choose a seed that a record can hold"
        object.__setattr__(self, "seed", require_count("seed", self.seed, least=0, most=MOST_SEED, remedy=remedy))
        object.__setattr__(self, "tokens", _tokens(self.tokens))
        if self.runtime_max_tokens is not None:
            require_count("runtime_max_tokens", self.runtime_max_tokens)
            if self.runtime_max_tokens < self.max_tokens:
                raise Refused(
                    f"runtime_max_tokens is {self.runtime_max_tokens} but a rank has {self.max_tokens} tokens: surplus "
                    "rows would overwrite another rank's; raise it, or leave it out"
                )

    @classmethod
    def from_row(cls, row: Mapping[str, object]) -> Load:
        """The load of a record's row: columns `routing`, `tokens`, `token_counts`, `seed` and `runtime_max_tokens`.

        Raises:
            Refused: a replayed routing, of which a record has the label alone.
        """
        counts = str(row.get("token_counts", EQUAL))
        tokens = int(row["tokens"]) if counts == EQUAL else tuple(map(int, counts.split(",")))
        limit = row.get("runtime_max_tokens")
        return cls(
            routing=parse(row["routing"]),
            tokens=tokens,
            seed=int(row["seed"]),
            runtime_max_tokens=None if limit is None else int(limit),
        )

    @property
    def _tokens(self) -> tuple[int, ...]:
        return self.tokens if isinstance(self.tokens, tuple) else (self.tokens,)

    @property
    def max_tokens(self) -> int:
        """Tokens of the fullest rank."""
        return max(self._tokens)

    @property
    def runtime_max(self) -> int:
        """M of the round: `runtime_max_tokens`, or the fullest rank's tokens, at least 1."""
        return max(1, self.max_tokens) if self.runtime_max_tokens is None else self.runtime_max_tokens

    @property
    def token_counts(self) -> str:
        """Of each rank, such as `96,0`; `equal` where all ranks have as many."""
        return ",".join(map(str, self._tokens)) if len(set(self._tokens)) > 1 else EQUAL

    def tokens_R(self, ep_size: int) -> tuple[int, ...]:
        """T of each rank.

        Raises:
            Refused: token counts were given for another number of ranks.
        """
        if not isinstance(self.tokens, tuple):
            return self._tokens * ep_size
        if len(self.tokens) != ep_size:
            raise Refused(f"tokens has {len(self.tokens)} counts but ep_size is {ep_size}: give one count per rank")
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


def _tokens(tokens: object) -> int | tuple[int, ...]:
    rule = {"least": 0, "remedy": "give 0 or more for each rank"}
    if is_whole(tokens):
        return require_count("tokens", tokens, **rule)
    return tuple(require_count("tokens", n, **rule) for n in as_axis("tokens", tokens))


def rows_RR(load: Load, *, experts: int, top_k: int, ep_size: int, logical: bool = True) -> np.ndarray:
    """int64 `[R, R]`: distinct (token, rank) pairs.

    Args:
        logical: count the rows that a rank keeps for itself; False counts the wire only.
    """
    rows = np.zeros((ep_size, ep_size), dtype=np.int64)
    for source, owner_TK in enumerate(_owners(load, experts, top_k, ep_size)):
        reached_TR = np.zeros((len(owner_TK), ep_size), dtype=bool)
        np.put_along_axis(reached_TR, owner_TK, True, axis=1)
        rows[source] = reached_TR.sum(axis=0)
    return rows if logical else wire(rows)


def copies_RR(load: Load, *, experts: int, top_k: int, ep_size: int, logical: bool = True) -> np.ndarray:
    """int64 `[R, R]`: (token, expert) pairs by source and by the rank that owns the expert."""
    owners = _owners(load, experts, top_k, ep_size)
    copies = np.array([np.bincount(owner_TK.ravel(), minlength=ep_size) for owner_TK in owners])
    return copies if logical else wire(copies)


def copies_E(load: Load, *, experts: int, top_k: int, ep_size: int) -> np.ndarray:
    """int64 `[E]`: tokens that chose each expert, over all ranks."""
    shape = {"experts": experts, "top_k": top_k, "ep_size": ep_size}
    return sum(np.bincount(load.experts_TK(r, **shape).ravel(), minlength=experts) for r in range(ep_size))


def wire(matrix_RR: np.ndarray) -> np.ndarray:
    """The matrix without its diagonal: what a rank keeps never crosses a link."""
    return matrix_RR - np.diag(np.diag(matrix_RR))


def to_bytes(matrix_RR: np.ndarray, *, bytes_per_token: int) -> np.ndarray:
    """int64 `[R, R]` in bytes."""
    return matrix_RR * np.int64(bytes_per_token)


def _owners(load: Load, experts: int, top_k: int, ep_size: int):
    """The owner `[T, K]` of each choice, one source after the other."""
    for source in range(ep_size):
        experts_TK = load.experts_TK(source, experts=experts, top_k=top_k, ep_size=ep_size)
        yield expert_owner(experts_TK, experts=experts, ep_size=ep_size)

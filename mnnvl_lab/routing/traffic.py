"""A load: a routing, how many tokens each rank has, and a seed."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from mnnvl_lab.arguments import MOST_SEED, require_type
from mnnvl_lab.errors import Refused, named_fields, require_count
from mnnvl_lab.routing.distributions import ROUTINGS, Routing, parse
from mnnvl_lab.routing.padding import EQUAL, NO_PADDING, Padding, as_counts, counts, target_ranks, written
from mnnvl_lab.routing.random_bits import Purpose, bits, uniform

KEPT_RANKS = 128
"""Ranks up to which counted rows are kept for the next who asks: 128 KiB each at most."""


@named_fields
@dataclass(frozen=True, kw_only=True)
class Load:
    """What the ranks of an EP group send in one round, known to each of them without communication.

    Attributes:
        routing: how tokens choose experts.
        tokens: T of every rank, or one T an ep_rank; 0 for an idle rank.
        seed: of choices, weights and payloads.
        runtime_max_tokens: M that all ranks agree on, at least the rows of the fullest rank; None for just these.
        padding: rows without a token behind those of each rank; None for none.
        replicas: ep_ranks in a row that send the same tokens, as the TP ranks of a DP rank do without sequence
            parallelism; 1 where each has tokens of its own.

    Raises:
        Refused: a count or the seed is out of range, more rows than `runtime_max_tokens`, or replicas that differ.
    """

    routing: Routing
    tokens: int | tuple[int, ...]
    seed: int = 0
    runtime_max_tokens: int | None = None
    padding: Padding | None = None
    replicas: int = 1

    def __post_init__(self):
        require_type("routing", self.routing, Routing)
        remedy = "choose a seed that a record can hold"
        object.__setattr__(self, "seed", require_count("seed", self.seed, least=0, most=MOST_SEED, remedy=remedy))
        object.__setattr__(self, "tokens", counts("tokens", self.tokens))
        self._take_padding()
        self._require_replicas()
        if self.runtime_max_tokens is not None:
            require_count("runtime_max_tokens", self.runtime_max_tokens)
            if self.runtime_max_tokens < self.max_rows:
                what = "tokens" if self.padding is None else "rows with padding"
                raise Refused(
                    f"runtime_max_tokens is {self.runtime_max_tokens} but a rank has {self.max_rows} {what}: surplus "
                    "rows would overwrite another rank's; raise it, or leave it out"
                )

    @classmethod
    def from_row(cls, row: Mapping[str, object]) -> Load:
        """The load of a record's row: columns `routing`, `tokens`, `token_counts`, `seed`, `runtime_max_tokens`,
        `replicas` and those of padding.

        Raises:
            Refused: a replayed routing, of which a record has the label alone.
        """
        said = str(row.get("token_counts", EQUAL))
        tokens = int(row["tokens"]) if said == EQUAL else tuple(map(int, said.split(",")))
        limit = row.get("runtime_max_tokens")
        return cls(
            routing=parse(row["routing"]),
            tokens=tokens,
            seed=int(row["seed"]),
            runtime_max_tokens=None if limit is None else int(limit),
            padding=Padding.from_row(row),
            replicas=int(row.get("replicas", 1)),
        )

    @property
    def max_tokens(self) -> int:
        """Tokens of the fullest rank."""
        return max(as_counts(self.tokens))

    @property
    def max_rows(self) -> int:
        """Tokens and padding of the rank that has most of both."""
        return self.max_tokens if self.padding is None else max(self._rows)

    @property
    def runtime_max(self) -> int:
        """M of the round: `runtime_max_tokens`, or the rows of the fullest rank, at least 1."""
        return max(1, self.max_rows) if self.runtime_max_tokens is None else self.runtime_max_tokens

    @property
    def columns(self) -> dict[str, object]:
        """What a record says of it, but for the routing's name and the seed."""
        return {
            "tokens": self.max_tokens,
            "token_counts": written(self.tokens),
            "runtime_max_tokens": self.runtime_max,
            **(dict(NO_PADDING) if self.padding is None else self.padding.columns),
            "replicas": self.replicas,
        }

    def buffer_rows(self, ep_size: int) -> int:
        """R x M: rows of the buffer in which a rank's experts find what arrived, filled or not."""
        return ep_size * self.runtime_max

    def tokens_R(self, ep_size: int) -> tuple[int, ...]:
        """T of each rank.

        Raises:
            Refused: token counts were given for another number of ranks.
        """
        if not isinstance(self.tokens, tuple):
            return (self.tokens,) * ep_size
        if len(self.tokens) != ep_size:
            raise Refused(f"tokens has {len(self.tokens)} counts but ep_size is {ep_size}: give one count per rank")
        return self.tokens

    def padding_R(self, ep_size: int) -> tuple[int, ...]:
        """Padding rows of each rank.

        Raises:
            Refused: counts were given for another number of ranks.
        """
        rows = 0 if self.padding is None else self.padding.rows
        if not isinstance(rows, tuple):
            return (rows,) * ep_size
        if len(rows) != ep_size:
            raise Refused(f"padding has {len(rows)} counts but ep_size is {ep_size}: give one count per rank")
        return rows

    def rows_R(self, ep_size: int) -> tuple[int, ...]:
        """Rows of each rank's batch: its tokens and its padding."""
        pairs = zip(self.tokens_R(ep_size), self.padding_R(ep_size), strict=True)
        return tuple(tokens + padding for tokens, padding in pairs)

    def experts_TK(self, rank: int, *, experts: int, top_k: int, ep_size: int) -> np.ndarray:
        """int32 `[T, K]`: the choices of `rank`'s tokens, then those of its padding."""
        tokens = self.tokens_R(ep_size)[rank]
        chosen_TK = self.routing.experts(
            seed=self.seed, rank=self.origin(rank), tokens=tokens, experts=experts, top_k=top_k, ep_size=ep_size
        )
        if not (padding := self.padding_R(ep_size)[rank]):
            return chosen_TK
        return np.concatenate([chosen_TK, self.padding.ids_PK(padding, experts=experts, top_k=top_k)])

    def origin(self, rank: int) -> int:
        """The first of the ranks that send the same tokens as `rank`."""
        return rank // self.replicas * self.replicas

    def weights_TK(self, rank: int, *, top_k: int) -> np.ndarray:
        """float32 `[T, K]`: the router's weights, positive, each token's sum 1 up to rounding; padding has some too."""
        rows = self._rows[rank] if len(self._rows) > 1 else self._rows[0]
        words = bits(rows * top_k, seed=self.seed, purpose=Purpose.WEIGHTS, rank=self.origin(rank))
        # No weight is small against another: an expert left out must show after rounding to bf16.
        raw_TK = 0.25 + uniform(words).reshape(rows, top_k)
        return (raw_TK / raw_TK.sum(axis=1, keepdims=True)).astype(np.float32)

    @property
    def _rows(self) -> tuple[int, ...]:
        """Rows of each rank's batch, or of all ranks where they are equal."""
        lengths = [len(one) for one in (self.tokens, getattr(self.padding, "rows", 0)) if isinstance(one, tuple)]
        return self.rows_R(max(lengths, default=1))

    def _take_padding(self) -> None:
        """No padding rows are no padding."""
        if self.padding is not None:
            require_type("padding", self.padding, Padding)
            self._rows  # noqa: B018 both have counts for as many ranks
            if not self.padding.most_rows:
                object.__setattr__(self, "padding", None)

    def _require_replicas(self) -> None:
        require_count("replicas", self.replicas, remedy="give the TP ranks that hold the same tokens, or 1")
        rows = self._rows
        if self.replicas == 1 or len(rows) == 1:
            return
        blocks = [rows[first : first + self.replicas] for first in range(0, len(rows), self.replicas)]
        if len(rows) % self.replicas or any(len(set(block)) > 1 for block in blocks):
            raise Refused(
                f"rows of the ranks are {written(rows)} with replicas {self.replicas}: each run of {self.replicas} "
                "ranks sends the same tokens, so it must have equal counts; correct the counts, or use replicas 1"
            )


def rows_RR(load: Load, *, experts: int, top_k: int, ep_size: int, logical: bool = True) -> np.ndarray:
    """int64 `[R, R]`: distinct (token, rank) pairs; padding counts like tokens, where it is sent.

    Args:
        logical: count the rows that a rank keeps for itself; False counts the wire only.
    """
    # Only what a label describes in full is known again: a class of a user's own may compare equal without being so.
    known = type(load.routing) in ROUTINGS and ep_size <= KEPT_RANKS
    rows = _kept_rows_RR(load, experts, top_k, ep_size).copy() if known else _count_RR(load, experts, top_k, ep_size)
    return rows if logical else wire(rows)


@lru_cache(maxsize=256, typed=True)
def _kept_rows_RR(load: Load, experts: int, top_k: int, ep_size: int) -> np.ndarray:
    """As `_count_RR`: the phases, modes and clocks of a record share a load, whose drawing costs most of a bound."""
    return _count_RR(load, experts, top_k, ep_size)


def _count_RR(load: Load, experts: int, top_k: int, ep_size: int) -> np.ndarray:
    rows = np.zeros((ep_size, ep_size), dtype=np.int64)
    for source, owner_TK in enumerate(_owners(load, experts, top_k, ep_size)):
        reached_TR = np.zeros((len(owner_TK), ep_size + 1), dtype=bool)  # the last column is "nowhere", -1
        np.put_along_axis(reached_TR, owner_TK, True, axis=1)
        rows[source] = reached_TR[:, :-1].sum(axis=0)
    return rows


def copies_RR(load: Load, *, experts: int, top_k: int, ep_size: int, logical: bool = True) -> np.ndarray:
    """int64 `[R, R]`: (token, expert) pairs by source and by the rank that owns the expert; padding that names no
    expert has none."""
    owners = _owners(load, experts, top_k, ep_size, experts_only=True)
    copies = np.array([np.bincount(owner_TK[owner_TK >= 0], minlength=ep_size) for owner_TK in owners])
    return copies if logical else wire(copies)


def copies_E(load: Load, *, experts: int, top_k: int, ep_size: int) -> np.ndarray:
    """int64 `[E]`: tokens that chose each expert, over all ranks."""
    shape = {"experts": experts, "top_k": top_k, "ep_size": ep_size}
    chosen = [load.experts_TK(rank, **shape) for rank in range(ep_size)]
    return sum(np.bincount(ids[(ids >= 0) & (ids < experts)], minlength=experts) for ids in chosen)


def wire(matrix_RR: np.ndarray) -> np.ndarray:
    """The matrix without its diagonal: what a rank keeps never crosses a link."""
    return matrix_RR - np.diag(np.diag(matrix_RR))


def to_bytes(matrix_RR: np.ndarray, *, bytes_per_token: int) -> np.ndarray:
    """int64 `[R, R]` in bytes."""
    return matrix_RR * np.int64(bytes_per_token)


def _owners(load: Load, experts: int, top_k: int, ep_size: int, *, experts_only: bool = False):
    """The rank `[T, K]` that each choice leads to, one source after the other; -1 for none."""
    handling = "refuse" if load.padding is None else load.padding.handling
    handling = "drop" if experts_only and handling != "refuse" else handling
    for source in range(ep_size):
        experts_TK = load.experts_TK(source, experts=experts, top_k=top_k, ep_size=ep_size)
        yield target_ranks(experts_TK, experts=experts, ep_size=ep_size, invalid_ids=handling)

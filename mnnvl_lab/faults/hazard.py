"""One way to break a round, and the small changes that do it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from mnnvl_lab.transport.exchange import Batch, Exchange

if TYPE_CHECKING:
    import torch

BOTH = ("one_sided", "two_sided")


@dataclass(frozen=True, kw_only=True)
class Hazard:
    """One way to break a round.

    Attributes:
        name: what is wrong.
        unchecked: what the kernels would do.
        words: what the refusal must contain, a regular expression.
        exchange, batch, partials: makes the bad one out of a good one; the one that is given decides the stage.
        everywhere: all ranks bring it; else one alone.
        modes: where it applies.
    """

    name: str
    unchecked: str
    words: str
    exchange: Callable[[Exchange], Exchange] | None = None
    batch: Callable[[Batch, Exchange], Batch] | None = None
    partials: Callable[[torch.Tensor], torch.Tensor] | None = None
    everywhere: bool = False
    modes: tuple[str, ...] = BOTH


def first_id(value: Callable[[Exchange], int]) -> Callable[[Batch, Exchange], Batch]:
    """A batch whose first token's first choice is `value(exchange)`."""

    def mutate(batch: Batch, exchange: Exchange) -> Batch:
        ids = batch.experts_TK.clone()
        ids[0, 0] = value(exchange)
        return replace(batch, experts_TK=ids)

    return mutate


def rows(change: Callable[[torch.Tensor], torch.Tensor]) -> Callable[[Batch, Exchange], Batch]:
    """A batch whose first payload is changed."""
    return lambda batch, _: replace(batch, payloads=(change(batch.payloads[0]), *batch.payloads[1:]))


def spread(rows: torch.Tensor) -> torch.Tensor:
    """The same numbers, not contiguous."""
    return rows.repeat_interleave(2, dim=1)[:, ::2]


def as_signed_bytes(rows: torch.Tensor) -> torch.Tensor:
    """The same memory under a dtype that no kernel takes."""
    import torch

    return rows.contiguous().view(torch.int8)


def with_stats(batch: Batch, exchange: Exchange) -> Batch:
    """A batch with statistics for which nothing was reserved."""
    return replace(batch, eplb_stats_E=batch.experts_TK.new_zeros(exchange.experts))

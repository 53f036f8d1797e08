"""Rounds of a two-sided protocol whose prepare goes in steps: which ids and weights came, and which were due."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
import pandas as pd

from mnnvl_lab.errors import choose
from mnnvl_lab.layout import expert_range
from mnnvl_lab.measure.point import Point

PROTOCOLS = ("PrepareInSteps", "StepPublishedTwice", "StepPublishedTwiceThenReset")


@dataclass(frozen=True, kw_only=True)
class PreparedBlock:
    """What one rank got from one source in one round.

    Attributes:
        round, sender, receiver: which.
        tokens: the tokens of the source that were due here, ascending.
        weights, due_weights: float32 `[rows, K]`, received and due.
        wrong: bool `[rows]`, ids or weights are not those due.
        of_last_round: bool `[rows]`, wrong, and equal to what was due in the same row of the round before.
        rows_right: whether the payload rows, which travel apart from ids and weights, were right.
        head, tail: words of the connection after the round, when all ranks had ended it.
    """

    round: int
    sender: int
    receiver: int
    tokens: np.ndarray
    weights: np.ndarray
    due_weights: np.ndarray
    wrong: np.ndarray
    of_last_round: np.ndarray
    rows_right: bool
    head: int
    tail: int


def prepare_rounds(rank, point: Point, *, rounds: int = 3, protocol: str = "StepPublishedTwice") -> list[PreparedBlock]:
    """Rank function: rounds with fresh routing, and what prepare brought in each. Collective.

    Args:
        point: of mode `two_sided`; round i takes its load with seed + i.
        protocol: one of `PROTOCOLS`: sound, with the mistake, or with the mistake and a reset between rounds.

    Raises:
        Refused: another protocol.
    """
    from mnnvl_lab.faults import published_twice

    transport_type = getattr(published_twice, choose(protocol, PROTOCOLS, "protocol"))
    loads = [replace(point.load, seed=point.load.seed + number) for number in range(rounds)]
    with transport_type(rank, point.exchange) as transport:
        return blocks_of_rounds(transport, [replace(point, load=load) for load in loads])


def blocks_of_rounds(transport, points: Sequence[Point]) -> list[PreparedBlock]:
    """One round per point on an open transport. Collective."""
    blocks: list[PreparedBlock] = []
    last_R: dict[int, np.ndarray] = {}
    for number, point in enumerate(points):
        new = list(_one_round(transport, point, number, last_R))
        blocks += new
        last_R = {block.sender: block.due_weights for block in new}
    return blocks


def _one_round(transport, point: Point, number: int, last_R: dict[int, np.ndarray]) -> Iterator[PreparedBlock]:
    from mnnvl_lab.measure.check import named_tokens
    from mnnvl_lab.measure.workload import Work

    received = transport.dispatch(Work.of(transport.rank, point).batch())
    transport.combine(transport.partials_buffer(received.handle).zero_(), received.handle)
    transport.group.barrier()  # nobody moves a head or a tail any more
    words_R = [transport.head_and_tail(sender) for sender in range(transport.ep_size)]
    transport.group.barrier()  # nobody is in the next round yet
    for sender, (head, tail) in enumerate(words_R):
        block = received.block(sender)
        tokens, due_ids, due_weights = due(point, sender=sender, receiver=transport.ep_rank)
        ids, weights = received.experts[block].numpy(), received.weights[block].numpy()
        wrong = (ids != due_ids).any(axis=1) | (weights != due_weights).any(axis=1)
        yield PreparedBlock(
            round=number,
            sender=sender,
            receiver=transport.ep_rank,
            tokens=tokens,
            weights=weights.copy(),
            due_weights=due_weights,
            wrong=wrong,
            of_last_round=wrong & _equal_rows(weights, last_R.get(sender)),
            rows_right=bool(np.array_equal(named_tokens(received.payloads[0][block]), tokens)),
            head=head,
            tail=tail,
        )


def due(point: Point, *, sender: int, receiver: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Tokens, ids `[n, K]` (E where another rank owns the expert) and weights `[n, K]` from the global view."""
    x = point.exchange
    ids_TK = point.load.experts_TK(sender, experts=x.experts, top_k=x.top_k, ep_size=x.ep_size)
    own = expert_range(experts=x.experts, ep_size=x.ep_size, ep_rank=receiver)
    owned_TK = (ids_TK >= own.start) & (ids_TK < own.stop)
    tokens = np.flatnonzero(owned_TK.any(axis=1))
    ids_NK = np.where(owned_TK, ids_TK, x.experts)[tokens]
    return tokens, ids_NK, point.load.weights_TK(sender, top_k=x.top_k)[tokens]


def _equal_rows(weights: np.ndarray, last: np.ndarray | None) -> np.ndarray:
    """bool `[rows]`; rows that the last round did not have are not equal to any."""
    equal = np.zeros(len(weights), dtype=bool)
    if last is not None:
        shared = min(len(weights), len(last))
        equal[:shared] = (weights[:shared] == last[:shared]).all(axis=1)
    return equal


def prepare_table(blocks_R: Sequence[Sequence[PreparedBlock]]) -> pd.DataFrame:
    """One row per round, sender and receiver, from what all ranks returned."""
    return pd.DataFrame(
        {
            "round": block.round,
            "sender": block.sender,
            "receiver": block.receiver,
            "rows": len(block.tokens),
            "wrong": int(block.wrong.sum()),
            "of_last_round": int(block.of_last_round.sum()),
            "rows_right": block.rows_right,
            "head": block.head,
            "tail": block.tail,
        }
        for blocks in blocks_R
        for block in blocks
    )


def first_weights(blocks: Sequence[PreparedBlock], *, sender: int, tokens: int = 3) -> pd.DataFrame:
    """The first weight of the first rows from one sender, one row per round and token: received and due."""
    return pd.DataFrame(
        {"round": block.round, "row": row, "received": block.weights[row, 0], "due": block.due_weights[row, 0]}
        for block in blocks
        if block.sender == sender
        for row in range(min(tokens, len(block.tokens)))
    )

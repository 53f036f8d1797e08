"""Races looked for: sound transports under random delays, and broken ones that must be caught."""

from __future__ import annotations

from contextlib import contextmanager
from itertools import cycle

import numpy as np

from mnnvl_lab.errors import LabError, RankTimeout
from mnnvl_lab.measure.point import Point
from mnnvl_lab.routing import Load, Uniform, Zipf
from mnnvl_lab.transport.exchange import Exchange

MAX_TOKENS = 16
AHEAD = 3  # batches that are admitted together


def challenge(rank, name: str, *, rounds: int = 4, sound: bool = False) -> list[str]:
    """Rank function: what goes wrong on this rank with a broken transport, in words; empty if nothing does.

    Args:
        name: of a variant of `mnnvl_lab.transport.broken`.
        sound: take the transport that it was made from instead, which must pass.
    """
    from mnnvl_lab.measure.work import Work
    from mnnvl_lab.transport.broken import require_variant

    variant, found = require_variant(name), []
    exchange = Exchange(
        mode=variant.transport.mode,
        layout=rank.layout,
        max_tokens=max(variant.tokens),
        hidden=variant.hidden,
        experts=4 * rank.layout.ep_size,
        top_k=4,
    )
    with (variant.sound if sound else variant.transport)(rank, exchange) as transport:
        for seed, tokens in zip(range(rounds), cycle(variant.tokens), strict=False):
            load = Load(routing=Uniform(), tokens=tokens, seed=seed)
            work = Work.of(rank, Point(exchange=exchange, load=load))
            try:
                found += _wrongs(transport, work)
            except RankTimeout as hang:
                return [*found, f"hang: {hang.cause}"]
    return found


def _wrongs(transport, work) -> list[str]:
    """One round to its end, whatever is found wrong in it."""
    from mnnvl_lab.measure.check import check_combined, check_received
    from mnnvl_lab.measure.work import stand_in

    received, found = transport.dispatch(work.batch()), []
    partials = None
    with _noting(found):
        partials = stand_in(transport, work, received, check_received(work, received))
    combined = transport.combine(transport.partials_buffer(received) if partials is None else partials)
    with _noting(found):
        check_combined(work, combined)
    return found


@contextmanager
def _noting(found: list[str]):
    try:
        yield
    except RankTimeout:
        raise
    except (LabError, IndexError) as error:  # torn ids lead beyond tables
        found.append(str(error))


def stress(rank, mode: str, *, rounds: int, seed: int) -> int:
    """Rank function: checked rounds on a transport that dawdles at random wherever order matters.

    Returns:
        Rounds that were right.

    Raises:
        WrongResult: one was not.
    """
    from mnnvl_lab.faults.dawdling import DAWDLING

    chance = np.random.default_rng(seed)  # the same on all ranks
    exchange = Exchange(
        mode=mode, layout=rank.layout, max_tokens=MAX_TOKENS, hidden=64, experts=8 * rank.layout.ep_size, top_k=4
    )
    with DAWDLING[mode](rank, exchange, seed) as transport:
        for index in range(0, rounds, AHEAD):
            works = [_random_work(rank, exchange, chance, seed + i) for i in range(index, min(index + AHEAD, rounds))]
            _admitted_rounds(transport, works)
    return rounds


def _random_work(rank, exchange: Exchange, chance: np.random.Generator, seed: int):
    from mnnvl_lab.measure.work import Work

    tokens = tuple(chance.integers(0, MAX_TOKENS + 1, rank.layout.ep_size).tolist())
    routing = (Uniform(), Zipf(exponent=1.5))[seed % 2]
    return Work.of(rank, Point(exchange=exchange, load=Load(routing=routing, tokens=tokens, seed=seed)))


def _admitted_rounds(transport, works) -> None:
    """Rounds of batches that were all admitted before the first: their sizes change without another admission."""
    from mnnvl_lab.measure.check import check_combined, check_received
    from mnnvl_lab.measure.work import stand_in

    admitted = [transport.admit(work.batch()) for work in works]
    for work, batch in zip(works, admitted, strict=True):
        transport.dawdle()
        received = transport.dispatch(batch)
        partials = stand_in(transport, work, received, check_received(work, received))
        check_combined(work, transport.combine(partials))

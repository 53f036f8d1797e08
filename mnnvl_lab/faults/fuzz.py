"""Fuzzing: random rounds, some with an invalid input; each must be right, or refused by all ranks in the same words."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from mnnvl_lab.errors import Refused
from mnnvl_lab.exchange import Exchange
from mnnvl_lab.faults.invalid_inputs import InvalidInput, require_invalid_input
from mnnvl_lab.layout import Layout
from mnnvl_lab.measure.point import Point
from mnnvl_lab.routing import Load, parse

RIGHT, REFUSED = "right", "refused: "


@dataclass(frozen=True, kw_only=True)
class FuzzCase:
    """One exchange, some rounds on it, and what is spoiled.

    Attributes:
        mode, tokens, experts, top_k, hidden, format, combine_dtype, options, routing, seed: of an exchange and its
            load, within the limits of the kernels. The workspace has room for one token per rank more.
        rounds: right ones, with a seed each.
        invalid_input: name of an `InvalidInput` that is tried after the first round, or None.
        target: ep_rank that brings it, where not all do.
    """

    mode: str
    tokens: tuple[int, ...]
    experts: int
    top_k: int
    hidden: int
    format: str = "bf16"
    combine_dtype: str = "bf16"
    options: tuple[tuple[str, object], ...] = ()
    routing: str = "uniform"
    seed: int = 0
    rounds: int = 2
    invalid_input: str | None = None
    target: int = 0

    @property
    def exchange(self) -> Exchange:
        return Exchange(
            mode=self.mode,
            layout=Layout(dp=len(self.tokens)),
            max_tokens=max(*self.tokens, 1) + 1,
            hidden=self.hidden,
            experts=self.experts,
            top_k=self.top_k,
            format=self.format,
            combine_dtype=self.combine_dtype,
            **dict(self.options),
        )

    def point(self, round_index: int) -> Point:
        load = Load(routing=parse(self.routing), tokens=self.tokens, seed=self.seed + round_index)
        return Point(exchange=self.exchange, load=load)


def run_fuzz_cases(rank, cases: Sequence[FuzzCase]) -> list[str]:
    """Rank function: the outcome of each case, `right`, `refused: ...` or `accepted`.

    Raises:
        WrongResult: a round came out wrong.
    """
    return [_outcome(rank, case) for case in cases]


def _outcome(rank, case: FuzzCase) -> str:
    invalid_input = require_invalid_input(case.invalid_input) if case.invalid_input else None
    if invalid_input and invalid_input.exchange:
        return _with_exchange(rank, case, invalid_input)
    return _with_rounds(rank, case, invalid_input)


def _brings(rank, case: FuzzCase, invalid_input: InvalidInput) -> bool:
    return invalid_input.everywhere or rank.group("ep").rank == case.target


def _with_exchange(rank, case: FuzzCase, invalid_input: InvalidInput) -> str:
    from mnnvl_lab.transport import open_transport

    exchange = invalid_input.exchange(case.exchange) if _brings(rank, case, invalid_input) else case.exchange
    try:
        open_transport(rank, exchange).close()
    except Refused as refusal:
        return f"{REFUSED}{refusal}"
    return "accepted"


def _with_rounds(rank, case: FuzzCase, invalid_input: InvalidInput | None) -> str:
    from mnnvl_lab.measure.check import checked_round
    from mnnvl_lab.measure.workload import Work
    from mnnvl_lab.transport import open_transport

    outcome = RIGHT
    with open_transport(rank, case.exchange) as transport:
        for index in range(case.rounds):
            work = Work.of(rank, case.point(index))
            checked_round(transport, work, work.batch())
            if invalid_input and not index:
                outcome = _spoiled_round(rank, transport, work, case, invalid_input)
    return outcome


def _spoiled_round(rank, transport, work, case: FuzzCase, invalid_input: InvalidInput) -> str:
    """A refused round leaves the transport as it was, so that right ones may follow."""
    brings, batch = _brings(rank, case, invalid_input), work.batch()
    try:
        if invalid_input.batch:
            transport.dispatch(invalid_input.batch(batch, case.exchange) if brings else batch)
        else:
            handle = transport.dispatch(batch).handle
            partials = transport.partials_buffer(handle).zero_()
            transport.combine(invalid_input.partials(partials) if brings else partials, handle)
    except Refused as refusal:
        if invalid_input.partials:
            transport.combine(partials, handle)
        return f"{REFUSED}{refusal}"
    return "accepted"


def soften(case: FuzzCase) -> FuzzCase:
    """A case whose invalid input can show: there is room for one token or row fewer, and rows enough to lie apart."""
    if case.invalid_input is None:
        return case
    if require_invalid_input(case.invalid_input).partials is None:
        return replace(case, tokens=tuple(max(2, tokens) for tokens in case.tokens))
    return replace(case, tokens=tuple(max(8, tokens) for tokens in case.tokens), routing="balanced")

"""A counterexample of the model checker, replayed by real processes: every step is delayed until its turn has come.

The trace of a search names the steps of all processes in one order. Here the host transports run the same steps, and
each waits until those before it in the trace have run. Steps that the trace does not reach wait until its end.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial

import numpy as np

from mnnvl_lab.errors import RankTimeout, Refused
from mnnvl_lab.exchange import Exchange
from mnnvl_lab.faults.broken_protocols import Unmet
from mnnvl_lab.faults.prepare_blocks import blocks_of_rounds
from mnnvl_lab.faults.published_twice import NamedStep, PrepareInSteps, StepPublishedTwice
from mnnvl_lab.layout import Layout
from mnnvl_lab.measure.point import Point
from mnnvl_lab.model_check import OneSided, Prepare, Result
from mnnvl_lab.ranks.sync import Fence, wait_until
from mnnvl_lab.routing import Load, Uniform
from mnnvl_lab.transport.host.one_sided import HostOneSided
from mnnvl_lab.transport.host.shared_memory import SharedMemory

HIDDEN = 1024  # wide rows: then the combine region begins a few bytes behind a multiple of a row, as in the model
TOP_K = 4
LIMIT_S = 10.0


@dataclass(frozen=True, kw_only=True)
class Turns:
    """The steps of a trace in their order, and the turn, a number that all ranks see.

    Attributes:
        steps: process and label of each.
        turn: uint64 `[1]` in shared memory: how many of the steps have run.
    """

    steps: Sequence[tuple[str, str]]
    turn: np.ndarray
    fence: Fence = field(default_factory=Fence)

    def due(self, process: str, label: str) -> bool:
        """Whether a step is the next of the trace; one that the trace does not have is due at its end."""
        name = (process, label)
        is_due = int(self.turn[0]) == (self.steps.index(name) if name in self.steps else len(self.steps))
        self.fence()
        return is_due

    def passed(self, process: str, label: str) -> None:
        if (process, label) in self.steps:
            self.fence()
            self.turn[0] += 1


@dataclass(frozen=True, kw_only=True)
class PrepareTurns:
    """Gate of `PrepareInSteps`: the transfer from `sender` to `receiver` follows the trace, the others run freely."""

    turns: Turns
    sender: int
    receiver: int

    def may_run(self, step: NamedStep) -> bool:
        return not self._follows(step) or self.turns.due(step.process, step.label)

    def done(self, step: NamedStep) -> None:
        if self._follows(step):
            self.turns.passed(step.process, step.label)

    def _follows(self, step: NamedStep) -> bool:
        return (step.sender, step.receiver) == (self.sender, self.receiver)


class SmallStepPublishedTwice(StepPublishedTwice):
    """A packet per token and two packets per step, as in a small model."""

    units_per_packet = 1
    packets_per_step = 2


class SmallPrepareInSteps(PrepareInSteps):
    units_per_packet = 1
    packets_per_step = 2


HOST_STEPS = ("fill packet", "publish head", "wait for step", "read packet", "release step", "reset head and tail")


def replay_prepare(rank, model: Prepare, steps: Sequence[tuple[str, str]], *, sound: bool = False):
    """Rank function: rank 0 sends to rank 1 in the order of a trace. Collective over two ranks.

    Args:
        model: whose rounds are run: `packets` tokens go from each rank to each.
        steps: process and label of each event of the trace (`steps_of`).
        sound: a full last step is published once. Its processes cannot take all steps of the trace, so they run freely.

    Returns:
        What this rank got in each round (`prepare_blocks.PreparedBlock`).
    """
    _require_two(rank)
    kept = [] if sound else [step for step in steps if step[1].partition(": ")[2].startswith(HOST_STEPS)]
    memory = SharedMemory(rank.group("ep"), size_bytes=8, directory=rank.segment_dir)
    turns = Turns(steps=kept, turn=memory.row(0).numpy().view(np.uint64))
    gate = PrepareTurns(turns=turns, sender=0, receiver=1)
    points = [_point("two_sided", (packets,) * 2, i, max(model.packets)) for i, packets in enumerate(model.packets)]
    transport_type = SmallPrepareInSteps if sound else SmallStepPublishedTwice
    with transport_type(rank, points[0].exchange, gate=gate) as transport:
        transport.wait_limit_s = LIMIT_S
        return blocks_of_rounds(transport, points)


class TurnsOneSided(Unmet, HostOneSided):
    """One-sided without a meeting before a change of size; puts, sums and pulls follow the trace."""

    def __init__(self, rank, exchange, turns: Turns):
        self._turns, self._number = turns, -1
        super().__init__(rank, exchange)

    def _dispatch(self, batch, prepared):
        self._number += 1
        return super()._dispatch(batch, prepared)

    def _from_next(self, active):
        return sorted(active)  # the model's order

    def _put(self, target, *rest) -> None:
        self._in_turn(f"put rows at rank {target}", partial(super()._put, target, *rest))

    def _lay_out(self, partials, handle) -> int:
        return self._in_turn("write the partial sums", partial(super()._lay_out, partials, handle))

    def _pull(self, handle, stride_bytes: int):
        return self._in_turn("pull", partial(super()._pull, handle, stride_bytes))

    def _in_turn(self, label: str, act):
        process, step = f"rank {self.ep_rank}", f"round {self._number}: {label}"
        if self._turns is not None:
            wait_until(
                lambda: self._turns.due(process, step),
                limit_s=LIMIT_S,
                on_timeout=lambda: RankTimeout(
                    rank=self.rank.index, phase=self.rank.phase, cause=f"no turn for {step}"
                ),
                check=partial(self.rank.require_alive, self.group.ranks),
            )
        result = act()
        if self._turns is not None:
            self._turns.passed(process, step)
        return result


def replay_one_sided(rank, model: OneSided, steps: Sequence[tuple[str, str]], *, sound: bool = False) -> list[str]:
    """Rank function: the rounds of a model in the order of a trace. Collective over two ranks.

    Returns:
        What the oracle found wrong on this rank, in words.
    """
    from mnnvl_lab.faults.races import wrongs_of_round
    from mnnvl_lab.measure.workload import Work

    _require_two(rank)
    memory = SharedMemory(rank.group("ep"), size_bytes=8, directory=rank.segment_dir)
    turns = Turns(steps=_one_pull_per_round(steps), turn=memory.row(0).numpy().view(np.uint64))
    points = [
        _point("one_sided", each.tokens_R, i, model.max_tokens, each.runtime_max_tokens)
        for i, each in enumerate(model.rounds)
    ]
    found: list[str] = []
    transport_type = HostOneSided if sound else partial(TurnsOneSided, turns=turns)
    with transport_type(rank, points[0].exchange) as transport:
        for point in points:
            found += wrongs_of_round(transport, Work.of(rank, point))
    return found


def steps_of(result: Result) -> list[tuple[str, str]]:
    """Process and label of each event of a trace, for `replay_prepare` and `replay_one_sided`.

    Raises:
        Refused: the search found nothing, so there is nothing to replay.
    """
    if not result.trace:
        raise Refused(f"{result.protocol.name}: no counterexample to replay; search a protocol with a mistake")
    return [(event.process, event.label) for event in result.trace]


def _one_pull_per_round(steps: Sequence[tuple[str, str]]) -> list[tuple[str, str]]:
    """Host transports pull from all ranks at once: at the last of the trace's pulls of that rank and round."""
    kept: dict[tuple[str, str], None] = {}
    for process, label in steps:
        begin, _, action = label.partition(": ")
        if action.startswith("pull from"):
            kept.pop((process, f"{begin}: pull"), None)
            kept[process, f"{begin}: pull"] = None
        elif action.startswith(("put rows", "write the partial sums")):
            kept[process, label] = None
    return list(kept)


def _point(mode: str, tokens_R: tuple[int, ...], seed: int, max_tokens: int, runtime_max: int | None = None) -> Point:
    """Top-k of as many experts: each token goes to every rank, as in the models."""
    exchange = Exchange(
        mode=mode, layout=Layout(dp=2), max_tokens=max_tokens, hidden=HIDDEN, experts=TOP_K, top_k=TOP_K
    )
    load = Load(routing=Uniform(), tokens=tokens_R, seed=seed, runtime_max_tokens=runtime_max)
    return Point(exchange=exchange, load=load)


def _require_two(rank) -> None:
    if rank.group("ep").size != 2:
        raise Refused(f"ep_size {rank.group('ep').size}: the models have two ranks; use Layout(dp=2)")

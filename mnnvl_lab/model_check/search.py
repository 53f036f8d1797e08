"""Explicit-state model checker: a breadth-first search over every interleaving of a protocol's processes.

The search visits each reachable state once and stops at the first wrong one, so its trace is a shortest
counterexample. A state in which nothing can move before all processes have ended is wrong too: a deadlock.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

from mnnvl_lab.model_check.protocol import Memory, Protocol, Step, Violation

State = tuple[tuple[int, ...], tuple, tuple]  # program counters, cells, stores that are not visible yet
Move = tuple[str, str, State]  # process, label, next state


@dataclass(frozen=True, kw_only=True)
class Event:
    """One line of a trace: which process did what, and the cells that it changed, with their new values."""

    process: str
    label: str
    changes: Mapping[str, object] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class Result:
    """Outcome of a search.

    Attributes:
        states: distinct states seen.
        complete: True if every reachable state was visited, False after a violation or at the limit of states.
        violation: what is wrong, or None.
        trace: a shortest sequence of steps that leads there; empty if nothing is wrong.
    """

    protocol: Protocol
    states: int
    complete: bool
    violation: str | None = None
    trace: tuple[Event, ...] = ()


def search(protocol: Protocol, *, max_states: int = 2_000_000) -> Result:
    """Visit all states of `protocol`, breadth first, until one is wrong or `max_states` were seen."""
    space = _Space(protocol)
    parents: dict[State, tuple | None] = {space.initial: None}
    frontier = deque(parents)
    while frontier and len(parents) <= max_states:
        state = frontier.popleft()
        try:
            moves = list(space.moves(state))
        except Violation as error:
            process, label, reason = error.args
            return space.result(parents, state, reason, Event(process=process, label=label))
        if not moves and not space.ended(state):
            return space.result(parents, state, f"deadlock: {space.waiting(state)}")
        for process, label, after in moves:
            if after not in parents:
                parents[after] = (state, process, label)
                frontier.append(after)
    return Result(protocol=protocol, states=len(parents), complete=not frontier)


class _Space:
    """The states of a protocol and the moves between them."""

    def __init__(self, protocol: Protocol):
        self._protocol, self._names = protocol, tuple(protocol.cells)
        self._index = {name: i for i, name in enumerate(self._names)}
        self._processes, self._programs = tuple(protocol.programs), tuple(protocol.programs.values())
        self.initial: State = ((0,) * len(self._programs), tuple(protocol.cells.values()), ())

    def moves(self, state: State) -> Iterator[Move]:
        yield from self._deliveries(state)
        for process, program in enumerate(self._programs):
            if state[0][process] < len(program):
                yield from self._step(state, process, program[state[0][process]])

    def _step(self, state: State, process: int, step: Step) -> Iterator[Move]:
        pcs, cells, pending = state[0], list(state[1]), list(state[2])
        memory = Memory(self._index, cells, pending, process)
        if step.fence and any(owner == process for owner, *_ in pending):
            return
        if step.guard and not step.guard(memory):
            return
        try:
            step.act(memory)
        except Violation as error:
            raise Violation(self._processes[process], step.label, str(error)) from None
        pcs = (*pcs[:process], pcs[process] + 1, *pcs[process + 1 :])
        yield self._processes[process], step.label, (pcs, tuple(cells), tuple(pending))

    def _deliveries(self, state: State) -> Iterator[Move]:
        """One store becomes visible: of each process and cell the oldest."""
        pcs, cells, pending = state
        for i, (owner, cell, value) in enumerate(pending):
            if all(earlier[:2] != (owner, cell) for earlier in pending[:i]):
                after = (*cells[:cell], value, *cells[cell + 1 :])
                label = f"{self._names[cell]} becomes visible"
                yield self._processes[owner], label, (pcs, after, pending[:i] + pending[i + 1 :])

    def ended(self, state: State) -> bool:
        return all(pc == len(program) for pc, program in zip(state[0], self._programs, strict=True))

    def waiting(self, state: State) -> str:
        at = zip(self._processes, self._programs, state[0], strict=True)
        return "; ".join(f"{name} waits at {program[pc].label!r}" for name, program, pc in at if pc < len(program))

    def result(self, parents: dict, state: State, violation: str, *last: Event) -> Result:
        trace = list(last)
        while parents[state]:
            before, process, label = parents[state]
            changes = {n: new for n, old, new in zip(self._names, before[1], state[1], strict=True) if old != new}
            trace.insert(0, Event(process=process, label=label, changes=changes))
            state = before
        return Result(
            protocol=self._protocol, states=len(parents), complete=False, violation=violation, trace=tuple(trace)
        )

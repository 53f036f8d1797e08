"""Pico's protocol as a small model: rows, counts, flags and epochs of a few ranks, with combine by pull or by push.

Each pair of ranks has one cell for the rows of dispatch, one for their count, and one for the rows on their way back
(`mnnvl_lab.transport.pico.kernels`). One process stands for all programs of a rank: they run between the same flags.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial

from mnnvl_lab.errors import choose
from mnnvl_lab.model_check.protocol import Memory, Protocol, Step

PICO_MISTAKES = ("flag without release", "missing epoch", "idle peers not waited for")
"""`flag without release`: no barrier before the flag, or a relaxed one; either lets the flag overtake the rows."""


@dataclass(frozen=True, kw_only=True)
class Pico:
    """A protocol to search.

    Attributes:
        rounds: for each round, `sends[source][target]`: whether any row goes there.
        push: combine pushes; else it pulls.
        mistake: one of `PICO_MISTAKES`, or None for the sound protocol.
    """

    rounds: tuple[tuple[tuple[bool, ...], ...], ...]
    push: bool = False
    mistake: str | None = None

    def __post_init__(self):
        if self.mistake is not None:
            choose(self.mistake, PICO_MISTAKES, "mistake")

    @property
    def ranks(self) -> range:
        return range(len(self.rounds[0]))

    @property
    def protocol(self) -> Protocol:
        how = "push" if self.push else "pull"
        return Protocol(
            name=f"pico, {len(self.ranks)} ranks, {len(self.rounds)} rounds, {how}: {self.mistake or 'sound'}",
            programs={f"rank {r}": tuple(self._program(r)) for r in self.ranks},
            cells=self._cells(),
        )

    def _cells(self) -> dict[str, object]:
        pairs = [(a, b) for a in self.ranks for b in self.ranks]
        cells: dict[str, object] = {}
        for name, value in (("row", "stale"), ("count", "stale"), ("back", "stale"), ("dispatch", 0), ("combine", 0)):
            cells |= {f"{name}[{a}][{b}]": value for a, b in pairs}
        return cells

    def _program(self, rank: int) -> Iterator[Step]:
        for i, sends in enumerate(self.rounds):
            yield Step(label=f"round {i}: put rows and counts", act=partial(self._put, rank, i))
            yield from self._signal_and_wait(rank, i, "dispatch", self.ranks)
            yield Step(label=f"round {i}: read rows and counts", act=partial(self._read, rank, i))
            yield Step(label=f"round {i}: bring back the sums", act=partial(self._bring_back, rank, i))
            awaited = self.ranks
            if self.mistake == "idle peers not waited for":
                awaited = [q for q in self.ranks if sends[rank][q]]
            yield from self._signal_and_wait(rank, i, "combine", awaited)
            yield Step(label=f"round {i}: add up", act=partial(self._add_up, rank, i))

    def _signal_and_wait(self, rank: int, i: int, phase: str, awaited) -> Iterator[Step]:
        epoch = 1 if self.mistake == "missing epoch" else 2 * i + 1 + (phase == "combine")

        def raise_flags(memory: Memory) -> None:
            for peer in self.ranks:
                memory.put(f"{phase}[{peer}][{rank}]", epoch)

        release = self.mistake != "flag without release"
        yield Step(label=f"round {i}: raise the {phase} flags", act=raise_flags, fence=release)
        flags = [f"{phase}[{rank}][{peer}]" for peer in awaited]
        yield Step(label=f"round {i}: wait for {phase}", guard=lambda m: all(m[flag] == epoch for flag in flags))

    def _put(self, rank: int, i: int, memory: Memory) -> None:
        for target, any_row in enumerate(self.rounds[i][rank]):
            memory.put(f"count[{target}][{rank}]", _count(i, any_row))
            if any_row:
                memory.put(f"row[{target}][{rank}]", f"row {i} of {rank}")

    def _read(self, rank: int, i: int, memory: Memory) -> None:
        for source in self.ranks:
            any_row = self.rounds[i][source][rank]
            memory.require(f"count[{rank}][{source}]", _count(i, any_row))
            if any_row:
                memory.require(f"row[{rank}][{source}]", f"row {i} of {source}")

    def _bring_back(self, rank: int, i: int, memory: Memory) -> None:
        """Pull: leave the sums here. Push: store them at the source; rows and counts are read once more for it."""
        if self.push:
            self._read(rank, i, memory)
        for source in self.ranks:
            if self.rounds[i][source][rank]:
                place = f"back[{source}][{rank}]" if self.push else f"back[{rank}][{source}]"
                memory.put(place, f"sum {i} at {rank} for {source}")

    def _add_up(self, rank: int, i: int, memory: Memory) -> None:
        for target, any_row in enumerate(self.rounds[i][rank]):
            if any_row:
                place = f"back[{rank}][{target}]" if self.push else f"back[{target}][{rank}]"
                memory.require(place, f"sum {i} at {target} for {rank}")


def _count(i: int, any_row: bool) -> str:
    return f"{'some' if any_row else 'no'} rows in round {i}"

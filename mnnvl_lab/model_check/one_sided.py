"""The one-sided protocol as a small model: rows, flags, epochs and regions of a few ranks and tokens.

Each token goes to every rank. A rank's workspace is a line of cells: the dispatch region (a block of M rows for each
source), then the combine region, which begins behind it and so moves with M as in FlashInfer 0.7.2
(`moeAlltoAllKernels.cu`), or at a fixed place as on FlashInfer's main branch.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial

from mnnvl_lab.errors import choose
from mnnvl_lab.model_check.protocol import Memory, Protocol, Step

MISTAKES = (
    "flag before rows",
    "no fence before flag",
    "no barrier after clearing",
    "epoch stands still",
    "combine without waiting",
    "size changes unmet",
)


def epoch_of(i: int, phase: str) -> int:
    """Epoch of a phase of round `i`, counted from 0: dispatch and combine each move it on by one from 0."""
    return 2 * i + 1 + (phase == "combine")


@dataclass(frozen=True, kw_only=True)
class Round:
    """One round: `tokens_R` of each rank, and M, `runtime_max_tokens`."""

    tokens_R: tuple[int, ...]
    runtime_max_tokens: int


@dataclass(frozen=True, kw_only=True)
class OneSided:
    """A one-sided protocol to search.

    Attributes:
        rounds: the rounds in turn, equal for all ranks.
        mistake: one of `MISTAKES`, or None for the sound protocol, in which ranks meet when M changes.
        fixed_combine_offset: the combine region begins where the largest round needs it, in every round.
    """

    rounds: tuple[Round, ...]
    mistake: str | None = None
    fixed_combine_offset: bool = False

    def __post_init__(self):
        if self.mistake is not None:
            choose(self.mistake, MISTAKES, "mistake")

    @property
    def ranks(self) -> range:
        return range(len(self.rounds[0].tokens_R))

    @property
    def max_tokens(self) -> int:
        return max(each.runtime_max_tokens for each in self.rounds)

    @property
    def protocol(self) -> Protocol:
        name = f"one_sided, {len(self.ranks)} ranks, {len(self.rounds)} rounds: {self.mistake or 'sound'}"
        return Protocol(
            name=name, programs={f"rank {r}": tuple(self._program(r)) for r in self.ranks}, cells=self._cells()
        )

    def _cells(self) -> dict[str, object]:
        cells: dict[str, object] = {}
        for rank in self.ranks:
            cells |= {f"epoch[{rank}]": 0, f"met[{rank}]": 0}
            for peer in self.ranks:
                cells |= {f"dispatch_flag[{rank}][{peer}]": 0, f"combine_flag[{rank}][{peer}]": 0}
            cells |= {f"row[{rank}][{i}]": "stale" for i in range(2 * len(self.ranks) * self.max_tokens)}
        return cells

    def _program(self, rank: int) -> Iterator[Step]:
        yield Step(label="clear own flags", act=partial(self._clear, rank))
        meetings = 0
        if self.mistake != "no barrier after clearing":
            meetings += 1
            yield from self._meet(rank, meetings)
        for i, each in enumerate(self.rounds):
            changed = i and each.runtime_max_tokens != self.rounds[i - 1].runtime_max_tokens
            if changed and not self.fixed_combine_offset and self.mistake != "size changes unmet":
                meetings += 1
                yield from self._meet(rank, meetings)
            yield from self._dispatch(rank, i)
            yield from self._combine(rank, i)

    def _clear(self, rank: int, memory: Memory) -> None:
        for peer in self.ranks:
            memory[f"dispatch_flag[{rank}][{peer}]"] = memory[f"combine_flag[{rank}][{peer}]"] = 0

    def _meet(self, rank: int, count: int) -> Iterator[Step]:
        def arrive(memory: Memory) -> None:
            memory[f"met[{rank}]"] = count

        yield Step(label="arrive at the barrier", act=arrive, fence=True)
        yield Step(label="leave the barrier", guard=lambda m: all(m[f"met[{peer}]"] >= count for peer in self.ranks))

    def _dispatch(self, rank: int, i: int) -> Iterator[Step]:
        puts = [Step(label=f"round {i}: put rows at rank {t}", act=partial(self._put, rank, i, t)) for t in self.ranks]
        flags = self._signal(rank, i, "dispatch")
        yield from [*flags, *puts] if self.mistake == "flag before rows" else [*puts, *flags]
        yield self._wait(rank, i, "dispatch")
        yield Step(label=f"round {i}: read the rows", act=partial(self._read, rank, i))

    def _combine(self, rank: int, i: int) -> Iterator[Step]:
        yield Step(label=f"round {i}: write the partial sums", act=partial(self._lay_out, rank, i))
        yield from self._signal(rank, i, "combine")
        if self.mistake != "combine without waiting":
            yield self._wait(rank, i, "combine")
        for target in self.ranks:
            yield Step(label=f"round {i}: pull from rank {target}", act=partial(self._pull, rank, i, target))

    def _signal(self, rank: int, i: int, phase: str) -> Iterator[Step]:
        epoch = self._epoch(i, phase)

        def raise_flags(memory: Memory) -> None:
            memory[f"epoch[{rank}]"] = epoch
            for peer in self.ranks:
                memory.put(f"{phase}_flag[{peer}][{rank}]", epoch)

        fence = self.mistake not in ("no fence before flag", "flag before rows")
        yield Step(label=f"round {i}: raise the {phase} flags", act=raise_flags, fence=fence)

    def _wait(self, rank: int, i: int, phase: str) -> Step:
        epoch, flags = self._epoch(i, phase), [f"{phase}_flag[{rank}][{peer}]" for peer in self.ranks]
        return Step(
            label=f"round {i}: wait for {phase} epoch {epoch}", guard=lambda m: all(m[flag] == epoch for flag in flags)
        )

    def _epoch(self, i: int, phase: str) -> int:
        return 1 if self.mistake == "epoch stands still" else epoch_of(i, phase)

    def _cell(self, at: int, i: int, phase: str, peer: int, token: int) -> str:
        """Where rank `at` holds a row from, or for, `peer`."""
        M, size = self.rounds[i].runtime_max_tokens, len(self.ranks)
        begin = 0 if phase == "dispatch" else size * (self.max_tokens if self.fixed_combine_offset else M)
        return f"row[{at}][{begin + peer * M + token}]"

    def _put(self, rank: int, i: int, target: int, memory: Memory) -> None:
        for token in range(self.rounds[i].tokens_R[rank]):
            cell, row = self._cell(target, i, "dispatch", rank, token), _row(i, rank, token)
            if target == rank:  # nobody else reads it there
                memory[cell] = row
            else:
                memory.put(cell, row)

    def _read(self, rank: int, i: int, memory: Memory) -> None:
        for source, tokens in enumerate(self.rounds[i].tokens_R):
            for token in range(tokens):
                memory.require(self._cell(rank, i, "dispatch", source, token), _row(i, source, token))

    def _lay_out(self, rank: int, i: int, memory: Memory) -> None:
        for source, tokens in enumerate(self.rounds[i].tokens_R):
            for token in range(tokens):
                memory.put(self._cell(rank, i, "combine", source, token), _sum(i, rank, source, token))

    def _pull(self, rank: int, i: int, target: int, memory: Memory) -> None:
        for token in range(self.rounds[i].tokens_R[rank]):
            memory.require(self._cell(target, i, "combine", rank, token), _sum(i, target, rank, token))


def _row(i: int, source: int, token: int) -> str:
    return f"row of round {i}, rank {source}, token {token}"


def _sum(i: int, at: int, source: int, token: int) -> str:
    return f"sum of round {i} at rank {at} for rank {source}, token {token}"

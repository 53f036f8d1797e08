"""Wait-for graph: from the ranks' snapshots, who waits for whom, and which ranks are the culprits.

One-sided kernels wait until every peer's completion flag equals their own epoch (`moeAlltoAllKernels.cu`): dispatch
has odd epochs, combine even ones. Two-sided kernels leave what a peer has not taken yet at the sender: a count in
prepare, a head beyond the tail in the moves (`trtllm_alltoall.cuh`). In collective calls whoever has begun fewer is
awaited.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pandas as pd

from mnnvl_lab.hang.snapshot import BUSY, DEAF, Snapshot
from mnnvl_lab.layout import Layout
from mnnvl_lab.notebook import html_block, text_block

ROUND_PHASES = ("prepare", "dispatch", "combine")
HEAD, TAIL, COUNT = range(3)  # words of a two-sided connection (MoeCommFifoConnInfo)


@dataclass(frozen=True, kw_only=True)
class Wait:
    """One rank waits for another.

    Attributes:
        waiter, awaited: global ranks.
        missing: what the awaited one has not reached, such as `dispatch of epoch 7`.
        evidence: what says so.
    """

    waiter: int
    awaited: int
    missing: str
    evidence: str


def wait_for_graph(snapshots: Mapping[int, Snapshot]) -> list[Wait]:
    """All waits, by waiter; guesses from phases stand in only for ranks that no flag or counter says anything about."""
    found: list[Wait] = []
    for snapshot in snapshots.values():
        if snapshot.state == BUSY:
            own = [*_in_collectives(snapshot, snapshots), *_in_kernels(snapshot)]
            found += own or _by_phase(snapshot, snapshots)
    return found


def readable(snapshot: Snapshot, world: range) -> Snapshot:
    """The snapshot, without flags and groups from which no waits can be read: `trouble` then says why.

    Args:
        world: global ranks of the layout; nobody waits for any other.
    """
    trouble, flags = [snapshot.trouble], snapshot.flags
    try:
        strangers = {wait.awaited for wait in _in_kernels(snapshot)} - set(world)
        problem = f"they wait for ranks {sorted(strangers)}, which the layout lacks" if strangers else ""
    except Exception as error:
        problem = repr(error)
    if problem:
        trouble.append(f"its flags cannot be read ({problem})")
        flags = {}
    groups = {name: each for name, each in snapshot.collectives.items() if set(each.ranks) <= set(world)}
    if odd := sorted(snapshot.collectives.keys() - groups.keys()):
        trouble.append(f"groups have ranks that the layout lacks ({', '.join(odd)})")
    return replace(snapshot, flags=flags, collectives=groups, trouble="; ".join(filter(None, trouble)))


def in_round(wait: Wait, snapshots: Mapping[int, Snapshot]) -> bool:
    """Whether the waiter is inside a phase of a round, where nobody is kept waiting for long."""
    kernel = not wait.missing.startswith("collective")
    return kernel or snapshots[wait.waiter].phase.split(" ")[0] in ROUND_PHASES


def _in_kernels(snapshot: Snapshot) -> Iterator[Wait]:
    if "flag_val" in snapshot.flags:
        yield from _on_flags(snapshot)
    yield from _on_fifos(snapshot)


def _on_flags(snapshot: Snapshot) -> Iterator[Wait]:
    """Peers whose completion flag is not at the rank's own epoch."""
    epoch = snapshot.epoch
    if not epoch:
        return
    phase = "dispatch" if epoch % 2 else "combine"
    seen_R = snapshot.flags[f"{phase}_completion_flags"]
    for peer in snapshot.taking_part:
        if seen_R[peer] != epoch and snapshot.peers[peer] != snapshot.rank:
            yield Wait(
                waiter=snapshot.rank,
                awaited=snapshot.peers[peer],
                missing=f"{phase} of epoch {epoch}",
                evidence=f"its last {phase} signal here was epoch {seen_R[peer]}",
            )


def _on_fifos(snapshot: Snapshot) -> Iterator[Wait]:
    """Peers that have not taken what lies ready for them."""
    counts = snapshot.flags.get("prepare_connections")
    heads = snapshot.flags.get("connections")
    for peer, rank in enumerate(snapshot.peers):
        if rank == snapshot.rank:
            continue
        if counts is not None and counts[peer, COUNT]:
            rows = int(counts[peer, COUNT]) - 1
            yield _untaken(snapshot, rank, "prepare", f"it left the count of {rows} rows")
        elif heads is not None and (entries := _entries(heads[peer])):
            yield _untaken(snapshot, rank, _verb(snapshot), f"it left {entries} of its FIFO entries")


def _entries(words: np.ndarray) -> int:
    """Filled and not emptied, over all channels."""
    return int((words[..., HEAD].astype(np.int64) - words[..., TAIL].astype(np.int64)).sum())


def _untaken(snapshot: Snapshot, awaited: int, missing: str, what: str) -> Wait:
    return Wait(waiter=snapshot.rank, awaited=awaited, missing=missing, evidence=f"{what} untaken")


def _verb(snapshot: Snapshot) -> str:
    verb = snapshot.phase.split(" ")[0]
    return verb if verb in ROUND_PHASES else "move"


def _in_collectives(snapshot: Snapshot, snapshots: Mapping[int, Snapshot]) -> Iterator[Wait]:
    for name, collective in snapshot.collectives.items():
        if collective.begun == collective.done:
            continue
        for rank in collective.ranks:
            theirs = _begun(snapshots.get(rank), name)
            if theirs < collective.begun and rank != snapshot.rank:
                yield Wait(
                    waiter=snapshot.rank,
                    awaited=rank,
                    missing=f"collective {collective.begun} of group {name}",
                    evidence=f"it has begun {theirs}",
                )


def _begun(snapshot: Snapshot | None, name: str) -> int:
    """Collective calls that a rank has begun in a group; none if it never used the group or cannot be asked."""
    collective = snapshot.collectives.get(name) if snapshot else None
    return collective.begun if collective else 0


def _by_phase(snapshot: Snapshot, snapshots: Mapping[int, Snapshot]) -> list[Wait]:
    """A rank inside a phase waits, for all that is known, for peers that are in another one.

    Not where flags tell: all there is to see in an epoch that every peer has signalled is a rank that works.
    """
    verb = snapshot.phase.split(" ")[0]
    if verb not in ROUND_PHASES or "flag_val" in snapshot.flags:
        return []
    others = [rank for rank in snapshot.peers if rank != snapshot.rank]
    return [
        Wait(
            waiter=snapshot.rank,
            awaited=rank,
            missing=verb,
            evidence=f"it is in {_phase(snapshots.get(rank)) or 'an unknown phase'}",
        )
        for rank in others
        if _phase(snapshots.get(rank)).split(" ")[0] != verb
    ]


def _phase(snapshot: Snapshot | None) -> str:
    return snapshot.phase if snapshot else ""


FRAME = re.compile(r'File "(?P<file>[^"]+)", line (?P<line>\d+) in (?P<function>.+)')
ENGINE = "mnnvl_lab/ranks/engine.py"
LIBRARIES = ("site-packages", "/lib/python")


@dataclass(frozen=True, kw_only=True)
class HangReport:
    """What became of a call.

    Attributes:
        layout: of the ranks.
        snapshots: what each rank showed, by global rank.
        waits: who waits for whom.
        limit_s: how long was waited.
    """

    layout: Layout
    snapshots: Mapping[int, Snapshot]
    waits: tuple[Wait, ...]
    limit_s: float

    @property
    def culprits(self) -> tuple[int, ...]:
        """Ranks that others wait for and that themselves wait for nobody: the cause. Empty if all wait in a circle."""
        waiters = {wait.waiter for wait in self.waits}
        return tuple(sorted({wait.awaited for wait in self.waits} - waiters))

    @property
    def hangs_in_round(self) -> bool:
        """Whether somebody waits inside a phase of a round."""
        return any(in_round(wait, self.snapshots) for wait in self.waits)

    @property
    def headline(self) -> str:
        """The finding in a sentence a cause."""
        if not self.waits:
            return "no rank shows whom it waits for: those without an answer are at work or outside the package's code"
        if self.culprits:
            return "; ".join(self._accusation(rank) for rank in self.culprits)
        circle = sorted({wait.waiter for wait in self.waits})
        where = ", ".join(f"rank {rank} in {self.snapshots[rank].phase or 'an unknown phase'}" for rank in circle)
        return f"ranks wait for each other in a circle, so they are out of step: {where}"

    def waits_of(self, rank: int) -> list[Wait]:
        return [wait for wait in self.waits if wait.waiter == rank]

    def to_frame(self) -> pd.DataFrame:
        """One row per rank: what the layout says of it, phase, epoch, whom it waits for, missing or not, stack."""
        return pd.DataFrame([self._row(rank) for rank in sorted(self.snapshots)])

    def stacks(self) -> str:
        """Python stacks of the ranks' functions, the innermost call first, of all that had not answered."""
        shown = [(rank, own_frames(s.stack)) for rank, s in sorted(self.snapshots.items()) if s.state in (BUSY, DEAF)]
        return "\n".join(f"rank {rank}:\n" + "\n".join(f"  {frame[0]}" for frame in frames) for rank, frames in shown)

    @property
    def details(self) -> str:
        """Table, waits and stacks as text."""
        return "\n".join([self._shown().to_string(index=False), *self._notes, self.stacks()])

    def __str__(self) -> str:
        return text_block(self.headline, self._shown(), self._notes)

    def _repr_html_(self) -> str:
        return html_block(self.headline, self._shown(), self._notes)

    @property
    def _notes(self) -> list[str]:
        return [f"rank {w.waiter} waits for rank {w.awaited} in the {w.missing}: {w.evidence}" for w in self.waits]

    def _shown(self) -> pd.DataFrame:
        table = self.to_frame()
        words = table["waits_for"].map(lambda ranks: ", ".join(map(str, ranks)) or "-")
        return table.assign(waits_for=words, epoch=table["epoch"].map(lambda e: "-" if pd.isna(e) else str(int(e))))

    def _row(self, rank: int) -> dict[str, object]:
        snapshot = self.snapshots[rank]
        return {
            "rank": rank,
            **self.layout.coordinates(rank),
            "ep_rank": self.layout.ep_rank(rank),
            "state": snapshot.state,
            "phase": snapshot.phase,
            "epoch": snapshot.epoch,
            "waits_for": tuple(sorted({wait.awaited for wait in self.waits_of(rank)})),
            "never_arrived": rank in self.culprits,
            "at": innermost(snapshot.stack) or snapshot.trouble,
        }

    def _accusation(self, rank: int) -> str:
        against = [wait for wait in self.waits if wait.awaited == rank]
        waiters = sorted({wait.waiter for wait in against})
        place = ", ".join(f"{axis.upper()} {i}" for axis, i in self.layout.coordinates(rank).items())
        snapshot = self.snapshots[rank]
        doing = {BUSY: f"it is in {snapshot.phase or 'an unknown phase'}"}.get(
            snapshot.state, f"it is {snapshot.state}"
        )
        return (
            f"rank {rank} ({place}) never arrived at the {against[0].missing} ({against[0].evidence}); {doing}; "
            f"waiting for it: {', '.join(f'rank {waiter}' for waiter in waiters)}"
        )


def diagnose(snapshots: Mapping[int, Snapshot], layout: Layout, *, limit_s: float) -> HangReport:
    """Work out from what the ranks show who waits for whom."""
    world = range(layout.world_size)
    read = {rank: readable(snapshot, world) for rank, snapshot in snapshots.items()}
    return HangReport(layout=layout, snapshots=read, waits=tuple(wait_for_graph(read)), limit_s=limit_s)


def own_frames(stack: str) -> list[re.Match]:
    """Frames of the rank function, the innermost first, out of `faulthandler`'s text of all threads."""
    threads = [thread for thread in stack.split("\n\n") if ENGINE in thread]
    return list(FRAME.finditer(threads[0].split(ENGINE)[0])) if threads else []


def innermost(stack: str) -> str:
    """Where a rank function is: its innermost frame outside libraries."""
    own = [frame for frame in own_frames(stack) if not any(library in frame["file"] for library in LIBRARIES)]
    return "{0}:{line} in {function}".format(Path(own[0]["file"]).name, **own[0].groupdict()) if own else ""

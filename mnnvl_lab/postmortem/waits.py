"""Who waits for whom, read out of snapshots.

One-sided kernels wait until every peer's completion flag equals their own epoch (`moeAlltoAllKernels.cu`): dispatch
has odd epochs, combine even ones. Two-sided kernels leave what a peer has not taken yet at the sender: a count in
prepare, a head beyond the tail in the moves (`trtllm_alltoall.cuh`). In collective calls whoever has begun fewer is
awaited.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace

import numpy as np

from mnnvl_lab.postmortem.snapshot import BUSY, Snapshot

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


def waits_among(snapshots: Mapping[int, Snapshot]) -> list[Wait]:
    """All waits, by waiter; guesses from phases stand in only for ranks that no flag or counter says anything about."""
    found: list[Wait] = []
    for snapshot in snapshots.values():
        if snapshot.state == BUSY:
            own = [*_in_collectives(snapshot, snapshots), *_in_kernels(snapshot)]
            found += own or _by_phase(snapshot, snapshots)
    return found


def readable(snapshot: Snapshot) -> Snapshot:
    """The snapshot, without flags from which no waits can be read: `trouble` then says why."""
    try:
        list(_in_kernels(snapshot))
    except Exception as error:
        trouble = "; ".join(filter(None, [snapshot.trouble, f"its flags cannot be read ({error!r})"]))
        return replace(snapshot, flags={}, trouble=trouble)
    return snapshot


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
    for name, meeting in snapshot.meetings.items():
        if meeting.begun == meeting.done:
            continue
        for rank in meeting.ranks:
            theirs = _begun(snapshots.get(rank), name)
            if theirs < meeting.begun and rank != snapshot.rank:
                yield Wait(
                    waiter=snapshot.rank,
                    awaited=rank,
                    missing=f"collective {meeting.begun} of group {name}",
                    evidence=f"it has begun {theirs}",
                )


def _begun(snapshot: Snapshot | None, name: str) -> int:
    """Collective calls that a rank has begun in a group; none if it never used the group or cannot be asked."""
    meeting = snapshot.meetings.get(name) if snapshot else None
    return meeting.begun if meeting else 0


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

"""The verdict on a hang: for each rank where it is and whom it waits for, and who never arrived."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import pandas as pd

from mnnvl_lab.layout import Layout
from mnnvl_lab.postmortem.snapshot import BUSY, DEAF, Snapshot
from mnnvl_lab.postmortem.waits import Wait, in_round, readable, waits_among
from mnnvl_lab.show import html_block, text_block

FRAME = re.compile(r'File "(?P<file>[^"]+)", line (?P<line>\d+) in (?P<function>.+)')
ENGINE = "mnnvl_lab/ranks/engine.py"
LIBRARIES = ("site-packages", "/lib/python")


@dataclass(frozen=True, kw_only=True)
class Verdict:
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
    def absent(self) -> tuple[int, ...]:
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
        if self.absent:
            return "; ".join(self._accusation(rank) for rank in self.absent)
        circle = sorted({wait.waiter for wait in self.waits})
        where = ", ".join(f"rank {rank} in {self.snapshots[rank].phase or 'an unknown phase'}" for rank in circle)
        return f"ranks wait for each other in a circle, so they are out of step: {where}"

    def waits_of(self, rank: int) -> list[Wait]:
        return [wait for wait in self.waits if wait.waiter == rank]

    def to_frame(self) -> pd.DataFrame:
        """One row a rank: what the layout says of it, phase, epoch, whom it waits for, whether it is missing, stack."""
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
            "never_arrived": rank in self.absent,
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


def judge(snapshots: Mapping[int, Snapshot], layout: Layout, *, limit_s: float) -> Verdict:
    """Work out from what the ranks show who waits for whom."""
    read = {rank: readable(snapshot) for rank, snapshot in snapshots.items()}
    return Verdict(layout=layout, snapshots=read, waits=tuple(waits_among(read)), limit_s=limit_s)


def own_frames(stack: str) -> list[re.Match]:
    """Frames of the rank function, the innermost first, out of `faulthandler`'s text of all threads."""
    threads = [thread for thread in stack.split("\n\n") if ENGINE in thread]
    return list(FRAME.finditer(threads[0].split(ENGINE)[0])) if threads else []


def innermost(stack: str) -> str:
    """Where a rank function is: its innermost frame outside libraries."""
    own = [frame for frame in own_frames(stack) if not any(library in frame["file"] for library in LIBRARIES)]
    return "{0}:{line} in {function}".format(Path(own[0]["file"]).name, **own[0].groupdict()) if own else ""

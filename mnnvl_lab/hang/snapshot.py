"""Snapshot of one rank's state, read from outside while the rank may hang."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np

BUSY, DONE, DEAD, DEAF = "busy", "finished", "dead", "unreadable"
"""States: in the call; has answered; its process ended; its process runs but cannot be asked."""


@dataclass(frozen=True, kw_only=True)
class CollectiveCounter:
    """A rank's collective calls in one group, counted: members that call in the same order have the same counts.

    Attributes:
        ranks: global ranks of the members.
        begun, done: how many calls this rank has begun, and finished.
    """

    ranks: tuple[int, ...]
    begun: int
    done: int


@dataclass(frozen=True, kw_only=True)
class Snapshot:
    """One rank at one moment.

    Attributes:
        rank: global rank.
        state: `busy`, `finished`, `dead` or `unreadable`.
        phase: what it last said that it was doing.
        mode: of the transport that moved last, None if there is none.
        peers: global ranks of that transport's EP group.
        active: ep_ranks that take part in its round, None for all.
        flags: that transport's own flags by region name (`read_flags`).
        collectives: by group name.
        stack: all its threads, `faulthandler`'s text.
        trouble: why something could not be read.
    """

    rank: int
    state: str = BUSY
    phase: str = ""
    mode: str | None = None
    peers: tuple[int, ...] = ()
    active: tuple[int, ...] | None = None
    flags: Mapping[str, np.ndarray] = field(default_factory=dict)
    collectives: Mapping[str, CollectiveCounter] = field(default_factory=dict)
    stack: str = ""
    trouble: str = ""

    @property
    def epoch(self) -> int | None:
        """`flag_val`, where the mode has one."""
        return int(self.flags["flag_val"].ravel()[0]) if "flag_val" in self.flags else None

    @property
    def taking_part(self) -> tuple[int, ...]:
        """ep_ranks whose flags count in this round."""
        return tuple(range(len(self.peers))) if self.active is None else self.active


def to_json(snapshot: Snapshot) -> str:
    """As text: no data that this package reads is ever executed."""
    fields = vars(snapshot) | {
        "flags": {name: array.tolist() for name, array in snapshot.flags.items()},
        "collectives": {name: vars(collective) for name, collective in snapshot.collectives.items()},
    }
    return json.dumps(fields)


def from_json(text: str) -> Snapshot:
    """The snapshot, or an empty one whose `trouble` says why the text is none."""
    try:
        return _parsed(text)
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        return Snapshot(rank=-1, trouble=f"its answer cannot be read ({error!r})")


def _parsed(text: str) -> Snapshot:
    fields = json.loads(text)
    active = fields["active"]
    fields |= {
        "peers": tuple(fields["peers"]),
        "active": None if active is None else tuple(active),
        "flags": {name: np.asarray(values) for name, values in fields["flags"].items()},
        "collectives": {
            name: CollectiveCounter(ranks=tuple(m["ranks"]), begun=m["begun"], done=m["done"])
            for name, m in fields["collectives"].items()
        },
    }
    return Snapshot(**fields)

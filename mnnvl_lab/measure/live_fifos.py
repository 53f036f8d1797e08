"""Two-sided rounds in slow motion: all send as far as there is room, all look, all receive what lies ready, all look.

A round by itself is a race in which heads and tails never stand still. Here the same transfers run in turns, with a
barrier between them, so that every look shows the same on every run.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd

from mnnvl_lab.errors import Refused
from mnnvl_lab.measure.point import Point
from mnnvl_lab.transport.fifo import HEAD, TAIL
from mnnvl_lab.transport.host_lanes import Lanes, Parcel
from mnnvl_lab.transport.host_two_sided import HostTwoSided

SENT, TAKEN = "sent", "taken"


@dataclass(frozen=True, kw_only=True)
class Watched:
    """What one rank saw of a round.

    Attributes:
        ep_rank: whose it is.
        looks: moment, heads `[R]` and tails `[R]` of the FIFOs that this rank fills.
        counts_R: rows that prepare announced from each source.
        starts_R: where each source's rows begin among those received.
        tokens_R: for each source, the tokens whose rows lie there, by their own headers.
    """

    ep_rank: int
    looks: tuple[tuple[str, np.ndarray, np.ndarray], ...]
    counts_R: tuple[int, ...]
    starts_R: tuple[int, ...]
    tokens_R: tuple[np.ndarray, ...]


@dataclass(frozen=True, kw_only=True)
class TurnLanes(Lanes):
    """Lanes on which senders and receivers take turns.

    Attributes:
        busy: whether any rank is, given whether this one is. Collective.
        look: called after each turn, with the number of the turn and what was done in it. Collective.
    """

    busy: Callable[[bool], bool]
    look: Callable[[int, str], None]

    def move(self, parcels: Sequence[Parcel], limit_s: float) -> None:
        ways = [(peer, channel) for peer in self.peers for channel in range(self.channels)]
        sends = [self._sending(parcels, *way) for way in ways]
        receives = [self._receiving(parcels, *way) for way in ways]
        turn = 0
        while self.busy(bool(sends or receives)):
            turn += 1
            sends = _as_far_as_they_go(sends)
            self.look(turn, SENT)
            receives = _as_far_as_they_go(receives)
            self.look(turn, TAKEN)


class TurnTwoSided(HostTwoSided):
    """The host transport, rows moving in turns; prepare is as it is."""

    def __init__(self, rank, exchange):
        self.looks: list[tuple[str, np.ndarray, np.ndarray]] = []
        super().__init__(rank, exchange)

    def _open_lanes(self) -> tuple[Lanes, Lanes]:
        lanes, prepare = super()._open_lanes()
        return TurnLanes(**vars(lanes), busy=self._any, look=self._look), prepare

    def _any(self, mine: bool) -> bool:
        return any(self.group.allgather(mine))

    def _look(self, turn: int, done: str) -> None:
        """Between two barriers: nobody moves a head or a tail meanwhile."""
        self.group.barrier()
        words = self.peek_flags()["connections"].astype(np.int64).sum(axis=1)  # over channels
        self.looks.append((f"{self.rank.phase}, turn {turn}: {done}", words[:, HEAD], words[:, TAIL]))
        self.group.barrier()


def watch_turns(rank, point: Point) -> Watched:
    """Rank function: a checked round in slow motion. Collective.

    Raises:
        Refused: another mode or fabric: the kernels cannot be stopped between two entries.
        WrongResult: the round was wrong.
    """
    from mnnvl_lab.measure.check import check_combined, check_received
    from mnnvl_lab.measure.work import Work, stand_in

    if (point.exchange.mode, rank.fabric) != ("two_sided", "host"):
        raise Refused(
            f"{point.exchange.mode} on {rank.fabric}: rounds are taken apart in two_sided on host; "
            "kernels cannot be stopped between two entries"
        )
    work = Work.of(rank, point)
    with TurnTwoSided(rank, point.exchange) as transport:
        received = transport.dispatch(work.batch())
        tokens_R = check_received(work, received)
        check_combined(work, transport.combine(stand_in(transport, work, received, tokens_R)))
        return Watched(
            ep_rank=transport.ep_rank,
            looks=tuple(transport.looks),
            counts_R=received.counts_R,
            starts_R=received.starts_R,
            tokens_R=tuple(tokens_R),
        )


def looks_table(watched: Sequence[Watched]) -> pd.DataFrame:
    """Every rank's looks: `moment, sender, receiver, head, tail`, a row a FIFO and moment."""
    return pd.DataFrame(
        [
            {"moment": moment, "sender": one.ep_rank, "receiver": peer, "head": int(head), "tail": int(tail)}
            for one in watched
            for moment, head_R, tail_R in one.looks
            for peer, (head, tail) in enumerate(zip(head_R, tail_R, strict=True))
        ]
    )


def _as_far_as_they_go(transfers: Sequence[Iterator[bool]]) -> list[Iterator[bool]]:
    """Move each until it must wait or ends; those that must wait."""
    return [transfer for transfer in transfers if any(not moved for moved in transfer)]

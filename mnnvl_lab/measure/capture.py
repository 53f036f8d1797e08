"""Capture the state of workspaces: after each phase of a one-sided round, after each turn of the FIFOs."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from mnnvl_lab.errors import Refused
from mnnvl_lab.measure.point import Point
from mnnvl_lab.transport.host.fifo import HEAD, TAIL, FifoChannels, SendBatch
from mnnvl_lab.transport.host.two_sided import HostTwoSided
from mnnvl_lab.workspace import OneSidedWorkspace
from mnnvl_lab.workspace.mnnvl import split_regions
from mnnvl_lab.workspace.snapshot import NAMELESS, STALE, UNTOUCHED, VALID, Snapshot

if TYPE_CHECKING:
    from mnnvl_lab.exchange import Exchange


def capture_rounds(rank, points: Sequence[Point]) -> list[Snapshot]:
    """Rank function: this rank's snapshots when opened and after dispatch and combine of each round. Collective.

    Args:
        points: a round each, of one exchange; of loads that differ, so that something goes stale.

    Raises:
        Refused: no round, or a mode other than `one_sided`, whose rows have no fixed place.
    """
    from mnnvl_lab.transport import open_transport

    exchange = _exchange_of(points)
    with open_transport(rank, exchange) as transport:
        snapshots = [_look(transport, "opened", max(point.load.runtime_max for point in points))]
        for number, point in enumerate(points, start=1):
            snapshots += _capture_round(rank, transport, point, f"round {number}")
    return snapshots


def _capture_round(rank, transport, point: Point, name: str) -> Iterator[Snapshot]:
    from mnnvl_lab.measure.check import check_combined, check_received
    from mnnvl_lab.measure.workload import Work, fake_experts

    work = Work.of(rank, point)
    batch = work.batch()
    received = transport.dispatch(batch)
    yield _look(transport, f"{name}, after dispatch", batch.runtime_max_tokens)
    partials = fake_experts(transport, work, received, check_received(work, received))
    combined = transport.combine(partials, received.handle)
    yield _look(transport, f"{name}, after combine", batch.runtime_max_tokens)
    check_combined(work, combined)


def _look(transport, moment: str, runtime_max_tokens: int) -> Snapshot:
    """Between two barriers: no peer still writes this row, none already writes the next round into it."""
    transport.group.barrier()
    row = transport.workspace_row()
    transport.group.barrier()
    return snapshot(
        row,
        exchange=transport.exchange,
        plan=transport.workspace,
        runtime_max_tokens=runtime_max_tokens,
        ep_rank=transport.ep_rank,
        moment=moment,
    )


def snapshot(
    row: np.ndarray, *, exchange: Exchange, plan: OneSidedWorkspace, runtime_max_tokens: int, ep_rank: int, moment: str
) -> Snapshot:
    """Read a rank's row.

    Args:
        row: uint8, its bytes (`Transport.workspace_row`).
        exchange: what it is used for.
        plan: what it is laid out for; larger than the exchange's need where a workspace was kept.
        runtime_max_tokens: M of the round that is looked at.
    """
    need = OneSidedWorkspace.of(exchange)
    rows_bytes = [part.row_bytes for part in exchange.payload_parts] + [4 * exchange.top_k] * 2
    shift = plan.aux_bytes - need.aux_bytes
    dispatch = need.payload_offsets(rows_bytes, runtime_max_tokens=runtime_max_tokens)[0] + shift
    combine = need.combine_offset(rows_bytes, runtime_max_tokens=runtime_max_tokens) + shift
    regions = split_regions(row, plan.regions[:8])
    shape = exchange.ep_size, runtime_max_tokens
    valid_RM = np.arange(runtime_max_tokens) < regions["recv_counters"][:, None]
    sent = slice(int(regions["local_token_counter"][0]) * exchange.top_k)
    dispatched = _slots(row, dispatch, rows_bytes[0], shape)
    return Snapshot(
        moment=moment,
        ep_rank=ep_rank,
        epoch=int(regions["flag_val"][0]),
        sent_R=regions["send_counters"].copy(),
        received_R=regions["recv_counters"].copy(),
        dispatch_flags_R=regions["dispatch_completion_flags"].copy(),
        combine_flags_R=regions["combine_completion_flags"].copy(),
        dispatch_RM=_states(dispatched, valid_RM),
        combine_RM=_states(_slots(row, combine, exchange.combine_bytes_per_token, shape), valid_RM),
        tokens_RM=_names(dispatched, exchange.payload_parts[0].dtype),
        targets_TK=regions["topk_target_ranks"][sent].reshape(-1, exchange.top_k).copy(),
        slots_TK=regions["topk_send_indices"][sent].reshape(-1, exchange.top_k).copy(),
    )


def _slots(row: np.ndarray, begin: int, row_bytes: int, shape: tuple[int, int]) -> np.ndarray:
    """uint8 `[R, M, row_bytes]`, a view."""
    return row[begin : begin + shape[0] * shape[1] * row_bytes].reshape(*shape, row_bytes)


def _states(slots: np.ndarray, valid_RM: np.ndarray) -> np.ndarray:
    """A row that was never written is all zero, as the workspace was when it was opened."""
    return np.where(slots.any(axis=2), np.where(valid_RM, VALID, STALE), UNTOUCHED)


def _names(slots: np.ndarray, dtype: str) -> np.ndarray:
    import torch

    from mnnvl_lab.measure.check import named_tokens

    rows = torch.from_numpy(slots.reshape(-1, slots.shape[2])).view(getattr(torch, dtype))
    return np.where(slots.any(axis=2), named_tokens(rows).reshape(slots.shape[:2]), NAMELESS)


def _exchange_of(points: Sequence[Point]) -> Exchange:
    exchanges = list(dict.fromkeys(point.exchange for point in points))
    if len(exchanges) != 1 or exchanges[0].mode != "one_sided":
        modes = ", ".join(exchange.mode for exchange in exchanges) or "none"
        raise Refused(
            f"rounds of exchanges {modes}: all must be of the same one_sided exchange; two-sided rows only pass"
        )
    return exchanges[0]


SENT, TAKEN = "sent", "taken"


@dataclass(frozen=True, kw_only=True)
class Blocks:
    """Where the rows that one rank received in a round lie.

    Attributes:
        ep_rank: whose they are.
        counts_R: rows that each source sent.
        starts_R: where each source's rows begin among those received.
        tokens_R: for each source, the tokens whose rows lie there, by their own headers.
    """

    ep_rank: int
    counts_R: tuple[int, ...]
    starts_R: tuple[int, ...]
    tokens_R: tuple[np.ndarray, ...]


@dataclass(frozen=True, kw_only=True)
class Stepped(Blocks):
    """The same of a round in slow motion.

    Attributes:
        looks: moment, heads `[R]` and tails `[R]` of the FIFOs that this rank fills.
    """

    looks: tuple[tuple[str, np.ndarray, np.ndarray], ...]


@dataclass(frozen=True, kw_only=True)
class SteppedFifoChannels(FifoChannels):
    """Channels on which senders and receivers take turns.

    Attributes:
        busy: whether any rank is, given whether this one is. Collective.
        look: called after each turn, with the number of the turn and what was done in it. Collective.
    """

    busy: Callable[[bool], bool]
    look: Callable[[int, str], None]

    def move(self, send_batches: Sequence[SendBatch], limit_s: float) -> None:
        ways = [(peer, channel) for peer in self.peers for channel in range(self.channels)]
        sends = [self._sending(send_batches, *way) for way in ways]
        receives = [self._receiving(send_batches, *way) for way in ways]
        turn = 0
        while self.busy(bool(sends or receives)):
            turn += 1
            sends = _as_far_as_they_go(sends)
            self.look(turn, SENT)
            receives = _as_far_as_they_go(receives)
            self.look(turn, TAKEN)


class SteppedTwoSided(HostTwoSided):
    """The host transport, rows moving in turns; prepare is as it is."""

    def __init__(self, rank, exchange):
        self.looks: list[tuple[str, np.ndarray, np.ndarray]] = []
        super().__init__(rank, exchange)

    def _open_channels(self) -> tuple[FifoChannels, FifoChannels]:
        channels, prepare = super()._open_channels()
        return SteppedFifoChannels(**vars(channels), busy=self._any, look=self._look), prepare

    def _any(self, mine: bool) -> bool:
        return any(self.group.allgather(mine))

    def _look(self, turn: int, done: str) -> None:
        """Between two barriers: nobody moves a head or a tail meanwhile."""
        self.group.barrier()
        words = self.read_flags()["connections"].astype(np.int64).sum(axis=1)  # over channels
        self.looks.append((f"{self.rank.phase}, turn {turn}: {done}", words[:, HEAD], words[:, TAIL]))
        self.group.barrier()


def step_rounds(rank, point: Point) -> Stepped:
    """Rank function: a checked round in slow motion. Collective.

    Raises:
        Refused: another mode or fabric: the kernels cannot be stopped between two entries.
        WrongResult: the round was wrong.
    """
    from mnnvl_lab.measure.workload import Work

    if (point.exchange.mode, rank.fabric) != ("two_sided", "host"):
        raise Refused(
            f"{point.exchange.mode} on {rank.fabric}: rounds are taken apart in two_sided on host; "
            "kernels cannot be stopped between two entries"
        )
    work = Work.of(rank, point)
    with SteppedTwoSided(rank, point.exchange) as transport:
        blocks = _checked_blocks(transport, work)
        return Stepped(**vars(blocks), looks=tuple(transport.looks))


def received_blocks(rank, point: Point) -> Blocks:
    """Rank function, on every fabric: where the rows of a checked round lie. Collective.

    Raises:
        WrongResult: the round was wrong.
    """
    from mnnvl_lab.measure.workload import Work
    from mnnvl_lab.transport import open_transport

    with open_transport(rank, point.exchange) as transport:
        return _checked_blocks(transport, Work.of(rank, point))


def _checked_blocks(transport, work) -> Blocks:
    from mnnvl_lab.measure.check import check_combined, check_received
    from mnnvl_lab.measure.workload import fake_experts

    received = transport.dispatch(work.batch())
    tokens_R = check_received(work, received)
    partials = fake_experts(transport, work, received, tokens_R)
    check_combined(work, transport.combine(partials, received.handle))
    return Blocks(
        ep_rank=transport.ep_rank,
        counts_R=received.counts_R,
        starts_R=received.starts_R,
        tokens_R=tuple(tokens_R),
    )


def snapshots_table(watched: Sequence[Stepped]) -> pd.DataFrame:
    """Every rank's looks: `moment, sender, receiver, head, tail`, a row per FIFO and moment."""
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

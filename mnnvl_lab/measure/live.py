"""A one-sided workspace caught in the act: which rows hold what, counters and flags, after each phase of a round."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import TYPE_CHECKING

import numpy as np

from mnnvl_lab.errors import Refused
from mnnvl_lab.measure.point import Point
from mnnvl_lab.transport.peek import cut
from mnnvl_lab.workspace import OneSidedWorkspace

if TYPE_CHECKING:
    from mnnvl_lab.transport.exchange import Exchange

UNTOUCHED, VALID, STALE = 0, 1, 2
NAMELESS = -1
STATES = MappingProxyType({UNTOUCHED: "never written", VALID: "of this round", STALE: "stale"})


@dataclass(frozen=True, kw_only=True)
class Snapshot:
    """One rank's row of the workspace at one moment.

    Attributes:
        moment: after which phase of which round.
        ep_rank: whose row.
        epoch: `flag_val`; dispatch and combine each move it on by one.
        sent_R: rows sent to each target (`send_counters`).
        received_R: rows that came from each source (`recv_counters`).
        dispatch_flags_R, combine_flags_R: epoch that each rank last signalled.
        dispatch_RM, combine_RM: a state of `STATES` for each slot of each source, of the rows that dispatch brought and
            of those that combine pulls. Rows beyond the counter are stale: the kernels never clear them.
        tokens_RM: the source's token whose row lies in each slot of dispatch, by the row's own header; `NAMELESS` in a
            slot that was never written.
        targets_TK, slots_TK: for each of this rank's own tokens, to which rank it went and into which slot there
            (`topk_target_ranks`, `topk_send_indices`); -1 at a choice whose rank an earlier choice has named.
    """

    moment: str
    ep_rank: int
    epoch: int
    sent_R: np.ndarray
    received_R: np.ndarray
    dispatch_flags_R: np.ndarray
    combine_flags_R: np.ndarray
    dispatch_RM: np.ndarray
    combine_RM: np.ndarray
    tokens_RM: np.ndarray
    targets_TK: np.ndarray
    slots_TK: np.ndarray


def watch_rounds(rank, points: Sequence[Point]) -> list[Snapshot]:
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
            snapshots += _watch_round(rank, transport, point, f"round {number}")
    return snapshots


def _watch_round(rank, transport, point: Point, name: str) -> Iterator[Snapshot]:
    from mnnvl_lab.measure.check import check_combined, check_received
    from mnnvl_lab.measure.work import Work, stand_in

    work = Work.of(rank, point)
    batch = work.batch()
    received = transport.dispatch(batch)
    yield _look(transport, f"{name}, after dispatch", batch.runtime_max_tokens)
    combined = transport.combine(stand_in(transport, work, received, check_received(work, received)))
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
    regions = cut(row, plan.regions[:8])
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

"""`two_sided` between processes: prepare, then rows through FIFOs, and back through them for combine.

The protocol is that of `trtllm_alltoall_prepare.cu` and `trtllm_alltoall.cuh`: in prepare each rank tells every peer
how many rows will come and sends the ids and weights of their tokens through FIFOs of their own; the rows then arrive
compact, by source; combine sends the results back the same way. One thread drives all FIFOs of a rank, so one channel
per peer is enough here; `Exchange.sm_limit` gives as many as that many multiprocessors would have.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch

from mnnvl_lab.errors import RankTimeout
from mnnvl_lab.exchange import Batch, Exchange, Handle, Received
from mnnvl_lab.ranks.rank import Rank
from mnnvl_lab.ranks.sync import Fence
from mnnvl_lab.routing.padding import target_ranks
from mnnvl_lab.transport.base import ReceiveBuffer, Transport, as_bytes, typed
from mnnvl_lab.transport.host.combine_sum import CombineSum, RowTable
from mnnvl_lab.transport.host.epochs import WAIT_LIMIT_S
from mnnvl_lab.transport.host.fifo import FifoChannels, SendBatch, blocks, starts
from mnnvl_lab.transport.host.send_plan import SendPlan
from mnnvl_lab.transport.host.shared_memory import SharedMemory
from mnnvl_lab.transport.validation import require_ep_workspace, require_host
from mnnvl_lab.workspace import TwoSidedWorkspace
from mnnvl_lab.workspace.two_sided import PEERS_PER_BLOCK

KERNEL_MESSAGE = (
    "Check failed: allWorkspaces.size(0) == epSize ({spans} vs. {ep_size}) : allWorkspaces must have epSize elements"
)


@dataclass(frozen=True, kw_only=True)
class TwoSidedHandle(Handle):
    """What prepare found out (`MoEAlltoallInfo`); dispatch and combine need no more.

    Attributes:
        send_plan: which of the batch's rows go where.
        counts_R: rows that each source will send here.
        experts, weights: of the tokens that will come, `[rows, K]`, compact by source; ids of experts that this rank
            does not own are E, as prepare's kernel leaves them.
    """

    send_plan: SendPlan
    counts_R: tuple[int, ...]
    experts: torch.Tensor
    weights: torch.Tensor


class HostTwoSided(Transport):
    """FIFOs between processes. Received rows are compact, by source, and stay until the next dispatch.

    Prepare's part of the workspace lies behind the FIFOs in one shared segment.
    """

    mode = "two_sided"
    fabric = "host"
    phases = ("prepare", "dispatch", "combine")

    def __init__(self, rank: Rank, exchange: Exchange):
        require_host(rank, self.mode)
        super().__init__(rank, exchange)
        self.wait_limit_s = WAIT_LIMIT_S
        one_channel = 2 * -(-self.ep_size // PEERS_PER_BLOCK)
        self.workspace = TwoSidedWorkspace(ep_size=self.ep_size, multiprocessors=exchange.sm_limit or one_channel)
        size_bytes = self.workspace.workspace_bytes + self.workspace.prepare_bytes
        self._memory = SharedMemory(self.group, size_bytes=size_bytes, directory=rank.segment_dir)
        self._rows = [self._memory.row(peer) for peer in range(self.ep_size)]
        self._channels, self._prepare_channels = self._open_channels()
        x = exchange
        self._sum = CombineSum(top_k=x.top_k, hidden=x.hidden, dtype=self.combine_dtype, sum_dtype=self.combine_dtype)
        self._receive_buffers = [ReceiveBuffer() for _ in x.payload_parts]
        self._combine_buffer = ReceiveBuffer()
        self._initialize()

    def enqueue_prepare(self, batch: Batch) -> TwoSidedHandle:
        """Tell every peer how many rows will come, then send it the ids and weights of their tokens."""
        x, self.rank.phase = self.exchange, "prepare"
        shape = {"experts": x.experts, "ep_size": self.ep_size, "invalid_ids": x.invalid_ids}
        plan = SendPlan.of(batch.experts_TK.numpy(), **shape)
        counts_R = self._prepare_channels.swap_counts(plan.counts_R, self.wait_limit_s)
        rows = sum(counts_R)
        experts, weights = torch.empty(rows, x.top_k, dtype=torch.int32), torch.empty(rows, x.top_k)
        handle = TwoSidedHandle(
            batch=batch, rows=rows, send_plan=plan, counts_R=counts_R, experts=experts, weights=weights
        )
        pairs = (batch.experts_TK, as_bytes(experts)), (batch.weights_TK, as_bytes(weights))
        self._prepare_channels.move([_outward(handle, *pair) for pair in pairs], self.wait_limit_s)
        is_foreign = target_ranks(experts.numpy(), **shape) != self.ep_rank
        experts[torch.from_numpy(is_foreign)] = x.experts
        return handle

    def _dispatch(self, batch: Batch, prepared: TwoSidedHandle) -> Received:
        self.rank.phase = "dispatch"
        require_ep_workspace(self.rank, self.exchange, phase="dispatch", kernel_message=KERNEL_MESSAGE)
        parts = self.exchange.payload_parts
        arrived = [
            buffer.rows(prepared.rows, part.row_bytes)
            for buffer, part in zip(self._receive_buffers, parts, strict=True)
        ]
        send_batches = [_outward(prepared, sent, got) for sent, got in zip(batch.payloads, arrived, strict=True)]
        self._channels.move(send_batches, self.wait_limit_s)
        return Received(
            payloads=tuple(typed(got, part) for got, part in zip(arrived, parts, strict=True)),
            experts=prepared.experts,
            weights=prepared.weights,
            counts_R=prepared.counts_R,
            starts_R=tuple(starts(prepared.counts_R).tolist()),
            handle=prepared,
        )

    def _combine(self, partials: torch.Tensor, handle: TwoSidedHandle) -> torch.Tensor:
        """Rows go back to their sources, then a token's are added up in float32: in the one-sided kernel's order, where
        upstream leaves it to `torch.sum` over a zeroed `[T, K, H]` (`mnnvl_moe_alltoallv_combine`)."""
        self.rank.phase = "combine"
        row_bytes, sent_R = self.exchange.combine_bytes_per_token, handle.send_plan.counts_R
        returned = self._combine_buffer.rows(int(sent_R.sum()), row_bytes)
        index_R = blocks(torch.arange(handle.rows), handle.counts_R)
        send_batch = SendBatch(rows=as_bytes(partials), index_R=index_R, out_R=blocks(returned, sent_R))
        self._channels.move([send_batch], self.wait_limit_s)
        table = RowTable(returned.view(-1), row_bytes=row_bytes, grain_bytes=row_bytes)
        return self._sum(table, handle.send_plan.offsets_TK(starts(sent_R) * row_bytes, row_bytes))

    def workspace_row(self) -> np.ndarray:
        """A copy of this rank's own row, uint8 `[workspace_bytes]`; without prepare's part."""
        return self._rows[self.ep_rank][: self.workspace.workspace_bytes].numpy().copy()

    def read_flags(self) -> dict[str, np.ndarray]:
        """uint64 `connections [peer, channel, word]`, `prepare_connections [peer, word]`; words: head, tail, count."""
        both = self._channels, self._prepare_channels
        own = [channels.connections_R[self.ep_rank][..., :3].copy() for channels in both]
        return {"connections": own[0], "prepare_connections": own[1][:, 0]}

    def close(self) -> None:
        self._rows, self._channels, self._prepare_channels, self._receive_buffers = [], None, None, []
        self._memory.close()

    def _open_channels(self) -> tuple[FifoChannels, FifoChannels]:
        plan, waiting = self.workspace, {"on_timeout": self._on_timeout, "check": self._require_peers}
        shared = {"ep_rank": self.ep_rank, "fence": Fence()} | waiting
        rows = [row[: plan.workspace_bytes] for row in self._rows]
        prepare_rows = [row[plan.workspace_bytes :] for row in self._rows]
        return (
            FifoChannels.over(rows, plan.regions, dense=False, **shared),
            FifoChannels.over(prepare_rows, plan.prepare_regions, dense=True, **shared),
        )

    def _initialize(self) -> None:
        """Connections as fresh memory has them, then a barrier, for peers write there."""
        self._channels.clear()
        self._prepare_channels.clear()
        self.group.barrier()

    def _require_peers(self) -> None:
        self.rank.require_alive(self.group.ranks)

    def _on_timeout(self, late: list[int]) -> RankTimeout:
        ranks = [self.group.ranks[peer] for peer in late]
        cause = f"rank {self.rank.index} waited {self.wait_limit_s:g} s at its FIFOs with ranks {ranks}, none moved on"
        return RankTimeout(rank=ranks[0], phase=self.rank.phase, cause=cause)


def _outward(handle: TwoSidedHandle, sent: torch.Tensor, got: torch.Tensor) -> SendBatch:
    """Rows from here to their targets; those of others arrive in `got`, `[rows, row_bytes]`, packed by source."""
    index_R = [torch.from_numpy(tokens) for tokens in handle.send_plan.tokens_R]
    return SendBatch(rows=as_bytes(sent), index_R=index_R, out_R=blocks(got, handle.counts_R))

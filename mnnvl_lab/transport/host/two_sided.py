"""`two_sided` between processes: prepare, then rows through FIFOs, and back through them for combine.

The protocol is that of `trtllm_alltoall_prepare.cu` and `trtllm_alltoall.cuh`: in prepare each rank tells every peer
how many rows will come and sends the ids and weights of their tokens through FIFOs of their own; the rows then arrive
compact, by source; combine sends the results back the same way. One thread drives all FIFOs of a rank, so one channel
a peer is enough here; `Exchange.sm_limit` gives as many as that many multiprocessors would have.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch

from mnnvl_lab.errors import RankTimeout
from mnnvl_lab.exchange import Batch, Exchange, Received
from mnnvl_lab.layout import expert_range
from mnnvl_lab.ranks.rank import Rank
from mnnvl_lab.transport.base import ReceiveBuffer, Transport, Validated, as_bytes, bare, typed
from mnnvl_lab.transport.host.combine_sum import CombineSum, RowTable
from mnnvl_lab.transport.host.fifo import FifoChannels, SendBatch, blocks, starts
from mnnvl_lab.transport.host.send_plan import Routes
from mnnvl_lab.transport.host.shared_memory import SharedMemory, put_back, take
from mnnvl_lab.transport.host.sync import WAIT_LIMIT_S, Fence
from mnnvl_lab.transport.validation import require_ep_workspace
from mnnvl_lab.workspace import TwoSidedWorkspace
from mnnvl_lab.workspace.two_sided import PEERS_PER_BLOCK

KERNEL_MESSAGE = (
    "Check failed: allWorkspaces.size(0) == epSize ({spans} vs. {ep_size}) : allWorkspaces must have epSize elements"
)


@dataclass(frozen=True, kw_only=True)
class Prepared:
    """What prepare found out (`MoEAlltoallInfo`).

    Attributes:
        batch: what is sent.
        routes: which of its rows go where.
        counts_R: rows that each source will send here.
        experts, weights: of the tokens that will come, `[rows, K]`, compact by source; ids of experts that this rank
            does not own are E, as prepare's kernel leaves them.
    """

    batch: Batch
    routes: Routes
    counts_R: tuple[int, ...]
    experts: torch.Tensor
    weights: torch.Tensor


class HostTwoSided(Transport):
    """FIFOs between processes. Received rows are compact, by source, and stay until the next dispatch.

    Attributes:
        workspace: the plan of the memory in use; prepare's part lies behind the FIFOs in one segment.
        wait_limit_s: seconds without progress after which a rank that waits for another gives up.
    """

    mode = "two_sided"
    fabric = "host"
    phases = ("prepare", "dispatch", "combine")

    def __init__(self, rank: Rank, exchange: Exchange):
        super().__init__(rank, exchange)
        self.wait_limit_s = WAIT_LIMIT_S
        one_channel = 2 * -(-self.ep_size // PEERS_PER_BLOCK)
        plan = TwoSidedWorkspace(ep_size=self.ep_size, multiprocessors=exchange.sm_limit or one_channel)
        self._held = take(rank, self.group, self.mode, plan, self._allocate)
        self.workspace = self._held.plan
        self._rows = [self._held.memory.row(peer) for peer in range(self.ep_size)]
        self._channels, self._prepare_lanes = self._open_channels()
        x = exchange
        self._sum = CombineSum(top_k=x.top_k, hidden=x.hidden, dtype=self.combine_dtype, sum_dtype=self.combine_dtype)
        self._landings = [ReceiveBuffer() for _ in range(len(x.payload_parts) + 1)]
        self._prepared: Prepared | None = None
        self._initialize()

    def enqueue_prepare(self, batch: Batch | Validated) -> None:
        batch, x = bare(batch), self.exchange
        self.rank.phase = "prepare"
        routes = Routes.of(batch.experts_TK.numpy(), experts=x.experts, ep_size=self.ep_size)
        counts_R = self._prepare_lanes.swap_counts(routes.counts_R, self.wait_limit_s)
        experts = torch.empty(sum(counts_R), x.top_k, dtype=torch.int32)
        weights = torch.empty(sum(counts_R), x.top_k)
        self._prepared = Prepared(batch=batch, routes=routes, counts_R=counts_R, experts=experts, weights=weights)
        send_batches = [
            self._outward(batch.experts_TK, as_bytes(experts)),
            self._outward(batch.weights_TK, as_bytes(weights)),
        ]
        self._prepare_lanes.move(send_batches, self.wait_limit_s)
        own = expert_range(experts=x.experts, ep_size=self.ep_size, ep_rank=self.ep_rank)
        experts[(experts < own.start) | (experts >= own.stop)] = x.experts

    def workspace_row(self) -> np.ndarray:
        """A copy of this rank's own row, uint8 `[workspace_bytes]`; without prepare's part."""
        return self._rows[self.ep_rank][: self.workspace.workspace_bytes].numpy().copy()

    def read_flags(self) -> dict[str, np.ndarray]:
        """uint64 `connections [peer, channel, word]`, `prepare_connections [peer, word]`; words: head, tail, count."""
        own = [lanes.connections_R[self.ep_rank][..., :3].copy() for lanes in (self._channels, self._prepare_lanes)]
        return {"connections": own[0], "prepare_connections": own[1][:, 0]}

    def close(self) -> None:
        if self._held:
            self._rows, self._channels, self._prepare_lanes, self._landings = [], None, None, []
            put_back(self.rank, self.mode, self._held)
            self._held = None

    def _allocate(self, plan: TwoSidedWorkspace) -> SharedMemory:
        size_bytes = plan.workspace_bytes + plan.prepare_bytes
        return SharedMemory(self.group, size_bytes=size_bytes, directory=self.rank.segment_dir)

    def _open_channels(self) -> tuple[FifoChannels, FifoChannels]:
        plan, shared = self.workspace, {"ep_rank": self.ep_rank, "fence": Fence(), "on_timeout": self._on_timeout}
        rows = [row[: plan.workspace_bytes] for row in self._rows]
        prepare_rows = [row[plan.workspace_bytes :] for row in self._rows]
        return (
            FifoChannels.over(rows, plan.regions, dense=False, **shared),
            FifoChannels.over(prepare_rows, plan.prepare_regions, dense=True, **shared),
        )

    def _initialize(self) -> None:
        """Connections as fresh memory has them, then a barrier, for peers write there."""
        self._channels.clear()
        self._prepare_lanes.clear()
        self.group.barrier()

    def _on_timeout(self, late: list[int]) -> RankTimeout:
        ranks = [self.group.ranks[peer] for peer in late]
        cause = f"rank {self.rank.index} waited {self.wait_limit_s:g} s at its FIFOs with ranks {ranks}, none moved on"
        return RankTimeout(rank=ranks[0], phase=self.rank.phase, cause=cause)

    def _dispatch(self, batch: Batch) -> Received:
        self.rank.phase = "dispatch"
        require_ep_workspace(self.rank, self.exchange, phase="dispatch", kernel_message=KERNEL_MESSAGE)
        now, parts = self._prepared, self.exchange.payload_parts
        rows = sum(now.counts_R)
        arrived = [
            receive_buffer.rows(rows, part.row_bytes)
            for receive_buffer, part in zip(self._landings, parts, strict=False)
        ]
        send_batches = [self._outward(sent, got) for sent, got in zip(batch.payloads, arrived, strict=True)]
        self._channels.move(send_batches, self.wait_limit_s)
        return Received(
            payloads=tuple(typed(got, part) for got, part in zip(arrived, parts, strict=True)),
            experts=now.experts,
            weights=now.weights,
            counts_R=now.counts_R,
            starts_R=tuple(starts(now.counts_R).tolist()),
        )

    def _outward(self, sent: torch.Tensor, got: torch.Tensor) -> SendBatch:
        """Rows from here to their targets; those of others, `[rows, row_bytes]`, are packed by source."""
        index_R = [torch.from_numpy(tokens) for tokens in self._prepared.routes.tokens_R]
        return SendBatch(rows=as_bytes(sent), index_R=index_R, out_R=blocks(got, self._prepared.counts_R))

    def _combine(self, partials: torch.Tensor) -> torch.Tensor:
        """Rows go home, then a token's are added up in float32: in the one-sided kernel's order, where upstream leaves
        it to `torch.sum` over a zeroed `[T, K, H]` (`mnnvl_moe_alltoallv_combine`)."""
        self.rank.phase = "combine"
        now, row_bytes = self._prepared, self.exchange.combine_bytes_per_token
        sent_R = now.routes.counts_R
        home = self._landings[-1].rows(int(sent_R.sum()), row_bytes)
        index_R = blocks(torch.arange(sum(now.counts_R)), now.counts_R)
        send_batch = SendBatch(rows=as_bytes(partials), index_R=index_R, out_R=blocks(home, sent_R))
        self._channels.move([send_batch], self.wait_limit_s)
        table = RowTable(home.view(-1), row_bytes=row_bytes, grain_bytes=row_bytes)
        return self._sum(table, now.routes.offsets_TK(starts(sent_R) * row_bytes, row_bytes))

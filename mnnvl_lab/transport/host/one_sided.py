"""`one_sided` between processes: FlashInfer's workspace, counters, epochs and flags, over shared memory.

The protocol is that of `moeAlltoAllKernels.cu`, step by step: dispatch puts every row straight into the workspace of
each rank that owns one of its token's experts, then raises a flag there; combine raises a flag and pulls. A flag holds
the epoch, which dispatch and combine each move on by one, and is waited for with equality. Only the order of slots
differs: it ascends with the token here, and is left to chance by the kernels' atomics.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import gcd

import numpy as np
import torch

from mnnvl_lab.exchange import Batch, Exchange, Received
from mnnvl_lab.ranks.rank import Rank
from mnnvl_lab.transport.base import Transport, as_bytes, as_e4m3
from mnnvl_lab.transport.flashinfer.base import split_regions
from mnnvl_lab.transport.host.combine_sum import CombineSum, RowTable
from mnnvl_lab.transport.host.send_plan import Routes
from mnnvl_lab.transport.host.shared_memory import SharedMemory, put_back, take
from mnnvl_lab.transport.host.sync import Epochs
from mnnvl_lab.transport.validation import require_ep_workspace
from mnnvl_lab.workspace import OneSidedWorkspace

KERNEL_MESSAGE = (
    "Check failed: workspace.size(0) == epSize ({spans} vs. {ep_size}) : workspace first dim must equal ep_size"
)


@dataclass(frozen=True, kw_only=True)
class Round:
    """What combine has to know of the dispatch before it."""

    batch: Batch
    routes: Routes
    active: tuple[int, ...]
    combine_offset: int


class HostOneSided(Transport):
    """Puts and pulls between processes. Received rows are views of the workspace, `M` rows a source.

    Attributes:
        workspace: the plan of the memory in use; larger than the exchange's own need where one was kept.
    """

    mode = "one_sided"
    fabric = "host"
    offsets_follow_size = True

    def __init__(self, rank: Rank, exchange: Exchange):
        super().__init__(rank, exchange)
        require_ep_workspace(rank, exchange, phase="open", kernel_message=KERNEL_MESSAGE)
        self._need = OneSidedWorkspace.of(exchange)
        self._held = take(rank, self.group, self.mode, self._need, self._allocate)
        self.workspace = self._held.plan
        self._rows = [self._held.memory.row(peer) for peer in range(self.ep_size)]
        self._peers = [split_regions(row.numpy(), self.workspace.regions) for row in self._rows]
        self._own = self._peers[self.ep_rank]
        self._epochs = Epochs(ranks=self.group.ranks, ep_rank=self.ep_rank, aux_R=self._peers)
        self._sum = CombineSum(
            top_k=exchange.top_k, hidden=exchange.hidden, dtype=self._sent_dtype, sum_dtype=self.combine_dtype
        )
        self._initialize()

    @property
    def wait_limit_s(self) -> float:
        """Seconds after which a rank that waits for another gives up."""
        return self._epochs.limit_s

    @wait_limit_s.setter
    def wait_limit_s(self, limit_s: float) -> None:
        self._epochs.limit_s = limit_s

    def workspace_row(self) -> np.ndarray:
        """A copy of this rank's own row, uint8 `[workspace_bytes]`."""
        return self._rows[self.ep_rank].numpy().copy()

    def read_flags(self) -> dict[str, np.ndarray]:
        """`flag_val`, counters and completion flags of this rank as they are now; readable from another thread."""
        names = [region.name for region in self.workspace.regions[:6]]
        return {name: self._own[name].copy() for name in names}

    def partials_buffer(self, received: Received) -> torch.Tensor:
        if not self.exchange.payload_in_workspace:
            return super().partials_buffer(received)
        return self._combine_region(self._round.combine_offset, self.combine_dtype)

    def _misplaced(self, partials: torch.Tensor) -> str | None:
        expected = self._rows[self.ep_rank].data_ptr() + self._round.combine_offset
        if not self.exchange.payload_in_workspace or partials.data_ptr() == expected:
            return None
        return (
            f"partials lie at {partials.data_ptr():#x} but payload_in_workspace wants them at {expected:#x}: "
            "write them into partials_buffer(received)"
        )

    def close(self) -> None:
        if self._held:
            self._rows, self._peers, self._own, self._epochs, self._sum = [], [], {}, None, None
            put_back(self.rank, self.mode, self._held)
            self._held = None

    def _allocate(self, plan: OneSidedWorkspace) -> SharedMemory:
        return SharedMemory(self.group, size_bytes=plan.workspace_bytes, directory=self.rank.segment_dir)

    def _initialize(self) -> None:
        """Counters, flags and tables to zero, then a barrier: a late memset would erase a peer's first epoch."""
        self._rows[self.ep_rank][: self.workspace.aux_bytes].zero_()
        self.group.barrier()

    def _dispatch(self, batch: Batch) -> Received:
        payloads = [as_bytes(tensor) for tensor in (*batch.payloads, batch.experts_TK, batch.weights_TK)]
        offsets, combine_offset = self._offsets(batch.runtime_max_tokens, [tensor.shape[1] for tensor in payloads])
        active = tuple(range(self.ep_size)) if batch.active_ranks is None else batch.active_ranks
        routes = Routes.of(
            batch.experts_TK.numpy(), experts=self.exchange.experts, ep_size=self.ep_size, active_ranks=active
        )
        self._round = Round(batch=batch, routes=routes, active=active, combine_offset=combine_offset)
        self._begin("dispatch")
        self._record(routes)
        for target in self._from_next(active):
            self._put(target, routes.tokens_R[target], payloads, offsets, batch.runtime_max_tokens)
        self._announce_rows(batch, routes)
        self._epochs.complete("dispatch", active)
        return self._received(batch, offsets)

    def _combine(self, partials: torch.Tensor) -> torch.Tensor:
        self._begin("combine")
        stride_bytes = self._lay_out(partials)
        self._epochs.complete("combine", self._round.active)
        return self._pull(stride_bytes)

    def _offsets(self, runtime_max_tokens: int, row_bytes: list[int]) -> tuple[list[int], int]:
        """First byte of each payload's region and of combine's; a larger workspace begins its rows later."""
        shift = self.workspace.aux_bytes - self._need.aux_bytes
        offsets = self._need.payload_offsets(row_bytes, runtime_max_tokens=runtime_max_tokens)
        combine_offset = self._need.combine_offset(row_bytes, runtime_max_tokens=runtime_max_tokens)
        return [offset + shift for offset in offsets], combine_offset + shift

    def _begin(self, phase: str) -> None:
        self.rank.phase = f"{phase} epoch {self._epochs.advance()}"

    def _from_next(self, active: tuple[int, ...]) -> list[int]:
        """Targets beginning behind this rank, so that not all ranks write to the same one at a time."""
        return sorted(active, key=lambda target: (target - self.ep_rank - 1) % self.ep_size)

    def _record(self, routes: Routes) -> None:
        """The tables that combine reads, at the stride of the router's own top_k, and the counters."""
        self._own["send_counters"][:] = routes.counts_R
        self._own["local_token_counter"][0] = len(routes.targets_TK)
        for name, table_TK in (("topk_target_ranks", routes.targets_TK), ("topk_send_indices", routes.slots_TK)):
            self._own[name][: table_TK.size] = table_TK.ravel()

    def _put(
        self, target: int, tokens: np.ndarray, payloads: list[torch.Tensor], offsets: list[int], max_tokens: int
    ) -> None:
        """Rows into the target's block of this source, in each payload's region."""
        index = torch.from_numpy(tokens)
        for rows, offset in zip(payloads, offsets, strict=True):
            row_bytes = rows.shape[1]
            begin = offset + self.ep_rank * max_tokens * row_bytes
            block = self._rows[target][begin : begin + len(tokens) * row_bytes].view(len(tokens), row_bytes)
            torch.index_select(rows, 0, index, out=block)

    def _announce_rows(self, batch: Batch, routes: Routes) -> None:
        """How many rows came from here, and the load statistics of the experts, at every peer."""
        counts_R, reserved = routes.counts_R, self.exchange.eplb_stats_experts
        for target in self._round.active:
            self._peers[target]["recv_counters"][self.ep_rank] = counts_R[target]
            if batch.eplb_stats_E is not None:
                begin = self.ep_rank * reserved
                stats = self._peers[target]["eplb_gathered_stats"]
                stats[begin : begin + reserved] = batch.eplb_stats_E.numpy()

    def _received(self, batch: Batch, offsets: list[int]) -> Received:
        parts = [(getattr(torch, part.dtype), part.width) for part in self.exchange.payload_parts]
        parts += [(torch.int32, self.exchange.top_k), (torch.float32, self.exchange.top_k)]
        *payloads, experts, weights = (
            self._region(offset, dtype, width) for offset, (dtype, width) in zip(offsets, parts, strict=True)
        )
        counts = self._own["recv_counters"]
        M = batch.runtime_max_tokens
        return Received(
            payloads=tuple(payloads),
            experts=experts,
            weights=weights,
            counts_R=tuple(int(n) if source in self._round.active else 0 for source, n in enumerate(counts)),
            starts_R=tuple(range(0, self.ep_size * M, M)),
            eplb_stats_RE=self._eplb_stats(batch),
        )

    def _region(self, offset: int, dtype: torch.dtype, width: int) -> torch.Tensor:
        """`[R * M, width]` of this rank's own row."""
        rows = self.ep_size * self._round.batch.runtime_max_tokens
        size_bytes = rows * width * dtype.itemsize
        return self._rows[self.ep_rank][offset : offset + size_bytes].view(dtype).view(rows, width)

    def _eplb_stats(self, batch: Batch) -> torch.Tensor | None:
        if batch.eplb_stats_E is None:
            return None
        reserved = self.exchange.eplb_stats_experts
        stats = self._own["eplb_gathered_stats"][: self.ep_size * reserved]
        return torch.from_numpy(stats.copy()).view(self.ep_size, reserved)

    @property
    def _sent_dtype(self) -> torch.dtype:
        """Of the rows that combine pulls."""
        return torch.float8_e4m3fn if self.exchange.low_precision_combine else self.combine_dtype

    def _combine_region(self, offset: int, dtype: torch.dtype) -> torch.Tensor:
        return self._region(offset, dtype, self.exchange.hidden)

    def _lay_out(self, partials: torch.Tensor) -> int:
        """Bring the partial sums into the combine region, where they are not there already.

        fp8 rows lie close in general, but each at the place of its bf16 row if the experts wrote that one there
        (moeA2APrepareCombineKernel). Returns the bytes from one row to the next.
        """
        x, begin = self.exchange, self._round.combine_offset
        if x.payload_in_workspace and not x.low_precision_combine:
            return x.combine_bytes_per_token
        rows = self._combine_region(begin, self.combine_dtype if x.payload_in_workspace else self._sent_dtype)
        if x.payload_in_workspace:
            rows = rows.view(torch.float8_e4m3fn)[:, : x.hidden]
        for block in self._blocks():
            rows[block] = as_e4m3(partials[block]) if x.low_precision_combine else partials[block]
        return rows.stride(0) * rows.element_size()

    def _blocks(self) -> list[slice]:
        """The rows received from each source; what lies between them is stale and stays behind."""
        M, counts = self._round.batch.runtime_max_tokens, self._own["recv_counters"]
        return [slice(source * M, source * M + int(counts[source])) for source in self._round.active]

    def _pull(self, stride_bytes: int) -> torch.Tensor:
        """Add up, in float32 and in the kernel's order, the rows that peers made of this rank's tokens."""
        memory, M = self._held.memory, self._round.batch.runtime_max_tokens
        begin = self._round.combine_offset + self.ep_rank * M * stride_bytes
        first_R = np.arange(self.ep_size) * memory.stride_bytes + begin
        table = RowTable(
            memory.flat,
            row_bytes=self.exchange.hidden * self._sent_dtype.itemsize,
            grain_bytes=gcd(memory.stride_bytes, begin, stride_bytes),
        )
        return self._sum(table, self._round.routes.offsets_TK(first_R, stride_bytes))

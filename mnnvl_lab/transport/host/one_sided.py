"""`one_sided` between processes: FlashInfer's workspace, counters, epochs and flags, over shared memory.

A token's row takes four steps, in `_dispatch` and `_combine` below: *put* writes it into the workspace of each rank
that owns one of its experts; *announce* writes how many rows came from here and raises a flag there; each rank *waits*
until all flags are up; after the experts and another flag, *pull* reads the partial sums from those ranks' workspaces
and adds them up. This is the protocol of `moeAlltoAllKernels.cu`. A flag holds the epoch, which dispatch and combine
each move on by one, and is waited for with equality. Only the order of slots differs: it ascends with the token here,
and is left to chance by the kernels' atomics.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import gcd
from typing import ClassVar

import numpy as np
import torch

from mnnvl_lab.exchange import Batch, Exchange, Handle, Received
from mnnvl_lab.ranks.rank import Rank
from mnnvl_lab.transport.base import Transport, as_bytes, as_e4m3
from mnnvl_lab.transport.host.combine_sum import CombineSum, RowTable
from mnnvl_lab.transport.host.epochs import WAIT_LIMIT_S, Epochs
from mnnvl_lab.transport.host.send_plan import SendPlan
from mnnvl_lab.transport.host.shared_memory import SharedMemory
from mnnvl_lab.transport.validation import require_ep_workspace, require_host
from mnnvl_lab.workspace import OneSidedWorkspace
from mnnvl_lab.workspace.mnnvl import split_regions

KERNEL_MESSAGE = (
    "Check failed: workspace.size(0) == epSize ({spans} vs. {ep_size}) : workspace first dim must equal ep_size"
)


@dataclass(frozen=True, kw_only=True)
class OneSidedHandle(Handle):
    """A round of this transport.

    Attributes:
        send_plan: which of the batch's rows go where.
        active: ep_ranks that take part.
        payload_offsets: first byte of each payload's region in a row of the workspace; ids and weights come last.
        combine_offset: first byte of combine's region.
    """

    send_plan: SendPlan
    active: tuple[int, ...]
    payload_offsets: tuple[int, ...]
    combine_offset: int


class HostOneSided(Transport):
    """Puts and pulls between processes. Received rows are views of the workspace, `M` rows per source."""

    mode = "one_sided"
    fabric = "host"
    offsets_follow_size = True
    epochs: ClassVar[type[Epochs]] = Epochs

    def __init__(self, rank: Rank, exchange: Exchange):
        require_host(rank, self.mode)
        super().__init__(rank, exchange)
        require_ep_workspace(rank, exchange, phase="open", kernel_message=KERNEL_MESSAGE)
        self.workspace, self.wait_limit_s = OneSidedWorkspace.of(exchange), WAIT_LIMIT_S
        self._memory = SharedMemory(self.group, size_bytes=self.workspace.workspace_bytes, directory=rank.segment_dir)
        self._rows = [self._memory.row(peer) for peer in range(self.ep_size)]
        self._peers = [split_regions(row.numpy(), self.workspace.regions) for row in self._rows]
        self._own = self._peers[self.ep_rank]
        self._epochs = self.epochs(
            ranks=self.group.ranks, ep_rank=self.ep_rank, aux_R=self._peers, require_alive=self.rank.require_alive
        )
        self._sum = CombineSum(
            top_k=exchange.top_k, hidden=exchange.hidden, dtype=self._pulled_dtype, sum_dtype=self.combine_dtype
        )
        self._initialize()

    def _initialize(self) -> None:
        """Counters, flags and tables to zero, then a barrier: a late memset would erase a peer's first epoch."""
        self._rows[self.ep_rank][: self.workspace.aux_bytes].zero_()
        self.group.barrier()

    def _dispatch(self, batch: Batch, prepared: None) -> Received:
        handle = self._plan(batch)
        self._begin("dispatch")
        self._record(handle)
        for target in self._from_next(handle.active):
            self._put(target, handle)
        self._announce_counts(handle)
        self._epochs.signal("dispatch", handle.active)
        self._epochs.wait("dispatch", handle.active, self.wait_limit_s)
        return self._received(handle)

    def _combine(self, partials: torch.Tensor, handle: OneSidedHandle) -> torch.Tensor:
        self._begin("combine")
        stride_bytes = self._lay_out(partials, handle)
        self._epochs.signal("combine", handle.active)
        self._epochs.wait("combine", handle.active, self.wait_limit_s)
        return self._pull(handle, stride_bytes)

    # Dispatch, step by step.

    def _plan(self, batch: Batch) -> OneSidedHandle:
        """Which row goes where, and where each region begins at this round's M."""
        x, M = self.exchange, batch.runtime_max_tokens
        active = tuple(range(self.ep_size)) if batch.active_ranks is None else batch.active_ranks
        row_bytes = [rows.shape[1] for rows in _payloads(batch)]
        return OneSidedHandle(
            batch=batch,
            rows=self.ep_size * M,
            send_plan=SendPlan.of(
                batch.experts_TK.numpy(),
                experts=x.experts,
                ep_size=self.ep_size,
                active_ranks=active,
                invalid_ids=x.invalid_ids,
            ),
            active=active,
            payload_offsets=self.workspace.payload_offsets(row_bytes, runtime_max_tokens=M),
            combine_offset=self.workspace.combine_offset(row_bytes, runtime_max_tokens=M),
        )

    def _begin(self, phase: str) -> None:
        self.rank.phase = f"{phase} epoch {self._epochs.advance()}"

    def _record(self, handle: OneSidedHandle) -> None:
        """The tables that combine reads, at the stride of the router's own top_k, and the counters."""
        plan = handle.send_plan
        self._own["send_counters"][:] = plan.counts_R
        self._own["local_token_counter"][0] = handle.batch.tokens
        for name, table_TK in (("topk_target_ranks", plan.targets_TK), ("topk_send_indices", plan.slots_TK)):
            self._own[name][: table_TK.size] = table_TK.ravel()

    def _from_next(self, active: tuple[int, ...]) -> list[int]:
        """Targets beginning with the rank after this one, so that not all ranks write to the same one at a time."""
        return sorted(active, key=lambda target: (target - self.ep_rank - 1) % self.ep_size)

    def _put(self, target: int, handle: OneSidedHandle) -> None:
        """Write the target's rows into its block of this source, in each payload's region."""
        index = torch.from_numpy(handle.send_plan.tokens_R[target])
        for rows, offset in zip(_payloads(handle.batch), handle.payload_offsets, strict=True):
            row_bytes = rows.shape[1]
            begin = offset + self.ep_rank * handle.batch.runtime_max_tokens * row_bytes
            block = self._rows[target][begin : begin + len(index) * row_bytes].view(len(index), row_bytes)
            torch.index_select(rows, 0, index, out=block)

    def _announce_counts(self, handle: OneSidedHandle) -> None:
        """Write at every peer how many rows came from here, and the load statistics of the experts."""
        stats_E, reserved = handle.batch.eplb_stats_E, self.exchange.eplb_stats_experts
        for target in handle.active:
            self._peers[target]["recv_counters"][self.ep_rank] = handle.send_plan.counts_R[target]
            if stats_E is not None:
                begin = self.ep_rank * reserved
                self._peers[target]["eplb_gathered_stats"][begin : begin + reserved] = stats_E.numpy()

    def _received(self, handle: OneSidedHandle) -> Received:
        """Views of this rank's own row, where the peers put their rows."""
        parts = [(getattr(torch, part.dtype), part.width) for part in self.exchange.payload_parts]
        parts += [(torch.int32, self.exchange.top_k), (torch.float32, self.exchange.top_k)]
        *payloads, experts, weights = (
            self._region(handle, offset, *part) for offset, part in zip(handle.payload_offsets, parts, strict=True)
        )
        M = handle.batch.runtime_max_tokens
        return Received(
            payloads=tuple(payloads),
            experts=experts,
            weights=weights,
            counts_R=self._received_counts(handle),
            starts_R=tuple(range(0, self.ep_size * M, M)),
            handle=handle,
            eplb_stats_RE=None if handle.batch.eplb_stats_E is None else self._eplb_stats(),
        )

    def _received_counts(self, handle: OneSidedHandle) -> tuple[int, ...]:
        """Rows from each source; a source that the mask leaves out has an old round's count in the workspace."""
        counts = self._own["recv_counters"]
        return tuple(int(n) if source in handle.active else 0 for source, n in enumerate(counts))

    def _eplb_stats(self) -> torch.Tensor:
        reserved = self.exchange.eplb_stats_experts
        stats = self._own["eplb_gathered_stats"][: self.ep_size * reserved]
        return torch.from_numpy(stats.copy()).view(self.ep_size, reserved)

    # Combine, step by step.

    def _lay_out(self, partials: torch.Tensor, handle: OneSidedHandle) -> int:
        """Bring the partial sums into the combine region, where they are not there already.

        fp8 rows are packed in general, but each lies at the place of its bf16 row if the experts wrote that one there
        (moeA2APrepareCombineKernel). Returns the bytes from one row to the next.
        """
        x = self.exchange
        if x.payload_in_workspace and not x.low_precision_combine:
            return x.combine_bytes_per_token
        dtype = self.combine_dtype if x.payload_in_workspace else self._pulled_dtype
        rows = self._region(handle, handle.combine_offset, dtype, x.hidden)
        if x.payload_in_workspace:
            rows = rows.view(torch.float8_e4m3fn)[:, : x.hidden]
        for block in self._blocks(handle):
            rows[block] = as_e4m3(partials[block]) if x.low_precision_combine else partials[block]
        return rows.stride(0) * rows.element_size()

    def _blocks(self, handle: OneSidedHandle) -> list[slice]:
        """The rows received from each source; what lies between them is stale and stays behind."""
        M, counts = handle.batch.runtime_max_tokens, self._own["recv_counters"]
        return [slice(source * M, source * M + int(counts[source])) for source in handle.active]

    def _pull(self, handle: OneSidedHandle, stride_bytes: int) -> torch.Tensor:
        """Add up, in float32 and in the kernel's order, the rows that peers made of this rank's tokens."""
        memory, M = self._memory, handle.batch.runtime_max_tokens
        begin = handle.combine_offset + self.ep_rank * M * stride_bytes
        first_R = np.arange(self.ep_size) * memory.stride_bytes + begin
        table = RowTable(
            memory.flat,
            row_bytes=self.exchange.hidden * self._pulled_dtype.itemsize,
            grain_bytes=gcd(memory.stride_bytes, begin, stride_bytes),
        )
        return self._sum(table, handle.send_plan.offsets_TK(first_R, stride_bytes))

    @property
    def _pulled_dtype(self) -> torch.dtype:
        """Of the rows that combine pulls."""
        return torch.float8_e4m3fn if self.exchange.low_precision_combine else self.combine_dtype

    # The workspace, for callers.

    def workspace_row(self) -> np.ndarray:
        return self._rows[self.ep_rank].numpy().copy()

    def read_flags(self) -> dict[str, np.ndarray]:
        """`flag_val`, counters and completion flags of this rank as they are now; readable from another thread."""
        names = [region.name for region in self.workspace.regions[:6]]
        return {name: self._own[name].copy() for name in names}

    def partials_buffer(self, handle: OneSidedHandle) -> torch.Tensor:
        if not self.exchange.payload_in_workspace:
            return super().partials_buffer(handle)
        return self._region(handle, handle.combine_offset, self.combine_dtype, self.exchange.hidden)

    def _misplaced(self, partials: torch.Tensor, handle: OneSidedHandle) -> str | None:
        expected = self._rows[self.ep_rank].data_ptr() + handle.combine_offset
        if not self.exchange.payload_in_workspace or partials.data_ptr() == expected:
            return None
        return (
            f"partials lie at {partials.data_ptr():#x} but payload_in_workspace wants them at {expected:#x}: "
            "write them into partials_buffer(received.handle)"
        )

    def _region(self, handle: OneSidedHandle, offset: int, dtype: torch.dtype, width: int) -> torch.Tensor:
        """`[R * M, width]` of this rank's own row."""
        size_bytes = handle.rows * width * dtype.itemsize
        return self._rows[self.ep_rank][offset : offset + size_bytes].view(dtype).view(handle.rows, width)

    def close(self) -> None:
        self._rows, self._peers, self._own, self._epochs, self._sum = [], [], {}, None, None
        self._memory.close()


def _payloads(batch: Batch) -> list[torch.Tensor]:
    """Everything that travels with a token, as bytes: its payloads, its ids, its weights."""
    return [as_bytes(rows) for rows in (*batch.payloads, batch.experts_TK, batch.weights_TK)]

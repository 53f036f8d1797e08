"""`one_sided` on GPUs: FlashInfer's functional API (`comm/trtllm_moe_alltoall.py`) on a workspace of this project.

Dispatch puts a token's row into the workspace of every rank that owns one of its experts; combine pulls the partial
sums from there. The functional API leaves to its caller: the barrier after initialising, equal offsets on all ranks,
ids and token counts within range (`validate` sees to the last three), and a barrier before offsets move (`meet`).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from mnnvl_lab.exchange import Batch, Handle, Received
from mnnvl_lab.transport.flashinfer.base import (
    FlagReader,
    FlashInferTransport,
    ReceivedViews,
    between,
    require_prediction,
)
from mnnvl_lab.workspace import OneSidedWorkspace
from mnnvl_lab.workspace.mnnvl import split_regions

if TYPE_CHECKING:
    import torch

    from mnnvl_lab.transport.flashinfer.memory import SymmetricMemory


@dataclass(frozen=True, kw_only=True)
class OneSidedHandle(Handle):
    """What `moe_a2a_dispatch` returned.

    Attributes:
        views: `[R, M, width]` of this rank's row for each payload; ids and weights come last.
        combine_offset: first byte of combine's region in it.
        eplb_stats_RE: load statistics that travelled along, or None.
    """

    views: tuple[torch.Tensor, ...]
    combine_offset: int
    eplb_stats_RE: torch.Tensor | None


class FlashInferOneSided(FlashInferTransport):
    """Puts and pulls by FlashInfer's kernels. Received rows are views of the workspace, `M` rows per source."""

    mode = "one_sided"
    offsets_follow_size = True

    def _open(self) -> None:
        import flashinfer.comm.trtllm_moe_alltoall as kernels

        x = self.exchange
        self._kernels, self._view_cache = kernels, {}
        self.workspace = OneSidedWorkspace.of(x)
        sizes = (x.ep_size, x.max_tokens, x.dispatch_bytes_per_token, x.combine_bytes_per_token, x.eplb_stats_experts)
        asked = kernels.moe_a2a_get_workspace_size_per_rank(*sizes)
        require_prediction("one-sided workspace bytes", predicted=self.workspace.workspace_bytes, asked=asked)
        self._memory = self._allocate(self.workspace.workspace_bytes)
        with self._kernel_message("open"):
            self._metainfo = kernels.moe_a2a_initialize(
                self._memory.rows, self.ep_rank, self.ep_size, x.max_tokens, x.eplb_stats_experts
            )
        predicted = self.workspace.metainfo.tolist()
        require_prediction("one-sided offsets", predicted=predicted, asked=self._metainfo.tolist())
        self._flags = between(self.workspace.regions, "flag_val", "combine_completion_flags")
        self._watch = FlagReader(self._memory.own_row[: self._flags[-1].end_bytes])

    def enqueue_dispatch(self, batch: Batch, prepared: None = None) -> OneSidedHandle:
        self._require_met(batch)
        x = self.exchange
        views, combine_offset, eplb_stats_RE = self._kernels.moe_a2a_dispatch(
            batch.experts_TK,
            [*batch.payloads, batch.experts_TK, batch.weights_TK],
            self._memory.rows,
            self._metainfo,
            batch.runtime_max_tokens,
            self.ep_rank,
            self.ep_size,
            x.top_k,
            x.experts,
            enable_pdl=self._pdl,
            eplb_local_stats=batch.eplb_stats_E,
            **self._rank_mask(batch),
            recv_view_cache=self._view_cache,
        )
        return OneSidedHandle(
            batch=batch,
            rows=self.ep_size * batch.runtime_max_tokens,
            views=tuple(views),
            combine_offset=combine_offset,
            eplb_stats_RE=eplb_stats_RE,
        )

    def enqueue_combine(
        self, partials: torch.Tensor, handle: OneSidedHandle, output: torch.Tensor | None = None
    ) -> torch.Tensor:
        x, batch = self.exchange, handle.batch
        M = batch.runtime_max_tokens
        return self._kernels.moe_a2a_combine(
            partials.view(self.ep_size, M, x.hidden),
            batch.tokens,
            self._memory.rows,
            self._metainfo,
            M,
            self.ep_rank,
            self.ep_size,
            x.top_k,
            handle.combine_offset,
            payload_in_workspace=x.payload_in_workspace,
            output=self._output(batch) if output is None else output,
            use_low_precision=x.low_precision_combine,
            enable_pdl=self._pdl,
            **self._rank_mask(batch),
        )

    def partials_buffer(self, handle: OneSidedHandle) -> torch.Tensor:
        if not self.exchange.payload_in_workspace:
            return super().partials_buffer(handle)
        begin = handle.combine_offset
        end = begin + handle.rows * self.exchange.combine_bytes_per_token
        return self._memory.own_row[begin:end].view(self.combine_dtype).view(handle.rows, self.exchange.hidden)

    def _finish_pulls(self) -> None:
        import torch

        torch.cuda.synchronize(self.rank.device)

    def _misplaced(self, partials: torch.Tensor, handle: OneSidedHandle) -> str | None:
        promised = self._memory.own_row.data_ptr() + handle.combine_offset
        if not self.exchange.payload_in_workspace or partials.data_ptr() == promised:
            return None
        return (
            f"partials lie elsewhere than at byte {handle.combine_offset} of this rank's workspace, where "
            "payload_in_workspace promises them; write them into partials_buffer(received.handle)"
        )

    def sanitize(self, handle: OneSidedHandle, invalid_expert: int) -> None:
        """Write `invalid_expert` over the stale ids of received rows that hold no token (`Received.experts`)."""
        self._kernels.moe_a2a_sanitize_expert_ids(
            handle.views[-2], self._memory.rows, self._metainfo, self.ep_rank, invalid_expert
        )

    def read_flags(self) -> dict[str, np.ndarray]:
        """`flag_val`, `recv_counters`, the completion flags of either phase ...: this rank's row, by region."""
        return split_regions(self._watch.read(), self._flags)

    def _release(self, free: Callable[[SymmetricMemory], None]) -> None:
        self._view_cache = {}
        super()._release(free)

    @property
    def _pdl(self) -> bool | None:
        """As FlashInfer's functions take it: None is what the device can do."""
        return False if self.exchange.without_pdl else None

    def _output(self, batch: Batch) -> torch.Tensor:
        import torch

        return torch.empty(batch.tokens, self.exchange.hidden, dtype=self.combine_dtype, device=self.rank.device)

    def _rank_mask(self, batch: Batch) -> dict[str, object]:
        if not self.exchange.enable_rank_mask:
            return {}
        active = range(self.ep_size) if batch.active_ranks is None else batch.active_ranks
        mask = self._kernels.moe_a2a_active_rank_mask(active, self.ep_size)
        return {"enable_rank_mask": True, "active_rank_mask": mask}

    def received_views(self, handle: OneSidedHandle) -> ReceivedViews:
        *payloads, experts, weights = (view.flatten(0, 1) for view in handle.views)
        return tuple(payloads), experts, weights

    def received_counts(self, handle: OneSidedHandle) -> tuple[torch.Tensor, torch.Tensor]:
        """A source that the mask leaves out has an old round's count in the workspace: it counts as none."""
        import torch

        counters, active = self.workspace.regions[3], handle.batch.active_ranks
        counts_R = self._memory.own_row[counters.offset_bytes : counters.end_bytes].view(torch.int32).clone()
        for source in range(self.ep_size):
            if active is not None and source not in active:
                counts_R[source : source + 1] = 0
        M = handle.batch.runtime_max_tokens
        return torch.arange(0, self.ep_size * M, M, device=counts_R.device), counts_R

    def _received(self, handle: OneSidedHandle) -> Received:
        M = handle.batch.runtime_max_tokens
        payloads, experts, weights = self.received_views(handle)
        return Received(
            payloads=payloads,
            experts=experts,
            weights=weights,
            counts_R=self._counts_R(handle),
            starts_R=tuple(range(0, self.ep_size * M, M)),
            handle=handle,
            eplb_stats_RE=handle.eplb_stats_RE,
        )

    def _counts_R(self, handle: OneSidedHandle) -> tuple[int, ...]:
        """Rows from each source; a source that the mask leaves out has an old round's count in the workspace."""
        counters = self.workspace.regions[3]
        counts = self._memory.own_row[counters.offset_bytes : counters.end_bytes].cpu().numpy().view(np.int32)
        active = handle.batch.active_ranks
        return tuple(int(n) if active is None or source in active else 0 for source, n in enumerate(counts))

"""`two_sided` on GPUs: FlashInfer's `moe_prepare` and `moe_comm` (`comm/trtllm_alltoall.py`) on own workspaces.

Prepare exchanges counts, ids and weights; then every payload moves on its own through FIFOs in which sender and
receiver meet. Received rows lie compact, one source behind the other. What upstream keeps in the singleton `MnnvlMoe`
is kept here by the transport.

FlashInfer 0.7.2 publishes the last step of prepare twice where it is full (`mnnvl_lab.workspace.two_sided`), which
may leave a connection's head above 0 and every later round with ids and weights of the round before. `StepGuard`
(`mnnvl_lab.transport.flashinfer.step_guard`) sets such heads back at the end of each combine that follows a prepare of
that kind.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from mnnvl_lab.errors import SmLimitFixed
from mnnvl_lab.exchange import Batch, Handle, Received
from mnnvl_lab.transport.flashinfer.base import (
    FlagReader,
    FlashInferTransport,
    ReceivedViews,
    require_prediction,
)
from mnnvl_lab.transport.flashinfer.mended import mended_prepare
from mnnvl_lab.transport.flashinfer.step_guard import StepGuard
from mnnvl_lab.workspace import Region, TwoSidedWorkspace
from mnnvl_lab.workspace.mnnvl import split_regions

if TYPE_CHECKING:
    import torch

    from mnnvl_lab.ranks.group import Group
    from mnnvl_lab.ranks.rank import Rank

_NOTE = "multiprocessors_fixed_by_mnnvl_lab"


@dataclass(frozen=True, kw_only=True)
class Prepared:
    """What prepare found out, on the device: who sends how many rows, and from where to where.

    Attributes:
        experts, weights: of each received row `[R * M, K]`; ids that this rank does not own are E.
        send_ends_R, recv_ends_R: running sums of the rows to each target and from each source.
        send_rows, recv_rows: which local row each one is.
        back_slots: for each sent row, `token * K + first choice that names the target`: where combine puts it.
    """

    experts: torch.Tensor | None = None
    weights: torch.Tensor | None = None
    send_ends_R: torch.Tensor
    send_rows: torch.Tensor
    recv_ends_R: torch.Tensor
    recv_rows: torch.Tensor
    back_slots: torch.Tensor


@dataclass(frozen=True, kw_only=True)
class TwoSidedHandle(Handle):
    """What prepare found out, and the payloads that dispatch received, `[R * M, width]`."""

    prepared: Prepared
    payloads: tuple[torch.Tensor, ...]


class FlashInferTwoSided(FlashInferTransport):
    """FIFOs by FlashInfer's kernels. They have no timeout: a lost peer makes them spin for ever."""

    mode = "two_sided"
    phases = ("prepare", "dispatch", "combine")
    _guard: StepGuard | None = None  # none with the mended kernel

    def _open(self) -> None:
        import flashinfer.comm.trtllm_alltoall as kernels
        import torch

        self._kernels = kernels
        multiprocessors = fix_sm_limit(self.rank, self.group, self.exchange.sm_limit)
        self.workspace = TwoSidedWorkspace(ep_size=self.ep_size, multiprocessors=multiprocessors)
        require_prediction(
            "two-sided workspace bytes",
            predicted=(self.workspace.workspace_bytes, self.workspace.prepare_bytes),
            asked=(
                kernels.get_moe_commworkspace_size_per_rank(self.ep_size),
                kernels.get_moe_prepare_workspace_size_per_rank(self.ep_size),
            ),
        )
        fifos, prepare = (self._allocate(n) for n in (self.workspace.workspace_bytes, self.workspace.prepare_bytes))
        self._fifo_words, self._prepare_words = fifos.view(torch.uint64), prepare.view(torch.uint64)
        self._connections = self.workspace.regions[1], self.workspace.prepare_regions[1]
        self._watches = tuple(map(_watch, (fifos.own_row, prepare.own_row), self._connections))
        if self.exchange.mended_prepare:
            self._prepare = mended_prepare()
            return
        self._prepare, region = kernels.moe_prepare, self._connections[1]
        words = prepare.own_row[region.offset_bytes : region.end_bytes].view(torch.int64).view(region.shape)
        self._guard = StepGuard(self.exchange, words, self.group)

    def validate(self, batch: Batch) -> None:
        super().validate(batch)
        if self._guard:
            self._guard.count(batch)

    def enqueue_prepare(self, batch: Batch) -> Prepared:
        x = self.exchange
        if self.spans != self.ep_size:
            return self._nothing_prepared()
        if self._guard:
            self._guard.before_prepare(batch)
        experts, weights, send_ends, send_rows, recv_ends, recv_rows, back_slots, _ = self._prepare(
            batch.experts_TK,
            batch.weights_TK,
            None,
            self._prepare_words,
            batch.runtime_max_tokens,
            self.ep_rank,
            self.ep_size,
            x.experts,
            x.experts,
            x.top_k,
        )
        return Prepared(
            experts=experts,
            weights=weights,
            send_ends_R=send_ends,
            send_rows=send_rows,
            recv_ends_R=recv_ends,
            recv_rows=recv_rows,
            back_slots=back_slots,
        )

    def enqueue_dispatch(self, batch: Batch, prepared: Prepared) -> TwoSidedHandle:
        rows = self.ep_size * batch.runtime_max_tokens
        outward = (prepared.send_ends_R, prepared.send_rows), (prepared.recv_ends_R, prepared.recv_rows)
        with self._kernel_message("dispatch"):
            payloads = tuple(
                self._move(payload, *outward, payload.new_empty(rows, payload.shape[1])) for payload in batch.payloads
            )
        return TwoSidedHandle(batch=batch, rows=rows, prepared=prepared, payloads=payloads)

    def enqueue_combine(
        self, partials: torch.Tensor, handle: TwoSidedHandle, output: torch.Tensor | None = None
    ) -> torch.Tensor:
        import torch

        prepared, T, K, H = handle.prepared, handle.batch.tokens, self.exchange.top_k, self.exchange.hidden
        back = (prepared.recv_ends_R, prepared.recv_rows), (prepared.send_ends_R, prepared.back_slots)
        slots = self._move(partials, *back, partials.new_zeros(T * K, H))
        combined = torch.sum(slots.view(T, K, H), dim=1, out=output)
        if self._guard:
            self._guard.after_combine()
        return combined

    def note(self) -> str:
        if self.exchange.mended_prepare:
            return "prepare by the kernel that publishes no step twice"
        return self._guard.note() if self._guard else ""

    def explanation(self) -> str:
        return self._guard.explanation() if self._guard else ""

    def read_flags(self) -> dict[str, np.ndarray]:
        """uint64 `connections [peer, channel, word]`, `prepare_connections [peer, word]`; words: head, tail, count."""
        regions = {}
        for watch, region in zip(self._watches, self._connections, strict=True):
            regions |= split_regions(watch.read(), [region], begin_bytes=region.offset_bytes)
        return {name: words[..., :3] for name, words in regions.items()}

    def _move(self, rows, send, recv, output) -> torch.Tensor:
        """Move rows through the FIFOs; `send` and `recv` are running sums with the local rows they count."""
        self._kernels.moe_comm(rows, *send, output, *recv, self._fifo_words, self.ep_rank, self.ep_size)
        return output

    def _nothing_prepared(self) -> Prepared:
        """No rows to move, for a workspace over the wrong group.

        `moe_prepare` has no check: it would launch and read rows past the mapping, which kills the CUDA context. So it
        is not called; the first move, which checks, is.
        """
        import torch

        nothing = torch.zeros(self.ep_size, dtype=torch.int32, device=self.rank.device)
        return Prepared(
            send_ends_R=nothing, send_rows=nothing, recv_ends_R=nothing, recv_rows=nothing, back_slots=nothing
        )

    def received_views(self, handle: TwoSidedHandle) -> ReceivedViews:
        return handle.payloads, handle.prepared.experts, handle.prepared.weights

    def received_counts(self, handle: TwoSidedHandle) -> tuple[torch.Tensor, torch.Tensor]:
        ends_R = handle.prepared.recv_ends_R
        starts_R = ends_R.roll(1)
        starts_R[:1] = 0
        return starts_R, ends_R - starts_R

    def _received(self, handle: TwoSidedHandle) -> Received:
        ends = handle.prepared.recv_ends_R.tolist()
        starts = [0, *ends[:-1]]
        payloads, experts, weights = self.received_views(handle)
        return Received(
            payloads=payloads,
            experts=experts,
            weights=weights,
            counts_R=tuple(end - start for start, end in zip(starts, ends, strict=True)),
            starts_R=tuple(starts),
            handle=handle,
        )


def fix_sm_limit(rank: Rank, group: Group, sm_limit: int | None) -> int:
    """Set how many multiprocessors the two-sided kernels of this process use; collective over `group`.

    `set_moe_max_usable_sm_count` works only before the first use, since it fixes the channels and so every address in
    the workspace. What was set is noted on FlashInfer's loaded module, which lives as long as the limit does: until the
    process ends.

    Returns:
        Multiprocessors in use from now on.

    Raises:
        SmLimitFixed: a process of the group has used another number already.
    """
    import torch
    from flashinfer.comm.trtllm_alltoall import get_comm_alltoall_module

    module = get_comm_alltoall_module()
    present = torch.cuda.get_device_properties(rank.device).multi_processor_count
    wanted = present if sm_limit is None else min(sm_limit, present)  # MPS shows a rank its share alone
    for ep_rank, fixed in enumerate(group.allgather(getattr(module, _NOTE, None), call="compare sm_limit")):
        if fixed not in (None, wanted):
            raise SmLimitFixed(
                f"sm_limit asks for {wanted} multiprocessors but the process of ep_rank {ep_rank} has used {fixed}: "
                "the limit can be set only before the first use in a process; renew the ranks"
            )
    if not hasattr(module, _NOTE):
        if wanted != present:
            torch.cuda.set_device(rank.device)
            module.set_moe_max_usable_sm_count(wanted)
        setattr(module, _NOTE, wanted)
    return wanted


def _watch(row: torch.Tensor, region: Region) -> FlagReader:
    return FlagReader(row[region.offset_bytes : region.end_bytes])

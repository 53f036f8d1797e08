"""`pico` on GPUs: the compiled kernels, over FlashInfer's `MnnvlMemory`."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

import numpy as np

from mnnvl_lab.exchange import Batch, Handle, Received
from mnnvl_lab.transport.flashinfer.base import FlagReader, FlashInferTransport, ReceivedViews
from mnnvl_lab.transport.pico.launch import KERNEL_MESSAGE, PicoLaunch, PicoWorkspace, Tuning
from mnnvl_lab.transport.validation import require_ep_workspace
from mnnvl_lab.workspace.mnnvl import split_regions

if TYPE_CHECKING:
    import torch


class GpuPico(PicoLaunch, FlashInferTransport):
    """On GPUs, over FlashInfer's `MnnvlMemory`; the kernels are compiled at first use."""

    mode = "pico"
    offsets_follow_size = True

    def _open(self) -> None:
        from mnnvl_lab.transport.pico import kernels

        require_ep_workspace(self.rank, self.exchange, phase="open", kernel_message=KERNEL_MESSAGE)
        self._kernels, self.workspace = kernels, PicoWorkspace.of(self.exchange)
        self.pdl, self.tuning = not self.exchange.without_pdl, partial(Tuning.of, ep_size=self.ep_size)
        self._memory = self._allocate(self.workspace.total_bytes)
        self._base, self._stride = self._memory.rows.data_ptr(), self._memory.rows.stride(0)
        self._flags = self.workspace.regions[:6]
        self._watch = FlagReader(self._memory.own_row[: self._flags[-1].end_bytes])

    def _own_row(self) -> torch.Tensor:
        return self._memory.own_row

    def enqueue_dispatch(self, batch: Batch, prepared: None = None) -> Handle:
        self._require_met(batch)
        return self.launch_dispatch(self._kernels, batch)

    def enqueue_combine(
        self, partials: torch.Tensor, handle: Handle, output: torch.Tensor | None = None
    ) -> torch.Tensor:
        into = self._output(handle.batch) if output is None else output
        return self.launch_combine(self._kernels, partials, handle, into)

    def read_flags(self) -> dict[str, np.ndarray]:
        """As `HostPico.read_flags`, beside a kernel that waits."""
        return split_regions(self._watch.read(), self._flags)

    def received_views(self, handle: Handle) -> ReceivedViews:
        *parts, experts, weights = self._received_views(handle)
        return tuple(parts), experts, weights

    def received_counts(self, handle: Handle) -> tuple[torch.Tensor, torch.Tensor]:
        import torch

        M, counts_R = handle.batch.runtime_max_tokens, self._counts().clone()
        return torch.arange(0, self.ep_size * M, M, device=counts_R.device), counts_R

    def _counts(self) -> torch.Tensor:
        import torch

        counters = self.workspace.regions[3]
        return self._memory.own_row[counters.offset_bytes : counters.end_bytes].view(torch.int32)

    def _received(self, handle: Handle) -> Received:
        return self._describe(handle, self._counts().cpu().numpy())

    def _finish_pulls(self) -> None:
        import torch

        torch.cuda.synchronize(self.rank.device)

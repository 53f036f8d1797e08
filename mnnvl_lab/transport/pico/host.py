"""`pico` between CPU processes: the kernels in Triton's interpreter, over shared memory."""

from __future__ import annotations

import os
from contextlib import contextmanager
from typing import TYPE_CHECKING

import numpy as np

from mnnvl_lab.errors import RankTimeout, Refused
from mnnvl_lab.exchange import Batch, Exchange, Received
from mnnvl_lab.transport.base import Transport
from mnnvl_lab.transport.flashinfer.base import split_regions
from mnnvl_lab.transport.host.shared_memory import SharedMemory, put_back, take
from mnnvl_lab.transport.pico.launch import KERNEL_MESSAGE, PicoLaunch, PicoWorkspace, Tuning
from mnnvl_lab.transport.validation import require_ep_workspace

if TYPE_CHECKING:
    import torch

    from mnnvl_lab.ranks.rank import Rank


class HostPico(PicoLaunch, Transport):
    """Between CPU processes, by Triton's interpreter, over shared memory."""

    mode = "pico"
    fabric = "host"
    offsets_follow_size = True
    tuning = staticmethod(Tuning.interpreted)

    def __init__(self, rank: Rank, exchange: Exchange):
        super().__init__(rank, exchange)
        require_ep_workspace(rank, exchange, phase="open", kernel_message=KERNEL_MESSAGE)
        self._kernels = interpreted_kernels()
        self.workspace = PicoWorkspace.of(exchange)
        self._held = take(rank, self.group, self.mode, self.workspace, self._allocate)
        self._base, self._stride = self._held.memory.flat.data_ptr(), self._held.memory.stride_bytes
        self._row = self._held.memory.row(self.ep_rank)
        self._row.zero_()
        self.group.barrier()  # a late memset would erase a peer's first epoch

    def _own_row(self) -> torch.Tensor:
        return self._row

    def workspace_row(self) -> np.ndarray:
        """A copy of this rank's own row, uint8."""
        return self._row.numpy().copy()

    def read_flags(self) -> dict[str, np.ndarray]:
        """`flag_val`, counters and the first completion flags of this rank; readable from another thread."""
        return {
            name: array.copy() for name, array in split_regions(self._row.numpy(), self.workspace.regions[:6]).items()
        }

    def close(self) -> None:
        if self._held:
            self._row = None
            put_back(self.rank, self.mode, self._held)
            self._held = None

    def _allocate(self, plan: PicoWorkspace) -> SharedMemory:
        return SharedMemory(self.group, size_bytes=plan.total_bytes, directory=self.rank.segment_dir)

    def _dispatch(self, batch: Batch) -> Received:
        with self._late_ranks("dispatch"):
            self.launch_dispatch(self._kernels, batch)
        return self._describe(self.read_flags()["recv_counters"])

    def _combine(self, partials: torch.Tensor) -> torch.Tensor:
        with self._late_ranks("combine"):
            return self.launch_combine(self._kernels, partials, self._output(self._round))

    @contextmanager
    def _late_ranks(self, phase: str):
        """Name the rank whose flag did not come."""
        try:
            yield
        except Exception as error:
            if not isinstance(error.__cause__, RankTimeout):
                raise
            seen = self.read_flags()
            epoch, flags = int(seen["flag_val"][0]), seen[f"{phase}_completion_flags"]
            late = [self.group.ranks[r] for r in np.flatnonzero(flags != epoch)] or [self.group.ranks[self.ep_rank]]
            cause = f"{error.__cause__.cause} for epoch {epoch}; first flags: {flags.tolist()}"
            raise RankTimeout(rank=late[0], phase=phase, cause=cause) from None


def interpreted_kernels():
    """The kernels' module in Triton's interpreter.

    Raises:
        Refused: Triton is not installed, or this process has imported the kernels for a GPU.
    """
    use_interpreter()
    try:
        from mnnvl_lab.transport.pico import kernels
    except ImportError as error:
        raise Refused(f"mode pico needs Triton ({error}): pip install triton, or use mode one_sided") from error
    if not kernels.INTERPRETED:
        raise Refused("mode pico on host: this process has compiled the kernels for a GPU; use a process of its own")
    return kernels


def use_interpreter() -> None:
    """Let Triton interpret the kernels that this process imports from now on."""
    os.environ["TRITON_INTERPRET"] = "1"

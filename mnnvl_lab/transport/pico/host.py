"""`pico` between CPU processes: the kernels in Triton's interpreter, over shared memory."""

from __future__ import annotations

import os
from contextlib import contextmanager
from functools import partial
from typing import TYPE_CHECKING

import numpy as np

from mnnvl_lab.errors import RankDied, RankTimeout, Refused
from mnnvl_lab.exchange import Batch, Exchange, Handle, Received
from mnnvl_lab.transport.base import Transport
from mnnvl_lab.transport.host.shared_memory import SharedMemory
from mnnvl_lab.transport.pico.launch import KERNEL_MESSAGE, PicoLaunch, PicoWorkspace, Tuning
from mnnvl_lab.transport.validation import require_ep_workspace
from mnnvl_lab.workspace.mnnvl import split_regions

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
        self._memory = SharedMemory(self.group, size_bytes=self.workspace.total_bytes, directory=rank.segment_dir)
        self._base, self._stride = self._memory.flat.data_ptr(), self._memory.stride_bytes
        self._row = self._memory.row(self.ep_rank)
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
        self._row = None
        self._memory.close()

    def _dispatch(self, batch: Batch, prepared: None) -> Received:
        with self._late_ranks("dispatch"):
            handle = self.launch_dispatch(self._kernels, batch)
        return self._describe(handle, self.read_flags()["recv_counters"])

    def _combine(self, partials: torch.Tensor, handle: Handle) -> torch.Tensor:
        with self._late_ranks("combine"):
            return self.launch_combine(self._kernels, partials, handle, self._output(handle.batch))

    @contextmanager
    def _late_ranks(self, phase: str):
        """Name the rank whose flag did not come, or whose process has ended."""
        from mnnvl_lab.transport.pico.interpreted import check_peers

        before = check_peers.set(partial(self.rank.require_alive, self.group.ranks))
        try:
            yield
        except Exception as error:
            if isinstance(error.__cause__, RankDied):
                raise error.__cause__ from None
            if not isinstance(error.__cause__, RankTimeout):
                raise
            seen = self.read_flags()
            epoch, flags = int(seen["flag_val"][0]), seen[f"{phase}_completion_flags"]
            late = [self.group.ranks[r] for r in np.flatnonzero(flags != epoch)] or [self.group.ranks[self.ep_rank]]
            cause = f"{error.__cause__.cause} for epoch {epoch}; first flags: {flags.tolist()}"
            raise RankTimeout(rank=late[0], phase=phase, cause=cause) from None
        finally:
            check_peers.reset(before)


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


@contextmanager
def interpreter():
    """Context in which kernels are imported and run in Triton's interpreter; ranks that are started later do not."""
    before = os.environ.pop("TRITON_INTERPRET", None)
    use_interpreter()
    try:
        yield
    finally:
        del os.environ["TRITON_INTERPRET"]
        os.environ |= {} if before is None else {"TRITON_INTERPRET": before}

"""Symmetric memory over a group of ranks: FlashInfer's `MnnvlMemory` (`comm/mnnvl.py`), owned and freed here.

Each rank creates one row on its GPU and maps every peer's row at a fixed stride. Upstream packs allocations of whatever
groups into one process-wide address window and frees them when the garbage collector pleases; here every allocation
has a window of its own and goes when it is closed.
"""

from __future__ import annotations

import ctypes
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from mnnvl_lab.hardware import comes_to_rest

if TYPE_CHECKING:
    import torch

    from mnnvl_lab.ranks.group import Group

_WINDOW = ("comm", "dev_id", "current_mem_offset", "current_rank_stride", "current_start_address")


class GroupBackend:
    """A group of ranks as FlashInfer's `CommBackend` protocol (`comm/comm_backend.py`), whose spelling this is.

    It splits into itself, as vLLM's `CustomCommunicator` does: the group is already the one that is meant.
    """

    def __init__(self, group: Group):
        self._group = group

    def Get_rank(self) -> int:
        return self._group.rank

    def Get_size(self) -> int:
        return self._group.size

    def allgather(self, data: Any) -> tuple[Any, ...]:
        return tuple(self._group.allgather(data))

    def bcast(self, data: Any, root: int) -> Any:
        return self._group.broadcast(data, root=root)

    def barrier(self) -> None:
        self._group.barrier()

    def Split(self, color: int, key: int) -> GroupBackend:
        return self


@contextmanager
def own_window(backend: GroupBackend):
    """`MnnvlMemory` with nothing allocated yet, over `backend`; its class-level state is put back afterwards.

    Without it an allocation over four ranks may land in a window reserved for two, past its end: upstream compares the
    stride of the window, never the number of ranks it was reserved for.
    """
    from flashinfer.comm.mnnvl import MnnvlMemory

    before = {name: getattr(MnnvlMemory, name) for name in _WINDOW}
    try:
        MnnvlMemory.comm, MnnvlMemory.dev_id = backend, None
        MnnvlMemory.current_mem_offset = MnnvlMemory.current_rank_stride = MnnvlMemory.current_start_address = 0
        yield MnnvlMemory
    finally:
        for name, value in before.items():
            setattr(MnnvlMemory, name, value)


def forget_fabric_support(backend: GroupBackend) -> None:
    """Let all ranks probe for fabric handles again if one has not. Collective.

    `MnnvlMemory` asks its peers once a process and remembers: a renewed process would ask old ones that no longer do.
    """
    from flashinfer.comm.mnnvl import MnnvlMemory

    if None in backend.allgather(MnnvlMemory._fabric_supported):
        MnnvlMemory._fabric_supported = None


class SymmetricMemory:
    """One allocation over a group, `[group.size, size_bytes]`, zeroed. Collective, and so is `close`.

    Args:
        group: the ranks that share it; row r lies on the GPU of the group's rank r.
        size_bytes: bytes per rank; the driver rounds up to 2 MiB.
        device: this rank's GPU.

    Attributes:
        rows: uint8 `[group.size, size_bytes]`, strided; a peer's row is that peer's memory.
    """

    def __init__(self, group: Group, *, size_bytes: int, device: torch.device):
        import torch

        self.group, self.size_bytes, self.device = group, size_bytes, device
        torch.cuda.set_device(device)
        backend = GroupBackend(group)
        forget_fabric_support(backend)
        with own_window(backend) as memory:
            memory.initialize()
            self._address, self.rank_stride_bytes = memory.open_mnnvl_memory(None, size_bytes)
        try:
            self.rows = self.view(torch.uint8)
            self._zero()
        except BaseException:
            self.abort()
            raise

    def view(self, dtype: torch.dtype) -> torch.Tensor:
        """The rows as `[group.size, size_bytes / itemsize]` of `dtype`; dead after `close`."""
        from flashinfer.comm.dlpack_utils import pack_strided_memory

        place = (self._address, self.size_bytes, self.rank_stride_bytes, self.group.size)
        tensor = pack_strided_memory(*place, dtype, self.device.index)
        # A slice that outlives `tensor` still calls into the DLPack struct when it dies, but only `tensor` keeps the
        # struct alive: give it a reference that nobody drops (a few hundred bytes a view).
        ctypes.pythonapi.Py_IncRef(ctypes.py_object(tensor._capsule_wrapper))
        return tensor

    @property
    def own_row(self) -> torch.Tensor:
        """uint8 `[size_bytes]`: the row on this rank's GPU."""
        return self.rows[self.group.rank]

    def close(self) -> None:
        """Unmap and release on all ranks; when it returns the memory is back. Idempotent."""
        if self._address is None:
            return
        import torch
        from flashinfer.comm.mnnvl import MnnvlMemory

        address, self._address, self.rows = self._address, None, None
        try:
            torch.cuda.synchronize(self.device)
            self.group.barrier("close a workspace")
        finally:
            MnnvlMemory.close_mnnvl_memory(address)
        self.group.barrier("close a workspace")  # a row is given back only when its last importer has let go

    def abort(self) -> None:
        """Like `close`, after an error: waits for no peer. The memory is back once all have done so. Idempotent.

        A row that a kernel still uses stays mapped: the kernel may spin for a peer for ever, and only the end of the
        process frees both.
        """
        from flashinfer.comm.mnnvl import MnnvlMemory

        address, self._address, self.rows = self._address, None, None
        if address is not None and comes_to_rest(self.device):
            MnnvlMemory.close_mnnvl_memory(address)

    def _zero(self) -> None:
        """The kernels' flags must start at zero, which recycled memory does not promise; no peer writes before."""
        import torch

        self.own_row.zero_()
        torch.cuda.synchronize(self.device)
        self.group.barrier()


def device_memory_bytes(device: torch.device) -> int:
    """Memory in use on the GPU by all processes (`cudaMemGetInfo`); torch's own statistics see no workspace."""
    import torch

    free_bytes, total_bytes = torch.cuda.mem_get_info(device)
    return total_bytes - free_bytes

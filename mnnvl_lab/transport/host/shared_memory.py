"""Symmetric memory on the `host` fabric: `[R, bytes]`, a shared segment per rank, which every rank maps side by side.

As MNNVL does on GPUs: each rank creates the memory of its own row and maps all rows at one stride into one stretch of
addresses, so that a row of any peer is an index away. Segments are POSIX shared memory without a name where the system
has that (Linux: `memfd_create`, which `/dev/shm`'s size does not limit), else files in the ranks' private directory
that lose their name once all have mapped them. Either way nothing is left when processes die.
"""

from __future__ import annotations

import ctypes
import mmap
import os
import weakref
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING

from mnnvl_lab.errors import RankError
from mnnvl_lab.ranks.sync import new_segment
from mnnvl_lab.workspace.mnnvl import align_up

if TYPE_CHECKING:
    import torch

    from mnnvl_lab.ranks.group import Group

PROT_NONE = 0
MAP_FIXED = 0x10  # Linux and macOS alike; not in Python's mmap
MAP_FAILED = ctypes.c_void_p(-1).value


class SharedMemory:
    """One allocation over a group. Collective.

    Args:
        group: its size is the number of rows.
        size_bytes: of one row, equal on all ranks; rows lie `stride_bytes` apart.
        directory: private to the ranks, for systems without nameless segments.

    Attributes:
        flat: uint8 `[R * stride_bytes]`, all rows, zero at first. Memory is taken page by page, as it is touched.

    Raises:
        RankError: a rank could not create or map a segment; on all ranks.
    """

    def __init__(self, group: Group, *, size_bytes: int, directory: Path):
        self.rank, self.size_bytes = group.rank, size_bytes
        self.stride_bytes = align_up(size_bytes, mmap.PAGESIZE)
        with ExitStack() as cleanup:
            made = new_segment("row", self.stride_bytes, directory)
            paths = _all_or_none(group, lambda: cleanup.enter_context(made))
            _all_or_none(group, lambda: self._map(paths, cleanup))

    def _map(self, paths: list[str], cleanup: ExitStack) -> None:
        files = [os.open(path, os.O_RDWR | os.O_CLOEXEC) for path in paths]
        for file in files:
            cleanup.callback(os.close, file)
        self.flat = _side_by_side(files, self.stride_bytes)

    def row(self, rank: int) -> torch.Tensor:
        """uint8 `[size_bytes]`: a member's row."""
        return self.flat[rank * self.stride_bytes :][: self.size_bytes]

    def close(self) -> None:
        """Let go of the memory; it is unmapped once no view of it is left. Idempotent."""
        self.flat = None


def _all_or_none(group: Group, function: Callable[[], str | None]) -> list[str | None]:
    """Every member's result; what fails on one member fails on all, so that none waits for it."""
    result = problem = None
    try:
        result = function()
    except OSError as error:
        problem = f"shared segment: {error}"
    answers = group.allgather((result, problem), call="open shared memory")
    for rank, (_, theirs) in zip(group.ranks, answers, strict=True):
        if theirs:
            raise RankError(rank=rank, phase="open", cause=theirs)
    return [theirs for theirs, _ in answers]


def _side_by_side(files: list[int], stride_bytes: int) -> torch.Tensor:
    """Map the files one behind the other into one reserved stretch of addresses."""
    import torch

    libc = _libc()
    total_bytes = stride_bytes * len(files)
    base = _mapped(libc, None, total_bytes, PROT_NONE, mmap.MAP_PRIVATE | mmap.MAP_ANON, -1)
    memory = (ctypes.c_uint8 * total_bytes).from_address(base)
    # Never at exit: views may still be alive then, and the system unmaps by itself.
    weakref.finalize(memory, libc.munmap, base, total_bytes).atexit = False
    both = mmap.PROT_READ | mmap.PROT_WRITE
    for place, file in enumerate(files):
        _mapped(libc, base + place * stride_bytes, stride_bytes, both, mmap.MAP_SHARED | MAP_FIXED, file)
    return torch.frombuffer(memory, dtype=torch.uint8)


def _libc() -> ctypes.CDLL:
    libc = ctypes.CDLL(None, use_errno=True)
    libc.mmap.restype = ctypes.c_void_p
    libc.mmap.argtypes = (*[ctypes.c_void_p, ctypes.c_size_t], *[ctypes.c_int] * 3, ctypes.c_long)
    libc.munmap.argtypes = (ctypes.c_void_p, ctypes.c_size_t)
    return libc


def _mapped(libc: ctypes.CDLL, address: int | None, size_bytes: int, protection: int, flags: int, file: int) -> int:
    mapped = libc.mmap(address, size_bytes, protection, flags, file, 0)
    if mapped == MAP_FAILED:
        error = ctypes.get_errno()
        raise OSError(error, f"cannot map {size_bytes} bytes: {os.strerror(error)}")
    return mapped

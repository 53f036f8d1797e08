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
import tempfile
import uuid
import weakref
from collections.abc import Callable
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from mnnvl_lab.errors import RankError
from mnnvl_lab.workspace.mnnvl import align_up

if TYPE_CHECKING:
    import torch

    from mnnvl_lab.ranks.rank import Group, Rank

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
            with _all_or_none(group):
                own = cleanup.enter_context(_new_segment(self.stride_bytes, directory))
            paths = group.allgather(own)
            with _all_or_none(group):
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


@contextmanager
def _all_or_none(group: Group):
    """What fails on one member fails on all, so that none waits for it."""
    problem = None
    try:
        yield
    except OSError as error:
        problem = f"shared segment: {error}"
    for rank, theirs in zip(group.ranks, group.allgather(problem), strict=True):
        if theirs:
            raise RankError(rank=rank, phase="open", cause=theirs)


@contextmanager
def _new_segment(size_bytes: int, directory: Path):
    """A zeroed segment under a path that works for as long as the context is open."""
    if hasattr(os, "memfd_create"):
        file, name = os.memfd_create("mnnvl_lab", os.MFD_CLOEXEC), None
        path = f"/proc/{os.getpid()}/fd/{file}"
        os.fchmod(file, 0o600)
    else:
        file, path = tempfile.mkstemp(prefix="segment-", dir=directory)
        name = path
    try:
        os.ftruncate(file, size_bytes)
        yield path
    finally:
        os.close(file)
        if name:
            os.unlink(name)


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


SHELF = "workspaces"  # its place in `Rank.kept`, whose objects are closed when the rank gets another layout


class Memory(Protocol):
    def close(self) -> None: ...


@dataclass(frozen=True, kw_only=True)
class Held:
    """A workspace in use: what it was laid out for, its memory, and the ticket that all its ranks hold."""

    plan: object
    memory: Memory
    ticket: str


@dataclass(frozen=True, kw_only=True)
class Shelf:
    """Workspaces put aside, by mode."""

    held: dict[str, Held] = field(default_factory=dict)

    def close(self) -> None:
        while self.held:
            self.held.popitem()[1].memory.close()


def keep_workspaces(rank: Rank) -> None:
    """From now on, transports that close on this rank leave their workspace to the next."""
    rank.kept.setdefault(SHELF, Shelf())


def release_workspaces(rank: Rank) -> None:
    """Free what is put aside, and free workspaces at once from now on."""
    rank.kept.pop(SHELF, Shelf()).close()


def take(rank: Rank, group: Group, name: str, need: object, allocate: Callable[[object], Memory]) -> Held:
    """The workspace put aside under `name` if it serves `need` on all ranks, else a new one. Collective.

    Args:
        need: a plan of `mnnvl_lab.workspace`. One with `fits` and `union` can grow; another must be equal to be reused.
        allocate: makes the memory of a plan. Collective.
    """
    shelf = rank.kept.get(SHELF, Shelf())
    held = shelf.held.pop(name, None)
    tickets = set(group.allgather(held and held.ticket))
    shared = held if held and tickets == {held.ticket} else None  # not where a rank was renewed
    if shared and _serves(shared.plan, need):
        return shared
    plan = (
        shared.plan.union(need) if shared and hasattr(need, "union") and shared.plan.ep_size == need.ep_size else need
    )
    if held:
        held.memory.close()
    del held, shared
    ticket = group.broadcast(uuid.uuid4().hex)
    return Held(plan=plan, memory=allocate(plan), ticket=ticket)


def put_back(rank: Rank, name: str, held: Held) -> None:
    """Keep a workspace that a transport is done with, or free it."""
    shelf = rank.kept.get(SHELF)
    if shelf is None:
        held.memory.close()
    else:
        shelf.held[name] = held


def _serves(plan: object, need: object) -> bool:
    return plan == need or (hasattr(plan, "fits") and plan.fits(need))

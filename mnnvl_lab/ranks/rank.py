"""A rank as its functions see it: place, groups and device; and its phase file, readable after it hangs or dies."""

from __future__ import annotations

import mmap
import os
import traceback
import weakref
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass
from datetime import timedelta
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mnnvl_lab.errors import RankDied
from mnnvl_lab.layout import Layout
from mnnvl_lab.processes.ownership import alive, process_of
from mnnvl_lab.ranks.group import SMALL_BYTES, Group

if TYPE_CHECKING:
    import torch
    import torch.distributed as dist

    from mnnvl_lab.ranks.board import Board

SIZE_BYTES = 64
REPORT_BYTES = 1 << 16


class PhaseFile:
    """The phase of this process, in a file that it maps (writing is a store to memory), and its last error, in another.

    An error is left before anything is cleaned up: cleaning up after a CUDA error may abort the process, and then
    nothing but these files says why.
    """

    def __init__(self, run_dir: Path):
        self._run_dir, self._reported = Path(run_dir), False
        path = self._run_dir / f"phase-{os.getpid()}"
        path.write_bytes(bytes(SIZE_BYTES))
        with path.open("r+b") as file:
            self._memory = mmap.mmap(file.fileno(), SIZE_BYTES)

    def write(self, words: str) -> None:
        self._memory[:] = words.encode()[:SIZE_BYTES].ljust(SIZE_BYTES, b"\0")

    def read(self) -> str:
        return _decode(self._memory[:])

    def report(self, error: BaseException) -> None:
        """Leave an exception's text; of several in one call the first, from which the others follow."""
        if not self._reported:
            with suppress(Exception):  # what is written here helps only if all else fails
                words = "".join(traceback.format_exception_only(error)).strip()
                frames = "".join(traceback.format_exception(error))
                text = f"{words}\0{frames}".encode(errors="replace")[:REPORT_BYTES]
                report_path(self._run_dir, os.getpid()).write_bytes(text)
                self._reported = True

    def forget_report(self) -> None:
        """What happened in an earlier call is no cause for what happens from now on."""
        if self._reported:
            report_path(self._run_dir, os.getpid()).unlink(missing_ok=True)
            self._reported = False


def read_phase(run_dir: Path, pid: int) -> str:
    """What process `pid` last wrote, or nothing if it never did."""
    try:
        return _decode((Path(run_dir) / f"phase-{pid}").read_bytes())
    except FileNotFoundError:
        return ""


def report_path(run_dir: Path, pid: int) -> Path:
    return Path(run_dir) / f"error-{pid}"


def read_report(run_dir: Path, pid: int) -> tuple[str, str]:
    """The error that process `pid` met in its last call, in a line or two, and its traceback; empty if it met none."""
    with suppress(OSError):
        words, _, frames = report_path(run_dir, pid).read_bytes().decode(errors="replace").partition("\0")
        return words, frames
    return "", ""


def _decode(raw: bytes) -> str:
    return raw.rstrip(b"\0").decode(errors="ignore")


COLLECTIVE_TIMEOUT_S = 120  # of Gloo and NCCL, far above a run's own limit: that one names the rank that is missing


@dataclass(frozen=True, kw_only=True)
class RankAssignment:
    """A rank's place, as the notebook's process assigns it.

    Attributes:
        index: global rank.
        gpu: index among the visible GPUs, None on `host`.
        store: host and port of rank 0's TCPStore.
        round: counts the assignments of one `Ranks`, so that groups of earlier ones are not met.
        segment_dir: private directory in memory, for shared segments.
        hosts, memories: of each rank: its machine's name, and what is equal for ranks that share POSIX memory.
        processes: of each rank, pid and start time (`ownership.started`) on its machine.
    """

    index: int
    layout: Layout
    fabric: str
    gpu: int | None
    store: tuple[str, int]
    round: int
    segment_dir: Path
    hosts: tuple[str, ...]
    memories: tuple[str, ...]
    processes: tuple[tuple[int, float], ...]


class Rank:
    """One rank, in its own process.

    Attributes:
        index: global rank.
        layout: the layout that it is part of.
        fabric: `host`, `nvlink` or `shared_gpu`.
        hosts: each global rank's machine.
        device: the torch device that holds its tensors. All visible GPUs stay visible, for peer access.
        segment_dir: directory (0700, in memory on Linux) for files that ranks share; swept when the ranks go.
        kept: objects that outlive a call. When the rank gets another layout they are closed: by `abort`, which waits
            for no other rank, where they have it, else by `close`.
        groups: those used so far, by name.
        watched: weak reference to the transport that moved last: the one to look at when the rank hangs.
    """

    def __init__(self, assignment: RankAssignment, mark: PhaseFile):
        self.index, self.layout, self.fabric = assignment.index, assignment.layout, assignment.fabric
        self.segment_dir = Path(assignment.segment_dir)
        self.hosts, self._memories = assignment.hosts, assignment.memories
        self._processes = assignment.processes
        self.device = _device(assignment)
        self.kept: dict[str, Any] = {}
        self.groups: dict[str, Group] = {}
        self.watched: weakref.ref | None = None
        self._phase_file = mark
        self._store = _init_world(assignment)

    def __repr__(self):
        return f"Rank({self.index} of {self.layout.world_size}, {self.fabric}, {self.device})"

    @property
    def phase(self) -> str:
        """What the rank is doing, readable from outside even when it hangs or has died. Costs about a microsecond."""
        return self._phase_file.read()

    @phase.setter
    def phase(self, words: str) -> None:
        self._phase_file.write(words)

    def report(self, error: BaseException) -> None:
        """Leave an error where it is found even if cleaning up after it ends the process."""
        self._phase_file.report(error)

    def group(self, name: str) -> Group:
        """This rank's group `world`, `ep`, `tp`, `dp`, `pcp` or `pp`."""
        if name in self.groups:
            return self.groups[name]
        world = name == "world"
        return self.subgroup(
            name, tuple(range(self.layout.world_size)) if world else self.layout.group_of(name, self.index)
        )

    def subgroup(self, name: str, ranks: tuple[int, ...]) -> Group:
        """A group of these global ranks, this one among them; the same one whenever it is asked for by this name."""
        if name not in self.groups:
            board = self._board if self.fabric == "host" and self.shares_memory(ranks) else None
            self.groups[name] = Group(name=name, ranks=ranks, member=self.index, fabric=self.fabric, board=board)
        return self.groups[name]

    def shares_memory(self, ranks: Iterable[int]) -> bool:
        """Whether these global ranks share POSIX memory, as processes of one machine do."""
        return len({self._memories[rank] for rank in ranks}) == 1

    def require_alive(self, ranks: Iterable[int]) -> None:
        """Check that the processes of these ranks, which share this one's memory, still run.

        Raises:
            RankDied: names the first that does not.
        """
        for rank in ranks:
            process = process_of(*self._processes[rank])
            if process is None or not alive(process):
                cause = f"its process ended while rank {self.index} waited for it"
                raise RankDied(rank=rank, phase=self.phase, cause=cause)

    def _board(self, group: Group) -> Board:
        from mnnvl_lab.ranks.board import Board

        return Board(
            f"group {group.name} {group.ranks}",
            ranks=group.ranks,
            place=group.rank,
            slot_bytes=SMALL_BYTES,
            store=self._store,
            directory=self.segment_dir,
            check=partial(self.require_alive, group.ranks),  # not the group, or board and group would hold each other
            limit_s=COLLECTIVE_TIMEOUT_S,
        )

    def close(self) -> None:
        """Close what is kept, the last first, and leave all groups; waits for no other rank, since some may be dead."""
        import torch.distributed as dist

        for kept in reversed(self.kept.values()):
            with suppress(Exception):
                getattr(kept, "abort", getattr(kept, "close", lambda: None))()
        self.kept.clear()
        self.groups.clear()
        dist.destroy_process_group()


def _device(assignment: RankAssignment) -> torch.device:
    import torch

    if assignment.gpu is None:
        torch.set_num_threads(1)
        return torch.device("cpu")
    torch.cuda.set_device(assignment.gpu)
    return torch.device("cuda", assignment.gpu)


def _init_world(assignment: RankAssignment) -> dist.Store:
    """Join the world of all ranks, and return the store through which its members find one another."""
    import torch.distributed as dist

    host, port = assignment.store
    timeout = timedelta(seconds=COLLECTIVE_TIMEOUT_S)
    store = dist.PrefixStore(f"round{assignment.round}", dist.TCPStore(host, port, is_master=False, timeout=timeout))
    dist.init_process_group(
        backend="gloo",
        store=store,
        rank=assignment.index,
        world_size=assignment.layout.world_size,
        timeout=timeout,
    )
    return store

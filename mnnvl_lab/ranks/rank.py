"""A rank as its functions see it: place, groups and device; and its phase file, readable after it hangs or dies."""

from __future__ import annotations

import hashlib
import mmap
import os
import pickle
import traceback
import weakref
from collections.abc import Iterable
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import timedelta
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any
from unittest import mock

from mnnvl_lab.errors import Refused
from mnnvl_lab.layout import Layout

if TYPE_CHECKING:
    import torch
    import torch.distributed as dist

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


SMALL_BYTES = 2048  # of one gathered object: signatures, problems and a few samples fit


class Group:
    """Collective operations among some ranks of the layout. Every member calls the same ones in the same order.

    Connections are made at first use, by the members alone: other ranks need not take part.

    Attributes:
        name: `world`, `ep`, `tp`, `dp`, `pcp` or `pp`.
        ranks: global ranks of the members, in the group's order.
        rank: this process's place among them.
        size: how many they are.
        begun, done: collective calls that this member has begun, and finished: who lags behind is whom others await.
    """

    def __init__(self, *, name: str, ranks: tuple[int, ...], member: int, fabric: str):
        self.name, self.ranks, self.fabric = name, tuple(ranks), fabric
        self.rank, self.size = self.ranks.index(member), len(self.ranks)
        self.begun = self.done = 0

    def __repr__(self):
        return f"Group({self.name}, ranks {list(self.ranks)}, this is {self.rank})"

    @cached_property
    def process_group(self) -> dist.ProcessGroup:
        """The torch.distributed group over Gloo, for objects and host tensors."""
        return self._new_group("gloo")

    @cached_property
    def device_group(self) -> dist.ProcessGroup:
        """The torch.distributed group for tensors on the ranks' own device: NCCL where each rank has a GPU.

        Raises:
            Refused: several ranks share a GPU, which NCCL does not allow.
        """
        if self.fabric == "host":
            return self.process_group
        if self.fabric == "shared_gpu":
            raise Refused(
                "NCCL on fabric shared_gpu: it refuses two ranks on one GPU (Duplicate GPU detected); "
                "use fabric nvlink for the NCCL baselines, with one GPU per rank"
            )
        return self._new_group("nccl")

    def allgather(self, obj: Any) -> list[Any]:
        """Every member's object, in the group's order.

        One collective call for objects whose pickle fits `SMALL_BYTES` on every member, two otherwise (torch's
        `all_gather_object` always takes two: sizes, then contents).
        """
        if self.size == 1:
            return [obj]
        data = pickle.dumps(obj)
        with self._counted():
            heads = self._gather_bytes(len(data).to_bytes(8, "little") + data[: SMALL_BYTES - 8], SMALL_BYTES)
            sizes = [int.from_bytes(head[:8], "little") for head in heads]
            if max(sizes) <= SMALL_BYTES - 8:
                return [pickle.loads(head[8 : 8 + size]) for head, size in zip(heads, sizes, strict=True)]
            whole = self._gather_bytes(data, max(sizes))
        return [pickle.loads(part[:size]) for part, size in zip(whole, sizes, strict=True)]

    def _gather_bytes(self, data: bytes, room_bytes: int) -> list[bytes]:
        """Every member's `data`, filled up to `room_bytes`, which is equal on all members."""
        import torch
        import torch.distributed as dist

        mine = torch.frombuffer(bytearray(data.ljust(room_bytes, b"\0")), dtype=torch.uint8)
        parts = [torch.empty_like(mine) for _ in range(self.size)]
        dist.all_gather(parts, mine, group=self.process_group)
        return [part.numpy().tobytes() for part in parts]

    def broadcast(self, obj: Any, root: int = 0) -> Any:
        """The object of the member `root` (its place in the group) on all members."""
        if self.size == 1:
            return obj
        import torch.distributed as dist

        box = [obj]
        with self._counted():
            dist.broadcast_object_list(box, group_src=root, group=self.process_group)
        return box[0]

    def barrier(self) -> None:
        """Wait until every member is here."""
        if self.size > 1:
            import torch.distributed as dist

            with self._counted():
                dist.barrier(group=self.process_group)

    @contextmanager
    def _counted(self):
        self.begun += 1
        yield
        self.done += 1

    def _new_group(self, backend: str) -> dist.ProcessGroup:
        import torch.distributed as dist

        if backend == "gloo" and self.size == dist.get_world_size() and self.ranks == tuple(range(self.size)):
            return dist.group.WORLD
        with _group_name(f"{self.name} {self.ranks} {backend}"):
            return dist.new_group(list(self.ranks), backend=backend, use_local_synchronization=True)


@contextmanager
def _group_name(words: str):
    """Let the members of the next group meet under these words, which must be new to this world.

    torch names a group after its ranks and after how many groups the process has seen: members with different pasts (a
    rank mask left one out of an earlier group, say) would then wait for one another under different names for ever.
    """
    from torch.distributed import distributed_c10d

    name = hashlib.sha1(words.encode(), usedforsecurity=False).hexdigest()
    with mock.patch.object(distributed_c10d, "_hash_ranks_to_str", return_value=name):
        yield


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
        self.device = _device(assignment)
        self.kept: dict[str, Any] = {}
        self.groups: dict[str, Group] = {}
        self.watched: weakref.ref | None = None
        self._phase_file = mark
        _init_world(assignment)

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
        if name not in self.groups:
            world = tuple(range(self.layout.world_size))
            ranks = world if name == "world" else self.layout.group_of(name, self.index)
            self.groups[name] = Group(name=name, ranks=ranks, member=self.index, fabric=self.fabric)
        return self.groups[name]

    def shares_memory(self, ranks: Iterable[int]) -> bool:
        """Whether these global ranks share POSIX memory, as processes of one machine do."""
        return len({self._memories[rank] for rank in ranks}) == 1

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


def _init_world(assignment: RankAssignment) -> None:
    import torch.distributed as dist

    host, port = assignment.store
    timeout = timedelta(seconds=COLLECTIVE_TIMEOUT_S)
    store = dist.TCPStore(host, port, is_master=False, timeout=timeout)
    dist.init_process_group(
        backend="gloo",
        store=dist.PrefixStore(f"round{assignment.round}", store),
        rank=assignment.index,
        world_size=assignment.layout.world_size,
        timeout=timeout,
    )

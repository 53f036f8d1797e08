"""What a rank function is given: this process's place in the layout, its device, its groups."""

from __future__ import annotations

import weakref
from contextlib import suppress
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mnnvl_lab.layout import Layout
from mnnvl_lab.ranks.group import Group
from mnnvl_lab.ranks.mark import Mark

if TYPE_CHECKING:
    import torch

COLLECTIVE_TIMEOUT_S = 120  # of Gloo and NCCL, far above a run's own limit: that one names the rank that is missing


@dataclass(frozen=True, kw_only=True)
class Seat:
    """A rank's place, as the notebook's process assigns it.

    Attributes:
        index: global rank.
        gpu: index among the visible GPUs, None on `host`.
        store: host and port of rank 0's TCPStore.
        round: counts the assignments of one `Ranks`, so that groups of earlier ones are not met.
        segment_dir: private directory in memory, for shared segments.
    """

    index: int
    layout: Layout
    fabric: str
    gpu: int | None
    store: tuple[str, int]
    round: int
    segment_dir: Path


class Rank:
    """One rank, in its own process.

    Attributes:
        index: global rank.
        layout: the layout that it is part of.
        fabric: `host`, `nvlink` or `shared_gpu`.
        device: the torch device that holds its tensors. All visible GPUs stay visible, for peer access.
        segment_dir: directory (0700, in memory on Linux) for files that ranks share; swept when the ranks go.
        kept: objects that outlive a call. When the rank gets another layout they are closed: by `abandon`, which waits
            for no other rank, where they have it, else by `close`.
        groups: those used so far, by name.
        watched: weak reference to the transport that moved last: the one to look at when the rank hangs.
    """

    def __init__(self, seat: Seat, mark: Mark):
        self.index, self.layout, self.fabric = seat.index, seat.layout, seat.fabric
        self.segment_dir = Path(seat.segment_dir)
        self.device = _device(seat)
        self.kept: dict[str, Any] = {}
        self.groups: dict[str, Group] = {}
        self.watched: weakref.ref | None = None
        self._mark = mark
        _init_world(seat)

    def __repr__(self):
        return f"Rank({self.index} of {self.layout.world_size}, {self.fabric}, {self.device})"

    @property
    def phase(self) -> str:
        """What the rank is doing, readable from outside even when it hangs or has died. Costs about a microsecond."""
        return self._mark.read()

    @phase.setter
    def phase(self, words: str) -> None:
        self._mark.write(words)

    def report(self, error: BaseException) -> None:
        """Leave an error where it is found even if cleaning up after it ends the process."""
        self._mark.report(error)

    def group(self, name: str) -> Group:
        """This rank's group `world`, `ep`, `tp`, `dp`, `pcp` or `pp`."""
        if name not in self.groups:
            world = tuple(range(self.layout.world_size))
            ranks = world if name == "world" else self.layout.group_of(name, self.index)
            self.groups[name] = Group(name=name, ranks=ranks, member=self.index, fabric=self.fabric)
        return self.groups[name]

    def close(self) -> None:
        """Close what is kept, the last first, and leave all groups; waits for no other rank, since some may be dead."""
        import torch.distributed as dist

        for kept in reversed(self.kept.values()):
            with suppress(Exception):
                getattr(kept, "abandon", getattr(kept, "close", lambda: None))()
        self.kept.clear()
        self.groups.clear()
        dist.destroy_process_group()


def _device(seat: Seat) -> torch.device:
    import torch

    if seat.gpu is None:
        torch.set_num_threads(1)
        return torch.device("cpu")
    torch.cuda.set_device(seat.gpu)
    return torch.device("cuda", seat.gpu)


def _init_world(seat: Seat) -> None:
    import torch.distributed as dist

    host, port = seat.store
    timeout = timedelta(seconds=COLLECTIVE_TIMEOUT_S)
    store = dist.TCPStore(host, port, is_master=False, timeout=timeout)
    dist.init_process_group(
        backend="gloo",
        store=dist.PrefixStore(f"round{seat.round}", store),
        rank=seat.index,
        world_size=seat.layout.world_size,
        timeout=timeout,
    )

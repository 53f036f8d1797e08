"""What multi-node NVLink memory takes for a workspace: FlashInfer 0.7.2's `MnnvlMemory` (`comm/mnnvl.py`).

Each rank creates its own row of the workspace, rounded up to the driver's granularity, and maps every peer's row at a
fixed distance from its own. Only its own row takes memory; the rest is address space.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from mnnvl_lab.workspace.region import align_up, require_at_least

GRANULARITY_BYTES = 2 * 1024**2  # cuMemGetAllocationGranularity(RECOMMENDED) on H100
PAGE_BYTES = 512 * 1024**2  # MnnvlMemory.fabric_page_size


@dataclass(frozen=True, kw_only=True)
class Allocation:
    """One workspace of `asked_bytes` a rank over `ep_size` ranks, in a window of its own.

    Raises:
        Refused: a size below 1.
    """

    asked_bytes: int
    ep_size: int

    def __post_init__(self):
        require_at_least(1, asked_bytes=self.asked_bytes, ep_size=self.ep_size)

    @property
    def allocated_bytes(self) -> int:
        """Memory of this rank's GPU that is gone."""
        return align_up(self.asked_bytes, GRANULARITY_BYTES)

    @property
    def rank_stride_bytes(self) -> int:
        """Distance between the rows of two ranks in the address space."""
        return align_up(self.allocated_bytes, PAGE_BYTES)

    @property
    def mapped_bytes(self) -> int:
        """Address space with memory behind it: all ranks' rows, as one rank sees them."""
        return self.ep_size * self.allocated_bytes

    @property
    def reserved_bytes(self) -> int:
        return self.ep_size * self.rank_stride_bytes


@dataclass(frozen=True, kw_only=True)
class Window:
    """A reserved stretch of addresses in which allocations lie one behind the other.

    Attributes:
        first: the allocation for which it was reserved: it fixes the distance between ranks.
        later: those packed behind it.
    """

    first: Allocation
    later: tuple[Allocation, ...] = ()

    @property
    def allocations(self) -> tuple[Allocation, ...]:
        return (self.first, *self.later)

    @property
    def allocated_bytes(self) -> int:
        return sum(allocation.allocated_bytes for allocation in self.allocations)

    @property
    def mapped_bytes(self) -> int:
        return sum(allocation.mapped_bytes for allocation in self.allocations)

    @property
    def reserved_bytes(self) -> int:
        return self.first.reserved_bytes

    def has_room(self, allocation: Allocation) -> bool:
        return self.allocated_bytes + allocation.allocated_bytes <= self.first.rank_stride_bytes


def pack(asked_bytes: Sequence[int], *, ep_size: int) -> tuple[Window, ...]:
    """The windows of several workspaces, all alive, allocated in this order.

    An allocation goes behind the last one if the window has room, else into a new window: what an older window has left
    stays unused.
    """
    windows: list[Window] = []
    for size in asked_bytes:
        allocation = Allocation(asked_bytes=size, ep_size=ep_size)
        if windows and windows[-1].has_room(allocation):
            windows[-1] = replace(windows[-1], later=(*windows[-1].later, allocation))
        else:
            windows.append(Window(first=allocation))
    return tuple(windows)

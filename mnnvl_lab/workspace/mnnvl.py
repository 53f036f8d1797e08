"""Regions of a workspace, alignment, and the memory that MNNVL allocations take on a GPU."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from mnnvl_lab.errors import Refused

if TYPE_CHECKING:
    import numpy as np


def align_up(size_bytes: int, alignment_bytes: int) -> int:
    """The next multiple of `alignment_bytes` at or above `size_bytes`."""
    return -(-size_bytes // alignment_bytes) * alignment_bytes


def require_at_least(minimum: int, **values: int) -> None:
    """Refuse values below `minimum`.

    Raises:
        Refused: names the value.
    """
    for name, value in values.items():
        if value < minimum:
            raise Refused(f"{name} is {value}: it must be at least {minimum}; a workspace has no smaller size")


@dataclass(frozen=True, kw_only=True)
class Region:
    """A stretch of the bytes that one rank owns.

    Attributes:
        name: what it holds.
        offset_bytes: first byte, counted from the start of the rank's own row.
        size_bytes: its length; 0 for a region that is not in use.
        dtype: numpy's name of the element type.
        shape: of the array that fills it.
    """

    name: str
    offset_bytes: int
    size_bytes: int
    dtype: str
    shape: tuple[int, ...]

    @property
    def end_bytes(self) -> int:
        return self.offset_bytes + self.size_bytes


def split_regions(row: np.ndarray, regions: Sequence[Region], *, begin_bytes: int = 0) -> dict[str, np.ndarray]:
    """Named views of workspace regions.

    Args:
        row: uint8, a rank's row from byte `begin_bytes` on.
        regions: of that row.
    """
    return {
        region.name: row[region.offset_bytes - begin_bytes : region.end_bytes - begin_bytes]
        .view(region.dtype)
        .reshape(region.shape)
        for region in regions
    }


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

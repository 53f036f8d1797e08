"""Predicted memory of a workspace beside what the GPU has really given."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from mnnvl_lab.transport.exchange import Exchange
from mnnvl_lab.transport.symmetric import device_memory_bytes

if TYPE_CHECKING:
    from mnnvl_lab.ranks.rank import Rank


@dataclass(frozen=True, kw_only=True)
class Footprint:
    """Memory of one GPU, all of its ranks together.

    Attributes:
        asked_bytes: of the workspaces, as the kernels want them.
        predicted_bytes: rounded up to the driver's granularity.
        taken_bytes: what opening took, by `cudaMemGetInfo`.
        left_bytes: what closing left taken; 0 is right.
    """

    asked_bytes: int
    predicted_bytes: int
    taken_bytes: int
    left_bytes: int


def footprint(rank: Rank, exchange: Exchange) -> Footprint:
    """Rank function: open and close a transport and read the GPU's memory between. Collective over all ranks.

    One opening goes ahead uncounted: it loads modules and fills torch's pools, which stay.
    """
    from mnnvl_lab.transport import open_transport

    sharing = rank.group("world").allgather(str(rank.device)).count(str(rank.device))
    with open_transport(rank, exchange):
        pass
    before = _settled_bytes(rank)
    with open_transport(rank, exchange) as transport:
        during = _settled_bytes(rank)
        allocations = transport.allocations
    return Footprint(
        asked_bytes=sharing * sum(allocation.asked_bytes for allocation in allocations),
        predicted_bytes=sharing * sum(allocation.allocated_bytes for allocation in allocations),
        taken_bytes=during - before,
        left_bytes=_settled_bytes(rank) - before,
    )


def _settled_bytes(rank: Rank) -> int:
    """Memory in use on this rank's GPU while no rank allocates or frees."""
    world = rank.group("world")
    world.barrier()
    used = device_memory_bytes(rank.device)
    world.barrier()
    return used

"""One reading of memory, on a GPU or on a host, while no rank allocates or frees."""

from __future__ import annotations

import gc
from dataclasses import dataclass
from typing import TYPE_CHECKING

import psutil

from mnnvl_lab.transport.symmetric import device_memory_bytes

if TYPE_CHECKING:
    from mnnvl_lab.ranks.rank import Rank

SEGMENT_NAME = "mnnvl_lab"  # in the paths of `transport.segments`
LISTS_MAPPINGS = hasattr(psutil.Process, "memory_maps")  # not on macOS


@dataclass(frozen=True, kw_only=True)
class Reading:
    """Memory at one moment, while no rank allocates or frees.

    Attributes:
        used_bytes: of the GPU, by all processes; on `host` the segments that this process maps.
        torch_bytes: held by torch's allocators, of all ranks on the GPU; 0 on `host`.
        resident_bytes: this process's share of the machine's own memory.
    """

    used_bytes: int
    torch_bytes: int
    resident_bytes: int


def read_memory(rank: Rank) -> Reading:
    """Between two barriers, so that no rank is in the middle of a step."""
    world = rank.group("world")
    if rank.device.type == "cuda":
        reading = _read_device(rank)
    else:
        world.barrier()
        reading = Reading(used_bytes=segment_bytes(), torch_bytes=0, resident_bytes=_resident_bytes())
    world.barrier()
    return reading


def _read_device(rank: Rank) -> Reading:
    import torch

    torch.cuda.synchronize(rank.device)
    held = rank.group("world").allgather((str(rank.device), torch.cuda.memory_reserved(rank.device)))
    return Reading(
        used_bytes=device_memory_bytes(rank.device),
        torch_bytes=sum(reserved for device, reserved in held if device == str(rank.device)),
        resident_bytes=_resident_bytes(),
    )


def segment_bytes() -> int:
    """Bytes of shared segments that this process maps; 0 where the system does not list mappings."""
    maps = psutil.Process().memory_maps(grouped=False) if LISTS_MAPPINGS else ()
    return sum(entry.size for entry in maps if SEGMENT_NAME in _file(entry.path))


def _file(path: str) -> str:
    """Segments are `/memfd:mnnvl_lab`, or `segment-...` in a directory of the ranks whose name has it too."""
    return path if path.startswith("/memfd:") or "/segment-" in path else ""


def _resident_bytes() -> int:
    return psutil.Process().memory_info().rss


def release(rank: Rank) -> None:
    """Give back what only garbage and torch's cache still hold."""
    gc.collect()
    if rank.device.type == "cuda":
        import torch

        torch.cuda.synchronize(rank.device)
        torch.cuda.empty_cache()

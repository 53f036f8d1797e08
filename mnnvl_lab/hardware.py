"""GPUs that a plan can be for: multiprocessors, memory, and the rates of their links and memory on paper."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from difflib import get_close_matches
from types import MappingProxyType

from mnnvl_lab.errors import Refused

MIB = 1024**2


@dataclass(frozen=True, kw_only=True)
class Gpu:
    """One GPU.

    Attributes:
        name: as the vendor writes it.
        multiprocessors: that a kernel may use; they fix the channels of the two-sided workspace.
        memory_bytes: as nvidia-smi reports it, before a context takes its share.
        nvlink_gigabytes_per_s: nominal, one direction, all links of the GPU together.
        hbm_gigabytes_per_s: nominal.
        source: where the numbers stand.
    """

    name: str
    multiprocessors: int
    memory_bytes: int
    nvlink_gigabytes_per_s: float
    hbm_gigabytes_per_s: float
    source: str


GPUS: Mapping[str, Gpu] = MappingProxyType(
    {
        "h100": Gpu(
            name="H100 SXM",
            multiprocessors=132,
            memory_bytes=81559 * MIB,
            nvlink_gigabytes_per_s=450,
            hbm_gigabytes_per_s=3350,
            source="NVIDIA H100 datasheet (900 GB/s NVLink both ways, 3.35 TB/s); nvidia-smi: 81559 MiB",
        ),
        "h200": Gpu(
            name="H200 SXM",
            multiprocessors=132,
            memory_bytes=143771 * MIB,
            nvlink_gigabytes_per_s=450,
            hbm_gigabytes_per_s=4800,
            source="NVIDIA H200 datasheet (900 GB/s NVLink both ways, 4.8 TB/s); nvidia-smi: 143771 MiB",
        ),
        "b200": Gpu(
            name="B200 SXM",
            multiprocessors=148,
            memory_bytes=183359 * MIB,
            nvlink_gigabytes_per_s=900,
            hbm_gigabytes_per_s=8000,
            source="NVIDIA DGX B200 datasheet (1.8 TB/s NVLink both ways, 64 TB/s for 8 GPUs); nvidia-smi: 183359 MiB; "
            "148 multiprocessors by cudaDeviceProp (FlashInfer 0.7.2, FALLBACK_SM_COUNT_B200)",
        ),
        "gb200": Gpu(
            name="GB200 (one of its GPUs)",
            multiprocessors=152,
            memory_bytes=189471 * MIB,
            nvlink_gigabytes_per_s=900,
            hbm_gigabytes_per_s=8000,
            source="NVIDIA GB200 NVL72 datasheet (1.8 TB/s NVLink both ways, 16 TB/s for 2 GPUs); nvidia-smi: "
            "189471 MiB; 152 multiprocessors as users report of cudaDeviceProp",
        ),
    }
)


def require_gpu(name: str) -> Gpu:
    """The GPU of that name.

    Raises:
        Refused: there is none; says which there are.
    """
    if name in GPUS:
        return GPUS[name]
    near = get_close_matches(str(name).lower(), GPUS, n=1, cutoff=0.4)
    hint = f"did you mean {near[0]}? " if near else ""
    raise Refused(
        f"gpu {name!r} is not in the table: {hint}choose one of {', '.join(GPUS)}, or make a Gpu of its numbers"
    )

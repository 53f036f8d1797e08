"""GPUs that a plan can be for: multiprocessors, memory, and the rates of their links and memory on paper."""

from __future__ import annotations

import math
import os
import time
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from numbers import Real
from types import MappingProxyType
from typing import TYPE_CHECKING

from mnnvl_lab.arguments import whole_in
from mnnvl_lab.errors import Refused, choose, named_arguments, require_count, shown
from mnnvl_lab.layout import Layout, require_layout

if TYPE_CHECKING:
    import torch

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
        nvlink_domain: GPUs that reach one another over NVLink.
        multi_node: whether such a domain spans nodes (MNNVL); otherwise NVLink ends at the node.
        source: where the numbers stand.

    Raises:
        Refused: a count or a rate is no positive number.
    """

    name: str
    multiprocessors: int
    memory_bytes: int
    nvlink_gigabytes_per_s: float
    hbm_gigabytes_per_s: float
    nvlink_domain: int = 8
    multi_node: bool = False
    source: str

    def __post_init__(self):
        for field in ("multiprocessors", "nvlink_domain"):
            require_count(field, getattr(self, field))
        require_count("memory_bytes", self.memory_bytes, most=2**63 - 1)
        for field in ("nvlink_gigabytes_per_s", "hbm_gigabytes_per_s"):
            rate = getattr(self, field)
            if not isinstance(rate, Real) or not 0 < rate < math.inf:
                raise Refused(f"{field} is {shown(rate)}: it must be a positive number; pass a rate in GB/s")

    def domain_size(self, layout: Layout) -> int:
        """Consecutive ranks of `layout` that reach one another over NVLink, one GPU per rank."""
        return self.nvlink_domain if self.multi_node else min(self.nvlink_domain, layout.gpus_per_node)


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
        "h20": Gpu(
            name="H20 SXM",
            multiprocessors=78,
            memory_bytes=97871 * MIB,
            nvlink_gigabytes_per_s=450,
            hbm_gigabytes_per_s=4000,
            source="NVIDIA H20 data sheet (900 GB/s NVLink both ways, 4.0 TB/s); nvidia-smi: 97871 MiB "
            "(nvtrust #128); 78 multiprocessors by cudaDeviceProp as users report",
        ),
        "b300": Gpu(
            name="B300 SXM",
            multiprocessors=148,
            memory_bytes=275040 * MIB,
            nvlink_gigabytes_per_s=900,
            hbm_gigabytes_per_s=8000,
            source="NVIDIA DGX B300 data sheet (1.8 TB/s NVLink both ways, 8 TB/s per GPU); nvidia-smi: 275040 MiB and "
            "148 multiprocessors by cudaDeviceProp as users report",
        ),
        "gb200": Gpu(
            name="GB200 (one of its GPUs)",
            multiprocessors=152,
            memory_bytes=189471 * MIB,
            nvlink_gigabytes_per_s=900,
            hbm_gigabytes_per_s=8000,
            nvlink_domain=72,
            multi_node=True,
            source="NVIDIA GB200 NVL72 datasheet (1.8 TB/s NVLink both ways, 16 TB/s for 2 GPUs); nvidia-smi: "
            "189471 MiB; 152 multiprocessors as users report of cudaDeviceProp",
        ),
        "gb300": Gpu(
            name="GB300 (one of its GPUs)",
            multiprocessors=152,
            memory_bytes=284208 * MIB,
            nvlink_gigabytes_per_s=900,
            hbm_gigabytes_per_s=8000,
            nvlink_domain=72,
            multi_node=True,
            source="NVIDIA GB300 NVL72 data sheet (1.8 TB/s NVLink both ways, 576 TB/s for 72 GPUs); nvidia-smi: "
            "284208 MiB and 152 multiprocessors by cudaDeviceProp as users report",
        ),
    }
)


@named_arguments
def require_gpu(gpu: Gpu | str) -> Gpu:
    """The GPU of that name, in any case; a `Gpu` is returned as it is.

    Raises:
        Refused: there is none; says which there are.
    """
    return gpu if isinstance(gpu, Gpu) else GPUS[choose(gpu, GPUS, "gpu", remedy="or make a Gpu of its numbers")]


def domain_problems(layout: Layout, gpu: Gpu) -> Iterator[str]:
    """Why NVLink does not carry the EP groups of `layout`, as a sentence; nothing if it does.

    The modes `one_sided` and `two_sided` map every peer's memory, so that an EP group must lie in one NVLink domain.
    Ranks are placed in order: rank `r` is in domain `r // domain_size`.

    Raises:
        Refused: `layout` is no Layout, or `gpu` no Gpu.
    """
    require_layout(layout)
    if not isinstance(gpu, Gpu):
        raise Refused(f"gpu is {shown(gpu)}: pass a Gpu, or a name through require_gpu")
    size = gpu.domain_size(layout)
    group = max(layout.groups("ep"), key=lambda ranks: ranks[-1] // size - ranks[0] // size)
    domains = len({rank // size for rank in group})
    if domains > 1:
        ends = "one NVLink domain (MNNVL)" if gpu.multi_node else "one node, where NVLink ends"
        yield (
            f"an EP group of {layout.ep_size} ranks (such as {group[0]} to {group[-1]}) spans {domains} NVLink domains "
            f"of {size} GPUs: on {gpu.name} its ranks must share {ends}; {_domain_remedy(layout, size)}"
        )


def _domain_remedy(layout: Layout, size: int) -> str:
    larger = [name for name, gpu in GPUS.items() if gpu.multi_node and layout.world_size <= gpu.domain_size(layout)]
    remedies = [f"use EP groups of at most {size} consecutive ranks (TP and DP inside one domain)"]
    remedies += [f"plan for {' or '.join(larger)}"] if larger else []
    return ", ".join([*remedies, "or mode allgather_reducescatter, which NCCL carries over the network"])


REST_LIMIT_S = 0.5  # what is enqueued takes milliseconds, unless it waits for a peer


def count_visible_gpus() -> int:
    """GPUs of this machine that `CUDA_VISIBLE_DEVICES` leaves visible; 0 without a driver."""
    return len(visible(_uuids(), os.environ.get("CUDA_VISIBLE_DEVICES")))


def visible(uuids: list[str], listed: str | None) -> list[str]:
    """Those of the machine's GPUs that CUDA would show, in its order.

    Args:
        uuids: of all GPUs, in the driver's order.
        listed: value of `CUDA_VISIBLE_DEVICES`: indices or beginnings of UUIDs. As CUDA does, what follows the first
            entry that names no GPU is ignored.
    """
    if listed is None:
        return list(uuids)
    chosen = []
    for entry in listed.split(","):
        matches = _matches(uuids, entry.strip())
        if len(matches) != 1:
            break
        chosen += matches
    return chosen


def _matches(uuids: list[str], entry: str) -> list[str]:
    if isinstance(index := whole_in(entry), int):
        return uuids[index : index + 1] if index >= 0 else []
    return [uuid for uuid in uuids if entry and uuid.startswith(entry)]


def _uuids() -> list[str]:
    with suppress(ImportError):  # comes with FlashInfer
        import pynvml

        try:
            pynvml.nvmlInit()
        except pynvml.NVMLError:
            return []
        try:
            handles = map(pynvml.nvmlDeviceGetHandleByIndex, range(pynvml.nvmlDeviceGetCount()))
            return [pynvml.nvmlDeviceGetUUID(handle) for handle in handles]
        finally:
            pynvml.nvmlShutdown()
    return []


def nvlink_domain(gpu: int) -> str:
    """Multi-node NVLink domain of a visible GPU: cluster UUID and clique, as NVML tells; empty if it is in none.

    Args:
        gpu: index among the visible GPUs.
    """
    with suppress(Exception):  # no NVML, or one too old to know of such domains
        import pynvml

        pynvml.nvmlInit()
        try:
            uuid = visible(_uuids(), os.environ.get("CUDA_VISIBLE_DEVICES"))[gpu]
            pynvml.nvmlInit()  # `_uuids` has shut it down
            info = pynvml.c_nvmlGpuFabricInfo_t()
            pynvml.nvmlDeviceGetGpuFabricInfo(pynvml.nvmlDeviceGetHandleByUUID(uuid), info)
            cluster = bytes(info.clusterUuid)
        finally:
            pynvml.nvmlShutdown()
        return f"{cluster.hex()}-{info.cliqueId}" if any(cluster) else ""
    return ""


FABRIC_STATES = ("not supported", "not started", "in progress", "completed")
"""Of NVML, in the order of its numbers: whether a GPU has joined the NVLink fabric."""


def fabric_states() -> tuple[str, ...]:
    """Of each visible GPU its state in the NVLink fabric, with cluster UUID and clique where it is in one.

    Returns:
        Such as `completed 3f2a...-1`, or `completed` in no cluster (an HGX host); empty where NVML does not say.
    """
    with suppress(Exception):  # no NVML, or one too old to know of fabrics
        import pynvml

        chosen = visible(_uuids(), os.environ.get("CUDA_VISIBLE_DEVICES"))
        pynvml.nvmlInit()
        try:
            return tuple(_fabric_state(pynvml, pynvml.nvmlDeviceGetHandleByUUID(uuid)) for uuid in chosen)
        finally:
            pynvml.nvmlShutdown()
    return ()


def _fabric_state(nvml, handle) -> str:
    info = nvml.c_nvmlGpuFabricInfo_t()
    nvml.nvmlDeviceGetGpuFabricInfo(handle, info)
    state, cluster = FABRIC_STATES[min(info.state, len(FABRIC_STATES) - 1)], bytes(info.clusterUuid)
    return f"{state} {cluster.hex()}-{info.cliqueId}" if any(cluster) else state


def comes_to_rest(device: torch.device, *, limit_s: float = REST_LIMIT_S) -> bool:
    """Whether what this process has enqueued on a GPU ends in time; asks again and again, never waits in the driver.

    False also where nothing on the GPU will work in this process again.
    """
    import torch

    deadline = time.monotonic() + limit_s
    try:
        stream = torch.cuda.current_stream(device)
        while not stream.query():
            if time.monotonic() > deadline:
                return False
            time.sleep(0.001)
    except Exception:  # a CUDA error, or no CUDA at all
        return False
    return True

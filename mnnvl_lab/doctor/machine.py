"""What a machine has: processor, memory, software, GPUs, compiled kernels, and what its ranks would share memory by."""

from __future__ import annotations

import platform
import shutil
from dataclasses import dataclass, field
from pathlib import Path

import psutil

from mnnvl_lab.doctor.sharing import Sharing, read_sharing
from mnnvl_lab.hardware import count_visible_gpus
from mnnvl_lab.ranks.kernel_build import MAKERS, compiled_kernels
from mnnvl_lab.records.provenance import Gpus, cores, cpu_model, find_gpus, version_of

KERNEL_MODULES = tuple(MAKERS)
"""FlashInfer's modules of the one-sided and of the two-sided kernels."""


@dataclass(frozen=True, kw_only=True)
class Machine:
    """What `look` found. An empty string says that a thing is not there.

    Attributes:
        shared_memory_bytes: size of `/dev/shm`; None where shared memory has no such limit (macOS).
        torch, flashinfer, ipyparallel: versions.
        gpus: what the driver shows.
        visible_gpus: those that `CUDA_VISIBLE_DEVICES` leaves.
        nvcc, mps: paths of the compiler and of the MPS control daemon.
        kernels: compiled library of each of `KERNEL_MODULES` that has one.
        sharing: what decides how ranks map one another's memory.
    """

    python: str
    system: str
    cpu: str
    cores: int
    memory_bytes: int
    shared_memory_bytes: int | None
    torch: str
    flashinfer: str
    ipyparallel: str
    gpus: Gpus
    visible_gpus: int
    nvcc: str = ""
    mps: str = ""
    kernels: dict[str, str] = field(default_factory=dict)
    sharing: Sharing = field(default_factory=Sharing)

    @property
    def missing_kernels(self) -> tuple[str, ...]:
        return tuple(name for name in KERNEL_MODULES if name not in self.kernels)


def read_machine() -> Machine:
    """Find out, in well under a second without GPUs; with them the driver is started once, in a process of its own."""
    gpus, visible_gpus = find_gpus(), count_visible_gpus()
    return Machine(
        python=platform.python_version(),
        system=f"{platform.system()} {platform.machine()}",
        cpu=cpu_model(),
        cores=cores(),
        memory_bytes=psutil.virtual_memory().total,
        shared_memory_bytes=_shared_memory_bytes(),
        torch=version_of("torch"),
        flashinfer=version_of("flashinfer-python"),
        ipyparallel=version_of("ipyparallel"),
        gpus=gpus,
        visible_gpus=visible_gpus,
        nvcc=shutil.which("nvcc") or "",
        mps=shutil.which("nvidia-cuda-mps-control") or "",
        kernels=compiled_kernels(),
        sharing=read_sharing(gpus=visible_gpus),
    )


def _shared_memory_bytes() -> int | None:
    directory = Path("/dev/shm")
    return shutil.disk_usage(directory).total if directory.is_dir() else None

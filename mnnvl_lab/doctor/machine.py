"""What is there: processor, memory, software, GPUs, compiled kernels."""

from __future__ import annotations

import platform
import shutil
from dataclasses import dataclass, field
from pathlib import Path

import psutil

from mnnvl_lab.ranks.gpus import count_visible_gpus
from mnnvl_lab.ranks.kernels import MAKERS, compiled_kernels
from mnnvl_lab.records.machine import Gpus, cores, cpu_model, find_gpus, version_of

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

    @property
    def missing_kernels(self) -> tuple[str, ...]:
        return tuple(name for name in KERNEL_MODULES if name not in self.kernels)


def look() -> Machine:
    """Find out, in well under a second."""
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
        gpus=find_gpus(),
        visible_gpus=count_visible_gpus(),
        nvcc=shutil.which("nvcc") or "",
        mps=shutil.which("nvidia-cuda-mps-control") or "",
        kernels=compiled_kernels(),
    )


def _shared_memory_bytes() -> int | None:
    directory = Path("/dev/shm")
    return shutil.disk_usage(directory).total if directory.is_dir() else None

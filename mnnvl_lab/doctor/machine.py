"""What is there: processor, memory, software, GPUs, compiled kernels."""

from __future__ import annotations

import os
import platform
import shutil
from collections.abc import Iterator
from dataclasses import dataclass, field
from importlib import util
from pathlib import Path

import psutil

from mnnvl_lab.ranks.gpus import count_visible_gpus
from mnnvl_lab.records.machine import Gpus, cores, cpu_model, find_gpus, version_of

KERNEL_MODULES = ("mnnvl_moe_alltoall", "comm")
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
        kernels=dict(_compiled_kernels()),
    )


def _shared_memory_bytes() -> int | None:
    directory = Path("/dev/shm")
    return shutil.disk_usage(directory).total if directory.is_dir() else None


def _compiled_kernels() -> Iterator[tuple[str, str]]:
    """Libraries in FlashInfer's ahead-of-time directory, else in its cache (`flashinfer/jit/env.py`)."""
    places = [*_ahead_of_time(), *_cached()]
    for module in KERNEL_MODULES:
        for place in places:
            library = place / module / f"{module}.so"
            if library.is_file():
                yield module, str(library)
                break


def _ahead_of_time() -> Iterator[Path]:
    for package, inside in (("flashinfer", "data/aot"), ("flashinfer_jit_cache", "jit_cache")):
        spec = util.find_spec(package)
        for folder in spec.submodule_search_locations or () if spec else ():
            yield Path(folder) / inside


def _cached() -> list[Path]:
    base = Path(os.environ.get("FLASHINFER_WORKSPACE_BASE") or Path.home())
    return sorted((base / ".cache" / "flashinfer").glob(f"{version_of('flashinfer-python') or '*'}/*/cached_ops"))

"""Provenance: processor, memory and GPUs of this machine, versions and commit. Loads neither torch nor CUDA."""

from __future__ import annotations

import os
import platform
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path

import numpy as np

from mnnvl_lab import __version__
from mnnvl_lab.hardware import visible
from mnnvl_lab.records.schema import SCHEMA


@dataclass(frozen=True, kw_only=True)
class Gpu:
    """One GPU as NVML shows it.

    Attributes:
        links_up: NVLink links that are active; 0 where the GPU has none.
    """

    index: int
    name: str
    memory_bytes: int
    links_up: int


@dataclass(frozen=True, kw_only=True)
class Gpus:
    """The GPUs of this machine, or why none are seen.

    Attributes:
        driver: version of the NVIDIA driver; empty without one.
        p2p: pairs of indices, each lower one first, that can address each other's memory over NVLink.
        why_none: reason in words when `cards` is empty.
    """

    cards: tuple[Gpu, ...] = ()
    driver: str = ""
    p2p: tuple[tuple[int, int], ...] = ()
    why_none: str = ""

    @property
    def label(self) -> str:
        """Model and count, such as `2 x NVIDIA H100 80GB HBM3`."""
        names = [card.name for card in self.cards]
        return " + ".join(f"{names.count(name)} x {name}" for name in dict.fromkeys(names))

    @property
    def topology(self) -> str:
        if len(self.cards) < 2:
            return "one GPU" if self.cards else "no GPU"
        pairs = len(self.cards) * (len(self.cards) - 1) // 2
        links = min(card.links_up for card in self.cards)
        return f"NVLink x {links}, {len(self.p2p)} of {pairs} pairs peer to peer"


def version_of(*names: str) -> str:
    """Version of the first of these distributions that is installed, or an empty string; imports none."""
    for name in names:
        with suppress(metadata.PackageNotFoundError):
            return metadata.version(name)
    return ""


def cpu_model() -> str:
    with suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.lower().startswith("model name"):
                return " ".join(line.partition(":")[2].replace("(R)", "").replace("(TM)", "").split())
    return platform.processor() or platform.machine()


def cores() -> int:
    """Cores that this process may use, which a container or `taskset` can make fewer than the machine's."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def host_label() -> str:
    return f"{cores()}-core {cpu_model()}"


def memory_copy_gigabytes_per_s(size_bytes: int = 8 * 1024**2, repeats: int = 5) -> float:
    """The fastest that all cores together copy memory, counted once a byte copied: a limit for fabric `host`.

    Args:
        size_bytes: each core copies; small enough that caches help, as they help a round.
    """
    pairs = [(np.ones(size_bytes, np.uint8), np.zeros(size_bytes, np.uint8)) for _ in range(cores())]
    fastest_s = float("inf")
    with ThreadPoolExecutor(len(pairs)) as threads:
        for _ in range(repeats):
            began_s = time.perf_counter()
            list(threads.map(lambda pair: np.copyto(pair[1], pair[0]), pairs))
            fastest_s = min(fastest_s, time.perf_counter() - began_s)
    return len(pairs) * size_bytes / fastest_s / 1e9


def find_gpus() -> Gpus:
    """Ask NVML, which needs the driver alone and takes no GPU memory."""
    try:
        import pynvml as nvml
    except ImportError:
        return Gpus(why_none="the package nvidia-ml-py is not installed")
    try:
        with _session(nvml):
            return _read(nvml)
    except nvml.NVMLError as error:
        return Gpus(why_none=f"no NVIDIA driver answers ({error})")


@contextmanager
def _session(nvml):
    nvml.nvmlInit()
    try:
        yield
    finally:
        nvml.nvmlShutdown()


def _read(nvml) -> Gpus:
    handles = _visible_handles(nvml)
    return Gpus(
        cards=tuple(_card(nvml, i, handle) for i, handle in enumerate(handles)),
        driver=_text(nvml.nvmlSystemGetDriverVersion()),
        p2p=tuple(
            (i, j)
            for i in range(len(handles))
            for j in range(i + 1, len(handles))
            if _linked(nvml, handles[i], handles[j])
        ),
        why_none="" if handles else "the driver lists no GPU, or CUDA_VISIBLE_DEVICES hides all",
    )


def _visible_handles(nvml) -> list:
    """Of the GPUs that CUDA would show here, in its order: those are measured."""
    every = [nvml.nvmlDeviceGetHandleByIndex(i) for i in range(nvml.nvmlDeviceGetCount())]
    by_uuid = {_text(nvml.nvmlDeviceGetUUID(handle)): handle for handle in every}
    return [by_uuid[uuid] for uuid in visible(list(by_uuid), os.environ.get("CUDA_VISIBLE_DEVICES"))]


def _card(nvml, index: int, handle) -> Gpu:
    return Gpu(
        index=index,
        name=_text(nvml.nvmlDeviceGetName(handle)),
        memory_bytes=int(nvml.nvmlDeviceGetMemoryInfo(handle).total),
        links_up=sum(_link_up(nvml, handle, link) for link in range(nvml.NVML_NVLINK_MAX_LINKS)),
    )


def _link_up(nvml, handle, link: int) -> bool:
    """Links that a GPU does not have answer with an error."""
    try:
        return nvml.nvmlDeviceGetNvLinkState(handle, link) == nvml.NVML_FEATURE_ENABLED
    except nvml.NVMLError:
        return False


def _linked(nvml, one, other) -> bool:
    try:
        status = nvml.nvmlDeviceGetP2PStatus(one, other, nvml.NVML_P2P_CAPS_INDEX_NVLINK)
    except nvml.NVMLError:
        return False
    return status == nvml.NVML_P2P_STATUS_OK


def _text(value: str | bytes) -> str:
    return value.decode() if isinstance(value, bytes) else value


REQUIRED = ("schema", "created_at", "device", "topology")
"""Without these a figure could not say what it shows."""


def provenance(
    *,
    fabric: str,
    clocks: Sequence[str] = (),
    warmup: int | None = None,
    samples: int | None = None,
    seed: int | None = None,
    **further: object,
) -> dict[str, object]:
    """Everything that a reader of the table may ask about the run, as plain JSON values. Measures nothing.

    Args:
        fabric: says which device was measured: the processor for `host`, else the GPUs.
        clocks, warmup, samples, seed: of the sweep; None where it does not say.
        further: fields that the caller knows better, such as `device`, or has measured (`measured_rates`); they replace
            those found here.
    """
    return {
        "schema": SCHEMA,
        "created_at": datetime.now(UTC).isoformat(timespec="seconds"),
        "command": command(sys.argv),
        **_source(),
        "package": __version__,
        "python": platform.python_version(),
        "torch": version_of("torch"),
        "flashinfer": version_of("flashinfer-python"),
        "nccl": version_of("nvidia-nccl-cu13", "nvidia-nccl-cu12"),
        "cpu": cpu_model(),
        "cores": cores(),
        **_device(fabric),
        "clocks": list(clocks),
        "warmup": warmup,
        "samples": samples,
        "seed": seed,
    } | further


def measured_rates(fabric: str) -> dict[str, float]:
    """Rates of this machine from which a bound follows, as fields for `provenance`. Keeps all cores busy for a moment.

    Returns:
        `memory_copy_gigabytes_per_s` for `host`; nothing for GPUs, whose links `measure_links` measures.
    """
    return {"memory_copy_gigabytes_per_s": round(memory_copy_gigabytes_per_s(), 2)} if fabric == "host" else {}


def command(argv: Sequence[str]) -> str:
    """What was typed, without the paths that Python puts in its place."""
    program, words = Path(argv[0]), argv[1:]
    if program.name.startswith("ipykernel"):
        return "notebook"
    name = f"python -m {program.parent.name}" if program.name == "__main__.py" else program.name
    return " ".join([name, *words])


def describe(provenance: Mapping[str, object]) -> str:
    """The provenance as lines of `field: value`, for a terminal or a notebook."""
    width = max(map(len, provenance))
    return "\n".join(f"{field:>{width}}: {value}" for field, value in provenance.items())


def _device(fabric: str) -> dict[str, object]:
    if fabric == "host":
        return {
            "device": host_label(),
            "driver": "",
            "topology": "shared memory of one machine",
        }
    gpus = find_gpus()
    return {"device": gpus.label or "unknown GPU", "driver": gpus.driver, "topology": gpus.topology}


COMMIT = "MNNVL_LAB_COMMIT"
"""Environment variable that names the commit where the package runs from a copy without history."""


def _source() -> dict[str, object]:
    """Commit of the checkout that this package runs from; empty when it was installed otherwise."""
    if named := os.environ.get(COMMIT):
        return {"commit": named.removesuffix("+"), "dirty": named.endswith("+")}
    root = Path(__file__).resolve().parents[2]
    commit = _git(root, "rev-parse", "HEAD") if (root / ".git").exists() else None
    changes = _git(root, "status", "--porcelain", "--untracked-files=no") if commit else None
    return {"commit": commit or "", "dirty": bool(changes)}


def _git(root: Path, *words: str) -> str | None:
    try:
        done = subprocess.run(["git", "-C", str(root), *words], capture_output=True, text=True, timeout=10, check=True)
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip()

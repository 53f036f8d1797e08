"""Check the machine: processor, memory, software, GPUs, compiled kernels, and which fabrics it can run."""

from __future__ import annotations

import platform
import shutil
from collections.abc import Iterator
from dataclasses import dataclass, field
from html import escape
from pathlib import Path

import psutil

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


def read_machine() -> Machine:
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


MIB = 1024**2
LEAST_SHARED_MEMORY_BYTES = 256 * MIB
"""Four ranks with 1024 tokens of hidden size 7168 take 450 MiB; the smaller examples fit below this."""


@dataclass(frozen=True, kw_only=True)
class FabricReport:
    """Whether a fabric can be used here.

    Attributes:
        obstacles: what stands in the way, each with its remedy; none if it can be used.
        why: what it rests on, or the obstacles in one line.
        notes: what does not stop it but is good to know.
    """

    fabric: str
    obstacles: tuple[str, ...]
    grounds: str
    notes: tuple[str, ...] = ()

    @property
    def usable(self) -> bool:
        return not self.obstacles

    @property
    def why(self) -> str:
        return self.grounds if self.usable else "; ".join(self.obstacles)


def check_fabrics(machine: Machine) -> tuple[FabricReport, ...]:
    """A verdict on each fabric, from what was found alone."""
    return (
        FabricReport(
            fabric="host",
            obstacles=(*_needs_ranks(machine),),
            grounds=f"processes of this machine over shared memory, {machine.cores} cores",
            notes=(*_host_notes(machine),),
        ),
        FabricReport(
            fabric="shared_gpu",
            obstacles=(*_needs_ranks(machine), *_needs_kernels(machine), *_needs_mps(machine)),
            grounds=f"several ranks on each of {machine.gpus.label} under MPS",
            notes=(*_kernel_notes(machine),),
        ),
        FabricReport(
            fabric="nvlink",
            obstacles=(*_needs_ranks(machine), *_needs_kernels(machine), *_needs_links(machine)),
            grounds=f"a rank on each of {machine.gpus.label}: {machine.gpus.topology}",
            notes=(*_kernel_notes(machine),),
        ),
    )


def _needs_ranks(machine: Machine) -> Iterator[str]:
    for name in ("torch", "ipyparallel"):
        if not getattr(machine, name):
            yield f"{name} is not installed: ranks need it; pip install {name}"


def _host_notes(machine: Machine) -> Iterator[str]:
    size = machine.shared_memory_bytes
    if size is not None and size < LEAST_SHARED_MEMORY_BYTES:
        yield (
            f"/dev/shm has {size // MIB} MiB: larger workspaces will be refused; give the container more, "
            "as in docker run --shm-size=8g"
        )


def _needs_kernels(machine: Machine) -> Iterator[str]:
    if not machine.visible_gpus:
        hidden = "CUDA_VISIBLE_DEVICES hides them all; unset it" if machine.gpus.cards else machine.gpus.why_none
        yield f"no GPU is visible: {hidden}"
    if machine.torch.endswith("+cpu"):
        yield f"torch {machine.torch} is built without CUDA: install the CUDA build from pytorch.org"
    if not machine.flashinfer:
        yield "FlashInfer is not installed: its kernels are the transports; pip install flashinfer-python (Linux only)"
    elif machine.missing_kernels and not machine.nvcc:
        yield (
            f"FlashInfer's {', '.join(machine.missing_kernels)} not compiled and no nvcc to compile with: "
            "install the CUDA toolkit, or kernels compiled ahead"
        )


def _kernel_notes(machine: Machine) -> Iterator[str]:
    if machine.visible_gpus and machine.flashinfer and machine.missing_kernels and machine.nvcc:
        yield f"the first ranks compile {', '.join(machine.missing_kernels)} before they start, some minutes, once"


def _needs_mps(machine: Machine) -> Iterator[str]:
    if not machine.mps:
        yield "nvidia-cuda-mps-control is not on PATH: ranks share a GPU under MPS; install the driver's utilities"


def _needs_links(machine: Machine) -> Iterator[str]:
    if machine.visible_gpus == 1:
        yield "1 visible GPU: a round between ranks needs two, each with a rank of its own; use fabric shared_gpu"
    elif machine.visible_gpus and not machine.gpus.p2p:
        yield "no two GPUs reach each other over NVLink: see nvidia-smi topo -m; fabric shared_gpu needs no link"


GIB = 1024**3


@dataclass(frozen=True, kw_only=True)
class Report:
    """What was found, and what follows for each fabric."""

    machine: Machine
    verdicts: tuple[FabricReport, ...]

    @property
    def facts(self) -> dict[str, str]:
        """What was found, in words."""
        m = self.machine
        shared = "no limit of its own" if m.shared_memory_bytes is None else f"{m.shared_memory_bytes / GIB:.1f} GiB"
        compiled = ", ".join(m.kernels) or "none yet"
        return {
            "python": f"{m.python} on {m.system}",
            "processor": f"{m.cores} cores of {m.cpu}",
            "memory": f"{m.memory_bytes / GIB:.1f} GiB",
            "shared memory": shared,
            "torch": m.torch or "not installed",
            "flashinfer": m.flashinfer or "not installed",
            "ipyparallel": m.ipyparallel or "not installed",
            "GPUs": m.gpus.label or f"none: {m.gpus.why_none}",
            "visible GPUs": str(m.visible_gpus),
            "links": m.gpus.topology,
            "driver": m.gpus.driver or "none",
            "nvcc": m.nvcc or "not on PATH",
            "MPS": m.mps or "not on PATH",
            "compiled kernels": compiled,
        }

    def to_dict(self) -> dict:
        """Plain values: `facts` in words, `fabrics` by name with `usable`, `why` and `notes`."""
        return {
            "facts": self.facts,
            "fabrics": {
                verdict.fabric: {"usable": verdict.usable, "why": verdict.why, "notes": list(verdict.notes)}
                for verdict in self.verdicts
            },
        }

    def __str__(self) -> str:
        width = max(map(len, self.facts))
        found = [f"  {name:<{width}}  {value}" for name, value in self.facts.items()]
        return "\n".join(["This machine", *found, "", "Fabrics", *(_lines(verdict) for verdict in self.verdicts)])

    def _repr_html_(self) -> str:
        facts = "".join(_row(name, value) for name, value in self.facts.items())
        fabrics = "".join(_row(f"{_answer(v)} {v.fabric}", "; ".join([v.why, *v.notes])) for v in self.verdicts)
        return (
            f"<div><p><b>This machine</b></p><table>{facts}</table><p><b>Fabrics</b></p><table>{fabrics}</table></div>"
        )


def _answer(verdict: FabricReport) -> str:
    return "yes" if verdict.usable else "no "


def _lines(verdict: FabricReport) -> str:
    reasons = [verdict.grounds] if verdict.usable else list(verdict.obstacles)
    first, *further = [*reasons, *(f"note: {note}" for note in verdict.notes)]
    return "\n".join([f"  {_answer(verdict)}  {verdict.fabric:<10}  {first}", *(f"{'':19}{line}" for line in further)])


def _row(name: str, value: str) -> str:
    return f'<tr><td style="text-align:left">{escape(name)}</td><td style="text-align:left">{escape(value)}</td></tr>'


__all__ = ["FabricReport", "Machine", "Report", "check_fabrics", "check_machine", "read_machine"]


def check_machine() -> Report:
    """Look at this machine and judge each fabric."""
    machine = read_machine()
    return Report(machine=machine, verdicts=check_fabrics(machine))

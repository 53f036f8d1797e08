"""Which fabrics a machine can run, and what stands in the way of the others."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from mnnvl_lab.doctor.machine import Machine
from mnnvl_lab.doctor.sharing import obstacles as sharing_obstacles

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
            obstacles=(
                *_needs_ranks(machine),
                *_needs_kernels(machine),
                *_needs_mps(machine),
                *_needs_handles(machine),
            ),
            grounds=f"several ranks on each of {machine.gpus.label} under MPS",
            notes=(*_kernel_notes(machine),),
        ),
        FabricReport(
            fabric="nvlink",
            obstacles=(
                *_needs_ranks(machine),
                *_needs_kernels(machine),
                *_needs_links(machine),
                *_needs_handles(machine),
            ),
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


def _needs_handles(machine: Machine) -> Iterator[str]:
    """What keeps ranks from exporting or importing memory, whichever kind of handle FlashInfer would use."""
    if machine.visible_gpus:
        yield from sharing_obstacles(machine.sharing)

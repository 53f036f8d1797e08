"""The doctor's report: what was found, how ranks would share memory, and what follows for each fabric."""

from __future__ import annotations

from dataclasses import dataclass
from html import escape

from mnnvl_lab.doctor.fabrics import FabricReport, check_fabrics
from mnnvl_lab.doctor.machine import Machine, read_machine
from mnnvl_lab.doctor.sharing import sharing_facts, sharing_notes

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

    @property
    def sharing(self) -> dict[str, str]:
        """How ranks would map one another's GPU memory, in words; empty without GPUs."""
        m = self.machine
        return sharing_facts(m.sharing, driver=m.gpus.driver, p2p=m.gpus.p2p) if m.visible_gpus else {}

    @property
    def sharing_notes(self) -> tuple[str, ...]:
        """What is good to know about it; empty without GPUs."""
        m = self.machine
        return sharing_notes(m.sharing, driver=m.gpus.driver, p2p=m.gpus.p2p) if m.visible_gpus else ()

    def to_dict(self) -> dict:
        """Plain values: `facts` and `sharing` in words, `fabrics` by name with `usable`, `why` and `notes`."""
        return {
            "facts": self.facts,
            "sharing": self.sharing,
            "sharing_notes": list(self.sharing_notes),
            "fabrics": {
                verdict.fabric: {"usable": verdict.usable, "why": verdict.why, "notes": list(verdict.notes)}
                for verdict in self.verdicts
            },
        }

    def __str__(self) -> str:
        width = max(map(len, self.facts))
        found = [f"  {name:<{width}}  {value}" for name, value in self.facts.items()]
        fabrics = ["Fabrics", *(_lines(verdict) for verdict in self.verdicts)]
        return "\n".join(["This machine", *found, "", *self._sharing_lines(width), *fabrics])

    def _sharing_lines(self, width: int) -> list[str]:
        if not self.sharing:
            return []
        found = [f"  {name:<{width}}  {value}" for name, value in self.sharing.items()]
        return ["How ranks share GPU memory", *found, *(f"  note: {note}" for note in self.sharing_notes), ""]

    def _repr_html_(self) -> str:
        facts = "".join(_row(name, value) for name, value in self.facts.items())
        fabrics = "".join(_row(f"{_answer(v)} {v.fabric}", "; ".join([v.why, *v.notes])) for v in self.verdicts)
        shared = "".join(_row(name, value) for name, value in self.sharing.items())
        sharing = f"<p><b>How ranks share GPU memory</b></p><table>{shared}</table>" if shared else ""
        notes = "".join(f"<p>{escape(note)}</p>" for note in self.sharing_notes)
        return (
            f"<div><p><b>This machine</b></p><table>{facts}</table>{sharing}{notes}"
            f"<p><b>Fabrics</b></p><table>{fabrics}</table></div>"
        )


def _answer(verdict: FabricReport) -> str:
    return "yes" if verdict.usable else "no "


def _lines(verdict: FabricReport) -> str:
    reasons = [verdict.grounds] if verdict.usable else list(verdict.obstacles)
    first, *further = [*reasons, *(f"note: {note}" for note in verdict.notes)]
    return "\n".join([f"  {_answer(verdict)}  {verdict.fabric:<10}  {first}", *(f"{'':19}{line}" for line in further)])


def _row(name: str, value: str) -> str:
    return f'<tr><td style="text-align:left">{escape(name)}</td><td style="text-align:left">{escape(value)}</td></tr>'


def check_machine() -> Report:
    """Look at this machine and judge each fabric."""
    machine = read_machine()
    return Report(machine=machine, verdicts=check_fabrics(machine))

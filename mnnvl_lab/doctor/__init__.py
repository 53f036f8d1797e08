"""What this machine can run and what it cannot, and why. Starts nothing, imports neither torch nor FlashInfer."""

from mnnvl_lab.doctor.fabrics import Verdict, judge
from mnnvl_lab.doctor.machine import Machine, look
from mnnvl_lab.doctor.report import Report

__all__ = ["Machine", "Report", "Verdict", "examine", "judge", "look"]


def examine() -> Report:
    """Look at this machine and judge each fabric."""
    machine = look()
    return Report(machine=machine, verdicts=judge(machine))

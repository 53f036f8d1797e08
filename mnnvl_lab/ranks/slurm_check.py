"""What `doctor --launcher slurm` says: whether ranks would start under Slurm here, before anyone waits in a queue."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from mnnvl_lab.errors import LabError
from mnnvl_lab.ranks.network import interface_of
from mnnvl_lab.ranks.slurm import Allocation, SlurmError, job_state, require_commands, slurm_command
from mnnvl_lab.ranks.slurm_hosts import SlurmHosts

NAME = "mnnvl_lab-doctor"


@dataclass(frozen=True, kw_only=True)
class Finding:
    """One thing that was checked.

    Attributes:
        what: such as `commands`.
        passed: whether ranks can start as far as this is concerned.
        told: what was found; what is wrong with the remedy, if it did not pass.
    """

    what: str
    passed: bool
    told: str

    def __str__(self) -> str:
        return f"  {'yes' if self.passed else 'no '}  {self.what:<10}  {self.told}"


def check_slurm() -> list[Finding]:
    """Check commands, cluster, address and job, each only if those before it passed. Submits no job."""
    checks = {"commands": _commands, "cluster": _cluster, "address": _address, "job": _job}
    findings: list[Finding] = []
    for what, check in checks.items():
        findings.append(_finding(what, check))
        if not findings[-1].passed:
            break
    return findings


def _finding(what: str, check: Callable[[], str]) -> Finding:
    try:
        return Finding(what=what, passed=True, told=check())
    except LabError as error:
        return Finding(what=what, passed=False, told=str(error))


def _commands() -> str:
    require_commands()
    return slurm_command("sinfo", "--version")


def _cluster() -> str:
    partitions = slurm_command("sinfo", "--noheader", "--format=%P: %D nodes %T with %c processors").splitlines()
    if not partitions:
        raise SlurmError("sinfo shows no partition that you may use: ask the administrator for access to one")
    return "; ".join(partitions)


def _address() -> str:
    address = SlurmHosts({}, NAME).address()
    interface = interface_of(address) or "an unknown interface"
    return f"nodes reach this machine at {address} ({interface}); on ports that the system chooses"


def _job() -> str:
    """Inside an allocation its state; outside, when Slurm expects that a job of two ranks would start."""
    allocation = Allocation(NAME, {})
    if not allocation.own:
        state = job_state(allocation.job)
        if not state.runs:
            raise SlurmError(f"SLURM_JOB_ID names {state}: unset it, or start from a job that runs")
        return f"inside {state}: ranks start in it by srun, without a second job"
    return f"outside of a job: ranks get one of their own. {allocation.expected_start(2)}"

"""Slurm allocations: one job that holds the nodes while the ranks live, or the job in which this process runs.

Ranks are started by `srun` steps inside the allocation, so that a rank that died is replaced there and never by a job
that has to queue. Slurm's own commands say what became of a job (`scontrol`, then `sacct` where it keeps accounts).
"""

from __future__ import annotations

import os
import re
import shlex
import shutil
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

from mnnvl_lab.errors import LabError, RankDied, RankTimeout, Refused, shown

COMMANDS = ("sbatch", "srun", "scancel", "scontrol")
POLL_S = 0.5
COMMAND_LIMIT_S = 30.0
FINAL_STATE_S = 10.0  # for a job that ends to say how: its nodes are cleaned up first
WAITING = ("PENDING", "CONFIGURING", "REQUEUED", "REQUEUE_HOLD", "SUSPENDED")
HOPELESS = (
    "PartitionConfig",
    "PartitionNodeLimit",
    "PartitionTimeLimit",
    "BadConstraints",
    "InvalidAccount",
    "InvalidQOS",
)
"""Reasons for which a job waits until somebody changes it or the cluster ("JOB REASON CODES" of squeue's manual)."""
ENDING = ("COMPLETING", "STOPPED", "SIGNALING")
FIXED = ("--parsable", "--no-requeue", "--export=NONE", "--output=/dev/null", "--chdir=/")
SHORT = {"-N": "--nodes", "-n": "--ntasks"}
HOLD = "#!/bin/sh\nexec sleep infinity\n"
KEPT_VARIABLES = ("SLURM_CONF", "SLURM_JWT")  # how to reach Slurm; all others describe a job or a step
FLAGS = {"queue": "--partition", "account": "--account", "qos": "--qos", "timelimit": "--time"}


class SlurmError(LabError, RuntimeError):
    """One of Slurm's commands failed, or does not answer."""


@dataclass(frozen=True, kw_only=True)
class JobState:
    """What Slurm says of a job.

    Attributes:
        job: its id.
        state: as Slurm names it, such as `PENDING`, `RUNNING`, `TIMEOUT`; `UNKNOWN` if Slurm has forgotten the job.
        fields: all that `scontrol show job` prints, by name.
    """

    job: str
    state: str
    fields: Mapping[str, str] = field(default_factory=dict)

    @property
    def runs(self) -> bool:
        return self.state == "RUNNING"

    @property
    def waits(self) -> bool:
        return self.state in WAITING

    @property
    def hopeless(self) -> bool:
        """Whether no waiting lets it start."""
        return self.waits and self.fields.get("Reason") in HOPELESS

    def __str__(self) -> str:
        """Such as `job 17 pending (Resources)` or `job 17 timeout (TimeLimit) after 00:01:02 of 00:01:00 on n[1-2]`."""
        reason = self.fields.get("Reason", "None")
        told = f"job {self.job} {self.state.lower()}" + (f" ({reason})" if reason != "None" else "")
        if self.waits or self.runs or not self.fields:
            return told
        ran, limit, nodes = (self.fields.get(name, "?") for name in ("RunTime", "TimeLimit", "NodeList"))
        return f"{told} after {ran} of {limit} on {nodes}"


@dataclass(frozen=True, kw_only=True)
class NodeShare:
    """One node of an allocation.

    Attributes:
        name: as Slurm calls it.
        tasks: how many ranks its processors are for.
        cpus: processors of it that the job has.
    """

    name: str
    tasks: int
    cpus: int


class Allocation:
    """A job that holds nodes: one submitted here, or the one in which this process runs.

    Args:
        name: of the job, unlike every other's, so that it can be cancelled also where its id was never learned.
        settings: `queue`, `account`, `qos`, `timelimit` and `options` (further words for `sbatch`), as ipyparallel's
            `SlurmEngineSetLauncher` has them.

    Attributes:
        job: id of the job; empty before the first `submit`.
        own: whether jobs are submitted here, and so are cancelled here.

    Raises:
        Refused: a setting is not known, or Slurm's commands are not installed.
    """

    def __init__(self, name: str, settings: Mapping[str, object]):
        require_commands()
        self.name, self._settings = name, require_settings(settings)
        self.job = current_job()
        self.own = not self.job

    @property
    def cancel_command(self) -> list[str]:
        """Ends the job, whether it waits or runs; harmless if there is none. Empty where the job is not ours."""
        return ["scancel", "--quiet", f"--name={self.name}", f"--user={os.geteuid()}"] if self.own else []

    def submit(self, tasks: int, *, nodes: int) -> None:
        """Ask for a job that holds `tasks` processors, on `nodes` nodes unless the settings say otherwise.

        Raises:
            Refused: Slurm does not take the job.
        """
        try:
            self.job = slurm_command("sbatch", *self.request(tasks, nodes=nodes), said=HOLD).split(";")[0]
        except SlurmError as error:
            raise Refused(
                f"Slurm does not take the job: {error}; change launcher_options (queue, account, timelimit, options), "
                "or see sinfo for what the cluster has"
            ) from error

    def expected_start(self, tasks: int) -> str:
        """What Slurm says about when a job for so many ranks would start; none is submitted.

        Raises:
            SlurmError: it would take no such job.
        """
        words = [word for word in self.request(tasks, nodes=1) if word != "--parsable"]
        return slurm_command("sbatch", "--test-only", *words, said=HOLD)

    def request(self, tasks: int, *, nodes: int) -> list[str]:
        """Words of `sbatch`. Nothing of this process's environment goes into the job, which Slurm keeps on disk."""
        own = [f"{FLAGS[name]}={value}" for name, value in self._settings.items() if name in FLAGS and value != ""]
        options = shlex.split(str(self._settings.get("options", "")))
        nodes = _asked_nodes(options) or nodes
        shape = {"--nodes": nodes, "--ntasks": tasks, "--ntasks-per-node": -(-tasks // nodes)}
        given = {SHORT.get(word[:2], word.partition("=")[0]) for word in options}
        asked = [f"{name}={value}" for name, value in shape.items() if name not in given]
        return [*FIXED, f"--job-name={self.name}", *own, *asked, *options]

    def state(self) -> JobState:
        """What Slurm says of the job now."""
        return job_state(self.job)

    def await_running(self, deadline: float, watch: Callable[[JobState], None]) -> None:
        """Wait until the job runs.

        Args:
            deadline: on the monotonic clock.
            watch: told every state on the way.

        Raises:
            Refused: it can never start. RankTimeout: it still waits at the deadline. RankDied: it ended instead.
                However this ends before the job runs, an interrupt included, the job is cancelled.
        """
        try:
            while not (state := self.state()).runs:
                watch(state)
                if state.hopeless:
                    raise Refused(_never(state))
                if not state.waits and state.state not in ENDING:
                    raise RankDied(rank=0, phase="start", cause=f"Slurm's {state}")
                if time.monotonic() > deadline:
                    raise RankTimeout(rank=0, phase="start", cause=_too_long(state))
                time.sleep(POLL_S)
        except BaseException:
            self.cancel()
            raise

    def shares(self) -> list[NodeShare]:
        """Nodes of the running job, in Slurm's order."""
        detail = slurm_command("scontrol", "--details", "--oneliner", "show", "job", self.job)
        cpus_per_task = int(parsed(detail).get("CPUs/Task", "1").replace("N/A", "1"))
        found = []
        for nodes, ids in re.findall(r" Nodes=(\S+) CPU_IDs=(\S+)", detail):
            cpus = count_ids(ids)
            names = slurm_command("scontrol", "show", "hostnames", nodes).splitlines()
            found += [NodeShare(name=name, tasks=max(1, cpus // cpus_per_task), cpus=cpus) for name in names]
        return sorted(found, key=lambda share: _natural(share.name))

    def step_command(self, share: NodeShare) -> list[str]:
        """`srun` for one process on one node that may use all that the job has there."""
        where = [f"--jobid={self.job}", f"--nodelist={share.name}", "--nodes=1", "--ntasks=1"]
        return ["srun", *where, f"--cpus-per-task={share.cpus}", "--overlap", "--unbuffered", "--quiet", "--mpi=none"]

    def how_it_ended(self) -> str:
        """In words, once the job has a final state; empty while it runs."""
        deadline = time.monotonic() + FINAL_STATE_S
        while (state := self.state()).state in ENDING and time.monotonic() < deadline:
            time.sleep(POLL_S)
        return "" if state.runs or state.waits else f"Slurm's {state}"

    def cancel(self) -> None:
        """End the job, if it was submitted here. Idempotent.

        Raises:
            SlurmError: Slurm does not answer.
        """
        if self.own and self.job:
            slurm_command(*self.cancel_command)


def current_job() -> str:
    """Id of the Slurm job in which this process runs; empty outside of one."""
    return os.environ.get("SLURM_JOB_ID", "")


def require_commands() -> None:
    """Raises Refused if Slurm's commands are not installed."""
    lacking = [command for command in COMMANDS if not shutil.which(command)]
    if lacking:
        raise Refused(
            f"launcher slurm without {', '.join(lacking)}: the notebook must run where Slurm's commands are, on a "
            "login node or in a job; elsewhere use launcher ssh or local"
        )


def require_settings(settings: Mapping[str, object]) -> dict[str, object]:
    """The settings, if all are known.

    Raises:
        Refused: names the one that is not, and all that are.
    """
    known = [*FLAGS, "options"]
    for name in settings:
        if name not in known:
            raise Refused(f"SlurmEngineSetLauncher has no {shown(name)}: choose from {', '.join(known)}")
    return dict(settings)


def job_state(job: str) -> JobState:
    """What Slurm says of a job.

    Raises:
        SlurmError: Slurm does not answer.
    """
    try:
        fields = parsed(slurm_command("scontrol", "--oneliner", "show", "job", job))
    except SlurmError as error:
        if "Invalid job id" not in str(error):
            raise
        return _accounted(job)
    return JobState(job=job, state=fields["JobState"], fields=fields)


def parsed(line: str) -> dict[str, str]:
    """Fields of a line of `scontrol --oneliner`: `Name=value` words."""
    return dict(re.findall(r"(\S+?)=(\S*)", line))


def count_ids(ids: str) -> int:
    """How many numbers a list such as `0-3,8` holds."""
    ends = [part.partition("-")[::2] for part in ids.split(",")]
    return sum(int(last or first) - int(first) + 1 for first, last in ends)


def client_environment() -> dict[str, str]:
    """This process's environment without what describes the job or step that it may itself run in."""
    return {name: value for name, value in os.environ.items() if not _describes_job(name)}


def _describes_job(name: str) -> bool:
    return name.startswith(("SLURM_", "SBATCH_", "SRUN_", "PMI", "PMIX_")) and name not in KEPT_VARIABLES


def _accounted(job: str) -> JobState:
    """From Slurm's accounts, where it keeps any: `scontrol` forgets a job some minutes after its end."""
    names = ("State", "Reason", "ElapsedRaw", "Timelimit", "NodeList")
    try:
        told = ("--noheader", "--parsable2", "--allocations", f"--format={','.join(names)}")
        values = slurm_command("sacct", f"--jobs={job}", *told).splitlines()[0].split("|")
    except (SlurmError, IndexError):
        return JobState(job=job, state="UNKNOWN")
    state, reason, ran_s, limit, nodes = values
    fields = {"Reason": reason, "RunTime": f"{ran_s} s", "TimeLimit": limit, "NodeList": nodes}
    return JobState(job=job, state=state.split()[0], fields=fields)


def slurm_command(*command: str, said: str = "") -> str:
    """What one of Slurm's commands prints, stripped.

    Args:
        said: its standard input.

    Raises:
        SlurmError: it failed, is not installed, or does not answer.
    """
    try:
        done = subprocess.run(
            command, input=said, capture_output=True, text=True, env=client_environment(), timeout=COMMAND_LIMIT_S
        )
    except subprocess.TimeoutExpired as error:
        raise SlurmError(f"{command[0]} does not answer within {COMMAND_LIMIT_S:g} s; is slurmctld up?") from error
    except FileNotFoundError as error:
        raise SlurmError(f"{command[0]} is not installed") from error
    if done.returncode:
        words = done.stderr.strip().removeprefix(f"{command[0]}: ").removeprefix("error: ")
        raise SlurmError(words or f"{command[0]} ended with exit code {done.returncode}")
    return (done.stdout or done.stderr).strip()


def _asked_nodes(options: Sequence[str]) -> int:
    """The number of nodes in words such as `--nodes=2` or `-N 2`; 0 if there is none."""
    found = re.search(r"(?:^|\s)(?:--nodes[= ]|-N ?)(\d+)", " ".join(options))
    return int(found.group(1)) if found else 0


def _too_long(state: JobState) -> str:
    return (
        f"Slurm's {state} still waits after start_timeout_s, so it was cancelled; raise start_timeout_s to what the "
        "queue may take, or ask for less (squeue and sinfo show what is in use)"
    )


def _never(state: JobState) -> str:
    nodes = state.fields.get("NumNodes", "?").partition("-")[0]
    partition, limit = (state.fields.get(name, "?") for name in ("Partition", "TimeLimit"))
    return (
        f"Slurm's {state} can never start: it asks for {nodes} nodes of partition {partition} for {limit}, which "
        "Slurm does not give it; use a layout with another gpus_per_node, or another queue or timelimit in "
        "launcher_options (sinfo shows what there is)"
    )


def _natural(name: str) -> list[tuple[int, str]]:
    """Sorts n2 before n10."""
    return [(int(part), "") if part.isdigit() else (0, part) for part in re.split(r"(\d+)", name)]

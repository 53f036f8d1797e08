"""Small clusters on one machine, for tests and for trying by hand: Slurm with two nodes, or two hosts behind sshd.

    python -m tools.clusters slurm    prints what to export, and ends the cluster at Ctrl-C
    python -m tools.clusters ssh      likewise

Needs no systemd and no configuration of the machine: every daemon runs in the foreground, with its files in a directory
of its own and its sockets on loopback. With `machines()` each node gets a network namespace, a host name and a /dev/shm
of its own instead (Linux, root), so that nothing works because the "nodes" are one machine.
"""

from __future__ import annotations

import argparse
import getpass
import os
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

import psutil

from mnnvl_lab.cli.arguments import whole_in
from tools.arguments import run_tool, tool_parser

LOOPBACK = "127.0.0.1"
START_LIMIT_S = 30.0
STOP_LIMIT_S = 5.0
POLL_S = 0.1
SLURM_COMMANDS = ("munged", "slurmctld", "slurmd", "sbatch", "srun", "squeue", "scontrol", "scancel")
SSH_COMMANDS = ("sshd", "ssh", "scp", "ssh-keygen")
PACKAGES = {"slurm": "slurmctld slurmd slurm-client munge", "ssh": "openssh-server openssh-client"}
SBIN = "/usr/sbin:/sbin"  # where daemons are, often not on a user's PATH
TOKEN_VARIABLE = "MNNVL_LAB_TEST_CLUSTER"


class ClusterError(RuntimeError):
    """A daemon did not start."""


@dataclass(frozen=True, kw_only=True)
class Machine:
    """Where daemons run.

    Attributes:
        name: host name.
        address: IPv4 address.
        prefix: command line that runs what follows it there; empty for this machine itself.
    """

    name: str
    address: str = LOOPBACK
    prefix: tuple[str, ...] = ()


@dataclass(kw_only=True)
class Daemons:
    """Processes of one cluster, each with a log, all ended together."""

    directory: Path
    token: str = field(default_factory=lambda: secrets.token_hex(8))
    running: dict[str, subprocess.Popen] = field(default_factory=dict)

    def start(self, name: str, command: Sequence[str], *, on: Machine, env: Mapping[str, str] | None = None) -> None:
        with (self.directory / f"{name}.out").open("ab") as log:
            self.running[name] = subprocess.Popen(
                [*on.prefix, *command],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env={**os.environ, **(env or {}), TOKEN_VARIABLE: self.token},
                start_new_session=True,
            )

    def await_(self, what: str, ready: Callable[[], bool]) -> None:
        """Wait until `ready`.

        Raises:
            ClusterError: a daemon ended, or it takes too long; with the end of the logs.
        """
        deadline = time.monotonic() + START_LIMIT_S
        while not ready():
            ended = [name for name, process in self.running.items() if process.poll() is not None]
            if ended or time.monotonic() > deadline:
                why = f"{', '.join(ended)} ended" if ended else f"not ready after {START_LIMIT_S:g} s"
                raise ClusterError(f"{what}: {why}\n{self.logs()}")
            time.sleep(POLL_S)

    def kill(self, name: str) -> None:
        """Kill one daemon as the kernel would, and wait until it is gone."""
        process = self.running.pop(name)
        process.send_signal(signal.SIGKILL)
        process.wait()

    def stop(self) -> None:
        """End all daemons and whatever they started."""
        for process in reversed(self.running.values()):
            with suppress(ProcessLookupError):
                process.terminate()
            with suppress(subprocess.TimeoutExpired):
                process.wait(STOP_LIMIT_S)
        left = [process for process in psutil.process_iter() if _marked(process, self.token)]
        for process in left:
            with suppress(psutil.NoSuchProcess):
                process.kill()
        psutil.wait_procs(left, timeout=STOP_LIMIT_S)
        for process in self.running.values():
            process.wait()

    def logs(self) -> str:
        """The last lines of every log."""
        paths = sorted([*self.directory.glob("*.out"), *self.directory.glob("*.log")])
        return "\n".join(f"--- {p.name}\n" + "\n".join(p.read_text(errors="replace").splitlines()[-8:]) for p in paths)


@dataclass(frozen=True, kw_only=True)
class Slurm:
    """A running Slurm cluster with the nodes n1 and n2.

    Attributes:
        env: what Slurm's commands need in their environment to talk to it.
        directory: of the configuration and the logs.
    """

    directory: Path
    env: Mapping[str, str]
    daemons: Daemons
    machines: Mapping[str, Machine]
    login: Machine

    def command(self, *arguments: str) -> str:
        """What one of Slurm's commands prints, stripped."""
        command = [*self.login.prefix, *arguments]
        done = subprocess.run(command, capture_output=True, text=True, env=os.environ | dict(self.env), timeout=30)
        if done.returncode:
            raise ClusterError(f"{' '.join(arguments)}: {done.stderr.strip()}")
        return done.stdout.strip()

    @property
    def jobs(self) -> list[str]:
        """Jobs in the queue, as "ID STATE REASON"."""
        return self.command("squeue", "--noheader", "--format=%i %T %r").splitlines()

    def kill_node(self, node: str) -> None:
        """Kill a node's slurmd; the processes of its jobs go on, as they do on a real node."""
        self.daemons.kill(node)

    def start_node(self, node: str) -> None:
        command = [found("slurmd"), "-D", "-f", str(self.directory / "slurm.conf"), "-N", node]
        self.daemons.start(node, command, on=self.machines[node], env=self.env)

    def await_nodes(self) -> None:
        """Wait until both nodes are idle."""
        self.daemons.await_("Slurm", self._idle)

    def _idle(self) -> bool:
        with suppress(ClusterError):
            return self.command("sinfo", "--noheader", "--Node", "--format=%N %T").splitlines() == [
                "n1 idle",
                "n2 idle",
            ]
        return False


@dataclass(frozen=True, kw_only=True)
class Ssh:
    """Two hosts that answer over SSH.

    Attributes:
        hosts: as `SSHEngineSetLauncher.engines` takes them.
        arguments: options for `ssh` and `scp` alike.
    """

    hosts: tuple[str, ...]
    arguments: tuple[str, ...]
    daemons: Daemons

    def options(self, count: int) -> dict[str, dict]:
        """`launcher_options` for `count` engines on each host."""
        arguments = list(self.arguments)
        engines = dict.fromkeys(self.hosts, count)
        launcher = {"engines": engines, "remote_python": sys.executable, "ssh_args": arguments, "scp_args": arguments}
        return {"SSHEngineSetLauncher": launcher}


def missing(kind: str) -> str:
    """Why a cluster of this kind (`slurm` or `ssh`) cannot be started here; empty if it can."""
    lacking = [name for name in (SLURM_COMMANDS if kind == "slurm" else SSH_COMMANDS) if not found(name)]
    return f"{', '.join(lacking)} not installed (Debian: apt-get install {PACKAGES[kind]})" if lacking else ""


def found(command: str) -> str:
    """Path of a command, also of an administrator's; empty if there is none."""
    return shutil.which(command, path=f"{os.environ.get('PATH', '')}:{SBIN}") or ""


@contextmanager
def slurm(*, cpus: int = 4, machines: Sequence[Machine] | None = None) -> Iterator[Slurm]:
    """A Slurm cluster of two nodes with `cpus` each (more than there are, if need be), idle.

    Args:
        machines: login machine, first and second node; loopback of this machine by default.

    Raises:
        ClusterError: a daemon did not start.
    """
    login, *nodes = machines or [Machine(name=socket.gethostname())] * 3
    with _directory() as directory, _daemons(directory) as daemons:
        _start_munge(daemons, login)
        ports = free_ports(3)
        (directory / "slurm.conf").write_text(_slurm_conf(directory, login, nodes, cpus=cpus, ports=ports))
        env = {"SLURM_CONF": str(directory / "slurm.conf")}
        by_name = dict(zip(("n1", "n2"), nodes, strict=True))
        cluster = Slurm(directory=directory, env=env, daemons=daemons, machines=by_name, login=login)
        daemons.start("slurmctld", [found("slurmctld"), "-D", "-f", env["SLURM_CONF"]], on=login, env=env)
        for node in by_name:
            cluster.start_node(node)
        cluster.await_nodes()
        yield cluster
        with suppress(ClusterError):
            cluster.command("scancel", "--user", getpass.getuser())


@contextmanager
def ssh(*, machines: Sequence[Machine] | None = None) -> Iterator[Ssh]:
    """Two hosts behind sshd, with a key of their own: two ports of loopback by default.

    Args:
        machines: the two hosts.

    Raises:
        ClusterError: sshd did not start.
    """
    nodes = machines or [Machine(name=f"host{i}") for i in (1, 2)]
    with _directory() as directory, _daemons(directory) as daemons:
        for name in ("host_key", "user_key"):
            subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(directory / name)], check=True)
        ports = free_ports(len(nodes))
        for node, port in zip(nodes, ports, strict=True):
            _start_sshd(daemons, node, port)
        known = "".join(
            f"[{node.address}]:{port} {(directory / 'host_key.pub').read_text()}"
            for node, port in zip(nodes, ports, strict=True)
        )
        (directory / "known_hosts").write_text(known)
        hosts = tuple(f"{node.address}:{port}" for node, port in zip(nodes, ports, strict=True))
        yield Ssh(hosts=hosts, arguments=_ssh_arguments(directory), daemons=daemons)


@contextmanager
def machines() -> Iterator[list[Machine]]:
    """A login machine and two nodes in network namespaces of their own, joined by a bridge in the first.

    Each command on a node also gets a host name and a /dev/shm of its own. Nothing is added to this machine's network.

    Raises:
        ClusterError: namespaces cannot be made (root on Linux can, most containers cannot).
    """
    names = [f"lab{os.getpid()}-{name}" for name in ("login", "n1", "n2")]
    with ExitStack() as stack:
        for name in names:
            _ip("netns", "add", name)
            stack.callback(_ip, "netns", "del", name)
            _ip("-n", name, "link", "set", "lo", "up")
        _ip("-n", names[0], "link", "add", "lab0", "type", "bridge")
        _ip("-n", names[0], "addr", "add", "10.77.0.1/24", "dev", "lab0")
        _ip("-n", names[0], "link", "set", "lab0", "up")
        for i, name in enumerate(names[1:], 1):
            _ip("link", "add", f"lab{i}", "netns", names[0], "type", "veth", "peer", "name", "lab0", "netns", name)
            _ip("-n", names[0], "link", "set", f"lab{i}", "master", "lab0", "up")
            _ip("-n", name, "addr", "add", f"10.77.0.{10 + i}/24", "dev", "lab0")
            _ip("-n", name, "link", "set", "lab0", "up")
        addresses = ("10.77.0.1", "10.77.0.11", "10.77.0.12")
        yield [_machine(ns, address) for ns, address in zip(names, addresses, strict=True)]


def free_ports(count: int) -> list[int]:
    """Ports of loopback that nobody listens on now."""
    with ExitStack() as stack:
        sockets = [stack.enter_context(socket.create_server((LOOPBACK, 0))) for _ in range(count)]
        return [one.getsockname()[1] for one in sockets]


def _machine(namespace: str, address: str) -> Machine:
    name = namespace.partition("-")[2]
    script = f'hostname {name} && mount -t tmpfs -o mode=1777 none /dev/shm && exec "$@"'
    prefix = ("nsenter", f"--net=/run/netns/{namespace}", "unshare", "--mount", "--uts", "sh", "-c", script, "sh")
    return Machine(name=name, address=address, prefix=prefix)


def _ip(*arguments: str) -> None:
    done = subprocess.run([found("ip") or "ip", *arguments], capture_output=True, text=True)
    if done.returncode:
        raise ClusterError(f"ip {' '.join(arguments)}: {done.stderr.strip()}")


@contextmanager
def _directory() -> Iterator[Path]:
    with tempfile.TemporaryDirectory(prefix="lab-cluster-") as directory:
        yield Path(directory)


@contextmanager
def _daemons(directory: Path) -> Iterator[Daemons]:
    daemons = Daemons(directory=directory)
    try:
        yield daemons
    finally:
        daemons.stop()


def _start_munge(daemons: Daemons, on: Machine) -> None:
    """munged with a key of its own; its socket is a file, so that it serves all nodes of this machine."""
    directory = daemons.directory
    key = directory / "munge.key"
    key.touch(mode=0o400)
    key.chmod(0o600)
    key.write_bytes(secrets.token_bytes(1024))
    files = {name: f"--{name}-file={directory / f'munge.{name}'}" for name in ("key", "pid", "seed")}
    log = f"--log-file={directory / 'munge.log'}"
    command = [found("munged"), "--foreground", "--force", f"--socket={directory / 'munge.socket'}", *files.values()]
    directory.chmod(0o755)
    daemons.start("munged", [*command, log], on=on)
    daemons.await_("munged", (directory / "munge.socket").exists)


def _slurm_conf(directory: Path, login: Machine, nodes: Sequence[Machine], *, cpus: int, ports: Sequence[int]) -> str:
    user = getpass.getuser()
    settings = {
        "ClusterName": "lab",
        "SlurmctldHost": f"{login.name}({login.address})",
        "SlurmctldPort": ports[0],
        "SlurmUser": user,
        "SlurmdUser": user,
        "AuthType": "auth/munge",
        "AuthInfo": f"socket={directory / 'munge.socket'}",
        "StateSaveLocation": directory / "state",
        "SlurmdSpoolDir": directory / "spool-%n",
        "SlurmctldPidFile": directory / "slurmctld.pid",
        "SlurmdPidFile": directory / "slurmd-%n.pid",
        "SlurmctldLogFile": directory / "slurmctld.log",
        "SlurmdLogFile": directory / "slurmd-%n.log",
        "ProctrackType": "proctrack/linuxproc",
        "TaskPlugin": "task/none",
        "SelectType": "select/cons_tres",
        "SelectTypeParameters": "CR_Core",
        "SlurmdParameters": "config_overrides",
        "SchedulerParameters": "bf_interval=1,sched_min_interval=0,batch_sched_delay=0",
        "SlurmdTimeout": 6,
        "KillWait": 2,
        "MpiDefault": "none",
        "ReturnToService": 2,
    }
    lines = [f"{name}={value}" for name, value in settings.items()]
    for i, node in enumerate(nodes, 1):
        where = f"NodeHostname={node.name} NodeAddr={node.address} Port={ports[i]}"
        lines.append(f"NodeName=n{i} {where} CPUs={cpus} State=UNKNOWN")
    lines.append("PartitionName=lab Nodes=n1,n2 Default=YES MaxTime=INFINITE State=UP")
    return "\n".join(lines) + "\n"


def _start_sshd(daemons: Daemons, node: Machine, port: int) -> None:
    if os.getuid() == 0:
        Path("/run/sshd").mkdir(mode=0o755, exist_ok=True)  # sshd of Debian wants it to give up privileges in
    directory = daemons.directory
    settings = {
        "ListenAddress": f"{node.address}:{port}",
        "HostKey": directory / "host_key",
        "AuthorizedKeysFile": directory / "user_key.pub",
        "PidFile": "none",
        "StrictModes": "no",
        "UsePAM": "no",
        "PasswordAuthentication": "no",
        "PermitRootLogin": "prohibit-password",
        "MaxStartups": "200",
        "Subsystem": "sftp internal-sftp",
    }
    config = directory / f"sshd-{port}.conf"
    config.write_text("".join(f"{name} {value}\n" for name, value in settings.items()))
    name = f"sshd-{port}"
    daemons.start(name, [found("sshd"), "-D", "-e", "-f", str(config)], on=node)
    log = directory / f"{name}.out"
    daemons.await_("sshd", lambda: "Server listening" in log.read_text())


def _ssh_arguments(directory: Path) -> tuple[str, ...]:
    options = {"UserKnownHostsFile": directory / "known_hosts", "IdentitiesOnly": "yes", "BatchMode": "yes"}
    settings = [word for name, value in options.items() for word in ("-o", f"{name}={value}")]
    return ("-F", "none", "-i", str(directory / "user_key"), *settings)


def _marked(process: psutil.Process, token: str) -> bool:
    with suppress(psutil.Error):
        return process.environ().get(TOKEN_VARIABLE) == token
    return False


def main(arguments: Sequence[str] | None = None) -> None:
    parser = tool_parser("tools.clusters", __doc__)
    parser.add_argument("kind", choices=("slurm", "ssh"), help="what to start")
    parser.add_argument(
        "--cpus", type=whole_in(1, 512), default=4, metavar="N", help="per Slurm node (default %(default)s)"
    )
    options = parser.parse_args(arguments)
    kind = options.kind
    if reason := missing(kind):
        raise argparse.ArgumentTypeError(reason)
    with slurm(cpus=options.cpus) if kind == "slurm" else ssh() as cluster:
        if kind == "slurm":
            print("".join(f"export {name}={value}\n" for name, value in cluster.env.items()), end="")
        else:
            print(f"launcher_options={cluster.options(2)}")
        for number in (signal.SIGINT, signal.SIGTERM):  # a shell's background job ignores the first
            signal.signal(number, signal.default_int_handler)
        print("Ctrl-C ends the cluster.", flush=True)
        with suppress(KeyboardInterrupt):
            signal.pause()


if __name__ == "__main__":
    sys.exit(run_tool(main))

"""How engines are started: by fork servers here or on other hosts, or by ipyparallel's launcher over MPI."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import psutil
from ipyparallel.cluster.launcher import MPIEngineSetLauncher

from mnnvl_lab.errors import choose
from mnnvl_lab.layout import Layout
from mnnvl_lab.processes.ownership import End, end, exit_message, tail
from mnnvl_lab.ranks.network import Say

LOOPBACK = "127.0.0.1"
STARTUP = "from mnnvl_lab.ranks.engine import Engine; engine = Engine()"


@dataclass(frozen=True, kw_only=True)
class Launcher:
    """One way to start engines.

    Attributes:
        name: what it is called here.
        engines: the class that starts engines, as ipyparallel's `Cluster(engines=...)` takes it; `local` also where
            fork servers start them.
        together: the end of one engine ends all.
        remote: engines may run on other machines.
    """

    name: str
    engines: str
    together: bool = False
    remote: bool = False

    @property
    def engine_args(self) -> list[str]:
        """No nanny: fork servers tell of an engine's end. On another host it ends if it hears of no controller."""
        local = [] if self.remote else ["--IPEngine.max_heartbeat_misses=0"]
        own = [f"--IPEngine.startup_command={STARTUP}", "--IPEngine.timeout=60", "--IPEngine.enable_nanny=False"]
        return own + local

    @property
    def controller_args(self) -> list[str]:
        """One process, no history, and a quick heartbeat: registration waits for the first."""
        return [
            "--IPController.use_threads=True",
            "--IPController.broadcast_scheduler_depth=0",
            "--IPController.db_class=NoDB",
            "--IPController.registration_timeout=120",
            f"--HeartMonitor.period={1000 if self.remote else 250}",
            f"--HeartMonitor.max_heartmonitor_misses={30 if self.remote else 400}",
        ]


LAUNCHERS = {
    "local": Launcher(name="local", engines="local"),
    "mpi": Launcher(name="mpi", engines="mnnvl_lab.ranks.launchers.PlacedByMpi", together=True),
    "ssh": Launcher(name="ssh", engines="local", remote=True),
    "slurm": Launcher(name="slurm", engines="local", remote=True),
}


def require_launcher(name: str) -> Launcher:
    """The launcher of that name.

    Raises:
        Refused: there is none.
    """
    return LAUNCHERS[choose(name, LAUNCHERS, "launcher")]


def common_environment(launcher: Launcher) -> dict[str, str]:
    """One thread a rank, since ranks outnumber cores; sockets of Gloo and NCCL on loopback where ranks are all here."""
    threads = dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"), "1")
    interfaces = () if launcher.remote else ("GLOO_SOCKET_IFNAME", "NCCL_SOCKET_IFNAME")
    return threads | dict.fromkeys(interfaces, _loopback_interface())


def _loopback_interface() -> str:
    interfaces = psutil.net_if_addrs().items()
    return next((name for name, addresses in interfaces if any(a.address == LOOPBACK for a in addresses)), "lo")


class PlacedByMpi(MPIEngineSetLauncher):
    """Engines that `mpiexec` places and that need not know it: they talk over torch.distributed, without mpi4py."""

    @property
    def program(self):
        return self.engine_cmd


class LauncherEngines:
    """Engine sets of an `ipyparallel.Cluster`.

    Args:
        cluster: it, with its controller.
        do: runs a coroutine of it and returns the result.
        engine_args: command line of every engine.
    """

    def __init__(self, cluster: Any, do: Callable, engine_args: list[str]):
        self._cluster, self._do, self._args = cluster, do, engine_args
        self._settled = 0  # sets that are not new

    def open(self, env: dict[str, str]) -> None:
        """Nothing can begin before the controller listens."""

    def fits(self, layout: Layout) -> bool:
        """What there is room for, the launcher itself will say."""
        return True

    def start(self, ranks: Sequence[int], *, layout: Layout, env: dict[str, str], deadline: float, say: Say) -> None:
        self._settled = len(self._cluster.engines)
        self._do(
            self._cluster.start_engines(len(ranks), engine_args=self._args, environment=dict(env)),
            timeout_s=max(1.0, deadline - time.monotonic()),
        )

    def processes(self) -> list[psutil.Process]:
        """Launchers' processes on this machine."""
        return _processes(self._cluster.engines.values())

    def kill_newest(self) -> None:
        """End the engines of the last `start`."""
        end(_processes(list(self._cluster.engines.values())[self._settled :]))

    def kill(self, host: str, pid: int) -> None:
        """All engines run here, where whoever holds their processes kills them."""

    def ended(self, host: str, pid: int) -> bool:
        """All engines run here, where they are watched themselves."""
        return False

    def first_exit(self) -> End | None:
        """How the newest set, or an engine of it, ended."""
        newest = list(self._cluster.engines.values())[-1]
        engines = (newest.stop_data or {}).get("engines", {})
        return _exit_in(newest, next((stop["pid"] for stop in engines.values()), 0))

    def exit_status(self, host: str, pid: int) -> End | None:
        sets = self._cluster.engines.values()
        return next(filter(None, (_exit_in(engine_set, pid) for engine_set in sets)), None)

    def close(self) -> None:
        self._do(self._cluster.stop_engines(), timeout_s=15)


def _processes(engine_sets: Iterable[Any]) -> list[psutil.Process]:
    processes = (getattr(engine_set, "process", None) for engine_set in engine_sets)
    return [process for process in processes if process is not None]


def _exit_in(engine_set: Any, pid: int) -> End | None:
    """How one engine of a set ended, or the whole set where one launcher's process stands for all."""
    stopped = engine_set.stop_data or {}
    for name, stop in stopped.get("engines", {}).items():
        if stop["pid"] == pid:
            return End(cause=_cause(stop["exit_code"]), report=tail(engine_set.outputs.get(name, "")))
    if engine_set.state == "after" and "engines" not in stopped:
        cause = f"its launcher ended with {exit_message(stopped['exit_code'])}"
        return End(cause=cause, report=tail(engine_set.get_output()))
    return None


def _cause(exit_code: int | None) -> str:
    """ipyparallel's SSH launcher waits for a process that is not its child, and says -1 whatever its exit code was."""
    return "its process ended (how, its launcher does not tell)" if exit_code == -1 else exit_message(exit_code)

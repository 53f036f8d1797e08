"""How engines are started: a table of ipyparallel's own launchers and what each needs to be told."""

from __future__ import annotations

from dataclasses import dataclass

import psutil

from mnnvl_lab.errors import choose

LOOPBACK = "127.0.0.1"
STARTUP = "from mnnvl_lab.ranks.engine import Engine; engine = Engine()"


@dataclass(frozen=True, kw_only=True)
class Launcher:
    """One way to start engines.

    Attributes:
        name: what it is called here.
        engines: the class that starts engines, as ipyparallel's `Cluster(engines=...)` takes it.
        together: the end of one engine ends all.
        remote: engines may run on other machines, where they cannot be watched: they report their end themselves.
    """

    name: str
    engines: str
    together: bool = False
    remote: bool = False

    @property
    def engine_args(self) -> list[str]:
        """A nanny process and heartbeats tell of an engine's end where its process cannot be watched from here."""
        local = [] if self.remote else ["--IPEngine.enable_nanny=False", "--IPEngine.max_heartbeat_misses=0"]
        return [f"--IPEngine.startup_command={STARTUP}", "--IPEngine.timeout=60", *local]

    @property
    def controller_args(self) -> list[str]:
        """One process, no history, and a quick heartbeat: registration waits for the first."""
        return [
            "--IPController.use_threads=True",
            "--IPController.broadcast_scheduler_depth=0",
            "--IPController.db_class=NoDB",
            "--IPController.registration_timeout=120",
            f"--HeartMonitor.period={1000 if self.remote else 250}",
            f"--HeartMonitor.max_heartmonitor_misses={4 if self.remote else 400}",
        ]


LAUNCHERS = {
    "local": Launcher(name="local", engines="local"),  # forked, see nursery.py
    "mpi": Launcher(name="mpi", engines="mnnvl_lab.ranks.launched.PlacedByMpi", together=True),
    "ssh": Launcher(name="ssh", engines="ssh", remote=True),
    "slurm": Launcher(name="slurm", engines="slurm", together=True, remote=True),
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

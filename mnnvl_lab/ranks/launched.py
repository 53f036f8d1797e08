"""Engines that a launcher of ipyparallel starts: over MPI, SSH or Slurm."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from typing import Any

import psutil
from ipyparallel.cluster.launcher import MPIEngineSetLauncher

from mnnvl_lab.ranks.ends import End, exit_words, tail


class PlacedByMpi(MPIEngineSetLauncher):
    """Engines that `mpiexec` places and that need not know it: they talk over torch.distributed, without mpi4py."""

    @property
    def program(self):
        return self.engine_cmd


class Launched:
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

    def start(self, count: int, *, env: dict[str, str], deadline: float) -> None:
        self._settled = len(self._cluster.engines)
        self._do(
            self._cluster.start_engines(count, engine_args=self._args, environment=dict(env)),
            timeout_s=max(1.0, deadline - time.monotonic()),
        )

    def processes(self) -> list[psutil.Process]:
        """Launchers' processes on this machine."""
        return _processes(self._cluster.engines.values())

    def newest(self) -> list[psutil.Process]:
        """Those of the last `start`."""
        return _processes(list(self._cluster.engines.values())[self._settled :])

    def first_end(self) -> End | None:
        """How the newest set, or an engine of it, ended."""
        newest = list(self._cluster.engines.values())[-1]
        engines = (newest.stop_data or {}).get("engines", {})
        return _end_in(newest, next((stop["pid"] for stop in engines.values()), 0))

    def end_of(self, pid: int) -> End | None:
        sets = self._cluster.engines.values()
        return next(filter(None, (_end_in(engine_set, pid) for engine_set in sets)), None)

    def close(self) -> None:
        self._do(self._cluster.stop_engines(), timeout_s=15)


def _processes(engine_sets: Iterable[Any]) -> list[psutil.Process]:
    processes = (getattr(engine_set, "process", None) for engine_set in engine_sets)
    return [process for process in processes if process is not None]


def _end_in(engine_set: Any, pid: int) -> End | None:
    """How one engine of a set ended, or the whole set where one launcher's process stands for all."""
    stopped = engine_set.stop_data or {}
    for name, stop in stopped.get("engines", {}).items():
        if stop["pid"] == pid:
            return End(cause=_cause(stop["exit_code"]), report=tail(engine_set.outputs.get(name, "")))
    if engine_set.state == "after" and "engines" not in stopped:
        cause = f"its launcher ended with {exit_words(stopped['exit_code'])}"
        return End(cause=cause, report=tail(engine_set.get_output()))
    return None


def _cause(exit_code: int | None) -> str:
    """ipyparallel's SSH launcher waits for a process that is not its child, and says -1 whatever its exit code was."""
    return "its process ended (how, its launcher does not tell)" if exit_code == -1 else exit_words(exit_code)

"""The engine processes, over ipyparallel's `Cluster` and `Client`: start, ask, watch, kill."""

from __future__ import annotations

import asyncio
import pickle
import shutil
import signal
import socket
import tempfile
import threading
import time
from collections.abc import Iterable, Sequence
from concurrent.futures import Future
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil

from mnnvl_lab.errors import RankDied, RankTimeout
from mnnvl_lab.ranks.engine import Failure, Identity
from mnnvl_lab.ranks.launchers import Launcher
from mnnvl_lab.ranks.warden import Warden, alive, end

POLL_S = 0.02
REPORT_LINES = 40  # of a dead engine's log


@dataclass(frozen=True, kw_only=True)
class Process:
    """An engine as seen from here.

    Attributes:
        engine: its number in ipyparallel.
        pid, host: its process and machine.
        handle: its process, if the machine is this one.
    """

    engine: int
    pid: int
    host: str
    handle: psutil.Process | None

    @property
    def here(self) -> bool:
        return self.handle is not None


class Cluster:
    """A controller and the engines that registered with it.

    Args:
        launcher: how engines start.
        options: ipyparallel's own configuration by class name, such as `{"SSHEngineSetLauncher": {"engines": ...}}`.
        start_timeout_s: how long engines may take to register.

    Attributes:
        run_dir: private directory with keys, logs and marks.
        segment_dir: private directory in memory.
    """

    def __init__(self, *, launcher: Launcher, options: dict[str, Any], start_timeout_s: float):
        self.launcher, self._start_timeout_s = launcher, start_timeout_s
        self.run_dir = Path(tempfile.mkdtemp(prefix="mnnvl_lab-"))
        self.segment_dir = Path(tempfile.mkdtemp(prefix="mnnvl_lab-", dir=_memory_dir()))
        self._warden = Warden(self.run_dir, self.segment_dir)
        self._loop = asyncio.new_event_loop()
        threading.Thread(target=self._loop.run_forever, name="mnnvl_lab-cluster", daemon=True).start()
        self._cluster = _ipyparallel_cluster(launcher, self.run_dir, options)
        self._client = None
        self._known: set[int] = set()

    def start(self, count: int, *, env: dict[str, str]) -> list[Process]:
        """Start `count` more engines and wait until they answer, in the order in which their launcher counts them.

        Args:
            env: environment variables of their processes.

        Raises:
            RankDied: one ended while it started; RankTimeout: not all registered in time.
        """
        deadline = time.monotonic() + self._start_timeout_s
        self._start_controller()
        args = self.launcher.all_engine_args
        self._do(self._cluster.start_engines(count, engine_args=args, environment=dict(env)))
        self._warden.watch(self._started())
        engines = self._await_registration(count, deadline)
        identities = [self._identify(engine, deadline) for engine in engines]
        order = sorted(range(count), key=lambda i: (identities[i].place, engines[i]))
        return [_process(engines[i], identities[i]) for i in order]

    def guard(self, processes: Iterable[psutil.Process], directory: Path) -> None:
        """Have further processes and a directory cleaned up if this process is killed."""
        self._warden.watch(processes, directory)

    def submit(self, process: Process, method: str, *args: Any, **kwargs: Any) -> Future:
        """Ask an engine to call a method of its `Engine`; the future's result is what `unpack` reads."""
        from ipyparallel import Reference

        view = self._client[process.engine]
        return view.apply_async(Reference("engine.answer"), pickle.dumps((method, args, kwargs)))

    def forget(self, futures: Iterable[Future]) -> None:
        """Drop what the client keeps of finished calls, so that long sweeps do not grow."""
        for future in futures:
            if future.done():
                self._client.purge_local_results(future)

    def alive(self, process: Process) -> bool:
        """Whether the engine's process runs, as far as can be seen from here."""
        if not process.here:
            return process.engine in self._client.ids
        return alive(process.handle)

    def kill(self, processes: Sequence[Process]) -> None:
        """Kill engines and wait until they are gone, so that what they held (GPU memory, ports) is free."""
        end(process.handle for process in processes if process.here)
        for process in processes:
            if not process.here and self.alive(process):
                self._client.send_signal(signal.SIGKILL, targets=process.engine, block=False)

    def cause_of_death(self, process: Process) -> tuple[str, str]:
        """How the process ended and the last lines of its log, as its launcher noticed them."""
        deadline = time.monotonic() + 1
        while time.monotonic() < deadline:
            for engine_set in self._cluster.engines.values():
                found = _stop_of(engine_set, process.pid)
                if found:
                    return found
            time.sleep(POLL_S)
        return "its process ended", ""

    def close(self) -> None:
        """End every process and remove every file. Idempotent; works at whatever point the start was left."""
        if self._client is not None:
            self._client.close(linger=0)
            self._client = None
        if self.launcher.remote:
            with suppress(Exception):
                self._do(self._cluster.stop_engines(), timeout_s=15)
        end(self._started())
        self._loop.call_soon_threadsafe(self._loop.stop)
        for directory in (self.run_dir, self.segment_dir):
            shutil.rmtree(directory, ignore_errors=True)
        self._warden.dismiss()

    def _do(self, coroutine, timeout_s: float | None = None) -> Any:
        """Run on the cluster's own event loop: the notebook's is busy with the cell that waits for this."""
        return asyncio.run_coroutine_threadsafe(coroutine, self._loop).result(timeout_s)

    def _start_controller(self) -> None:
        if self._client is None:
            self._do(self._cluster.start_controller())
            self._warden.watch(self._started())
            self._client = self._do(self._cluster.connect_client())

    def _started(self) -> list[psutil.Process]:
        """Processes on this machine that launchers started and that still run."""
        launchers = [self._cluster.controller]
        for engine_set in self._cluster.engines.values():
            launchers += [engine_set, *getattr(engine_set, "launchers", {}).values()]
        processes = (getattr(launcher, "process", None) for launcher in launchers)
        return [process for process in processes if process is not None and alive(process)]

    def _await_registration(self, count: int, deadline: float) -> list[int]:
        engine_set = list(self._cluster.engines.values())[-1]
        while len(new := set(self._client.ids) - self._known) < count:
            for stop in (engine_set.stop_data or {}).get("engines", {}).values():
                cause, report = _stop_of(engine_set, stop["pid"])
                raise RankDied(rank=int(stop["identifier"]), phase="start", cause=cause, report=report)
            if time.monotonic() > deadline:
                cause = f"{count - len(new)} of {count} engines did not register within {self._start_timeout_s} s"
                raise RankTimeout(rank=len(self._known) + len(new), phase="start", cause=cause)
            time.sleep(POLL_S)
        self._known |= new
        return sorted(new)

    def _identify(self, engine: int, deadline: float) -> Identity:
        nobody_yet = Process(engine=engine, pid=0, host="", handle=None)
        return unpack(self.submit(nobody_yet, "identify").get(max(1.0, deadline - time.monotonic())))


def unpack(answer: bytes) -> Any:
    """What an engine answered: a value, or a `Failure`."""
    return pickle.loads(answer)


def failure_of(error: BaseException) -> Failure:
    """An answer that never came because ipyparallel failed in between."""
    return Failure(error=None, words=f"{type(error).__name__}: {error}", report="")


def _process(engine: int, identity: Identity) -> Process:
    handle = psutil.Process(identity.pid) if identity.host == socket.gethostname() else None
    return Process(engine=engine, pid=identity.pid, host=identity.host, handle=handle)


def _ipyparallel_cluster(launcher: Launcher, run_dir: Path, options: dict[str, Any]):
    import ipyparallel
    from traitlets.config import Config

    return ipyparallel.Cluster(
        engines=launcher.name,
        profile_dir=str(run_dir),
        cluster_id="",
        cluster_file="",
        controller_args=launcher.controller_args,
        config=Config({"LocalEngineSetLauncher": {"delay": 0.0}} | options),
        load_profile=False,
        shutdown_atexit=False,
        log_level=100,
        delay=0,
    )


def _stop_of(engine_set: Any, pid: int) -> tuple[str, str] | None:
    """Cause and log of one engine of a set, or of the whole set where one launcher process stands for all."""
    stopped = engine_set.stop_data or {}
    for name, stop in stopped.get("engines", {}).items():
        if stop["pid"] == pid:
            return _words(stop["exit_code"]), _tail(engine_set.outputs.get(name, ""))
    if engine_set.state == "after" and "engines" not in stopped:
        return f"its launcher ended with {_words(stopped['exit_code'])}", _tail(engine_set.get_output())
    return None


def _words(exit_code: int | None) -> str:
    if exit_code is not None and exit_code < 0:
        return f"killed by signal {-exit_code} ({signal.Signals(-exit_code).name})"
    return f"exit code {exit_code}"


def _tail(log: str) -> str:
    """The end of a log without the engine's own chatter."""
    lines = [line for line in log.splitlines() if "[IPEngine" not in line]
    return "\n".join(lines[-REPORT_LINES:])


def _memory_dir() -> str | None:
    return "/dev/shm" if Path("/dev/shm").is_dir() else None

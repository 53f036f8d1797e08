"""The engine processes, over ipyparallel's `Cluster` and `Client`: start, ask, watch, kill."""

from __future__ import annotations

import asyncio
import pickle
import secrets
import signal
import socket
import tempfile
import threading
import time
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import Future
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import psutil

from mnnvl_lab.errors import RankDied, RankTimeout
from mnnvl_lab.ranks.ends import End
from mnnvl_lab.ranks.engine import Failure, Identity
from mnnvl_lab.ranks.launchers import Launcher
from mnnvl_lab.ranks.nursery import Nursery
from mnnvl_lab.ranks.warden import Warden, alive, end, remove

if TYPE_CHECKING:
    from mnnvl_lab.ranks.launched import Launched

POLL_S = 0.02
END_S = 3.0  # for a launcher to notice the end of a process


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
        _secure(self.run_dir)
        self._loop = asyncio.new_event_loop()
        threading.Thread(target=self._loop.run_forever, name="mnnvl_lab-cluster", daemon=True).start()
        self._cluster = _ipyparallel_cluster(launcher, self.run_dir, options)
        self._engines = self._source(launcher)
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
        self._engines.open(env)
        self._start_controller()
        self._engines.start(count, env=env)
        self._warden.watch(self._engines.processes())
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

    def seconds_used(self, processes: Mapping[int, Process]) -> dict[int, float]:
        """Processor time of each process on this machine that runs, under the keys given."""
        used = {}
        for key, process in processes.items():
            with suppress(psutil.Error):
                if process.here:
                    used[key] = sum(process.handle.cpu_times()[:2])
        return used

    def kill(self, processes: Sequence[Process]) -> None:
        """Kill engines and wait until they are gone, so that what they held (GPU memory, ports) is free."""
        end(process.handle for process in processes if process.here)
        for process in processes:
            if not process.here and self.alive(process):
                self._client.send_signal(signal.SIGKILL, targets=process.engine, block=False)

    def end_of(self, process: Process) -> End:
        """How a dead engine's process ended, as its launcher noticed it."""
        deadline = time.monotonic() + END_S
        while (found := self._engines.end_of(process.pid)) is None and time.monotonic() < deadline:
            time.sleep(POLL_S)
        return found or End(cause="its process ended")

    def close(self) -> None:
        """End every process and remove every file. Idempotent; works at whatever point the start was left."""
        if self._client is not None:
            self._client.close(linger=0)
            self._client = None
        end([*self._engines.processes(), *self._controller_processes()])
        with suppress(Exception):  # a launcher that cannot reach other machines must not keep this one from going on
            self._engines.close()
        self._loop.call_soon_threadsafe(self._loop.stop)
        for directory in (self.run_dir, self.segment_dir):
            remove(directory)
        self._warden.dismiss()

    def _do(self, coroutine, timeout_s: float | None = None) -> Any:
        """Run on the cluster's own event loop: the notebook's is busy with the cell that waits for this."""
        return asyncio.run_coroutine_threadsafe(coroutine, self._loop).result(timeout_s)

    def _source(self, launcher: Launcher) -> Nursery | Launched:
        if launcher.name == "local":
            return Nursery(self.run_dir, launcher.engine_args)
        from mnnvl_lab.ranks.launched import Launched

        return Launched(self._cluster, self._do, launcher.engine_args)

    def _start_controller(self) -> None:
        if self._client is None:
            self._do(self._cluster.start_controller())
            self._warden.watch(self._controller_processes())
            self._client = self._do(self._cluster.connect_client())

    def _controller_processes(self) -> list[psutil.Process]:
        controller = self._cluster.controller
        return [controller.process] if controller and controller.process else []

    def _await_registration(self, count: int, deadline: float) -> list[int]:
        while len(new := set(self._client.ids) - self._known) < count:
            if found := self._engines.first_end():
                raise RankDied(rank=len(self._known), phase="start", cause=found.cause, report=found.report)
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


def _secure(run_dir: Path) -> None:
    """Have messages signed as well as encrypted; in a file, since others can read command lines."""
    key = secrets.token_hex(32).encode()
    settings = f"c.Session.key = {key!r}\nc.IPController.enable_curve = True\n"
    (run_dir / "ipcontroller_config.py").write_text(settings)


def _ipyparallel_cluster(launcher: Launcher, run_dir: Path, options: dict[str, Any]):
    import ipyparallel
    from traitlets.config import Config

    return ipyparallel.Cluster(
        engines=launcher.engines,
        profile_dir=str(run_dir),
        cluster_id="",
        cluster_file="",
        controller_args=launcher.controller_args,
        config=Config(options),
        load_profile=False,
        shutdown_atexit=False,
        log_level=100,
        delay=0,
    )


def _memory_dir() -> str | None:
    return "/dev/shm" if Path("/dev/shm").is_dir() else None

"""The engine processes, over ipyparallel: start, ask, watch, kill; and the processes that serve them."""

from __future__ import annotations

import os
import pickle
import secrets
import time
import warnings
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import Future, wait
from contextlib import suppress
from typing import TYPE_CHECKING, Any

import psutil

from mnnvl_lab.errors import RankDied, RankTimeout, Refused
from mnnvl_lab.layout import Layout
from mnnvl_lab.processes.ownership import RUN_VARIABLE, End, OwnedDirectory, after_error, alive, end, marked_processes
from mnnvl_lab.processes.reaper_client import Reaper
from mnnvl_lab.ranks.arguments import created, memory_dir, require_memory, require_open_files, temporary_dir
from mnnvl_lab.ranks.controller import Controller, Process
from mnnvl_lab.ranks.engine import Failure, Identity
from mnnvl_lab.ranks.fork_server import ForkServer
from mnnvl_lab.ranks.launchers import Launcher
from mnnvl_lab.ranks.network import LOOPBACK
from mnnvl_lab.ranks.rank import read_report
from mnnvl_lab.ranks.remote import RemoteForkServers
from mnnvl_lab.ranks.slurm_hosts import SlurmHosts
from mnnvl_lab.ranks.ssh import SshHosts

if TYPE_CHECKING:
    from mnnvl_lab.ranks.launchers import LauncherEngines

POLL_S = 0.02
ASK_AGAIN_S = 0.2
END_S, END_REMOTE_S = 3.0, 15.0  # for a launcher to notice the end of a process


class Cluster:
    """A controller and the engines that registered with it.

    Args:
        launcher: how engines start.
        options: ipyparallel's own configuration by class name, such as `{"SSHEngineSetLauncher": {"engines": ...}}`.
        start_timeout_s: how long engines may take to register.

    Attributes:
        status: what a start waits for, in words; empty otherwise.
        run_dir: private directory with keys, logs and marks.
        segment_dir: private directory in memory.

    Raises:
        Refused: there is no room for the directories, or too few files may be open.
    """

    def __init__(self, *, launcher: Launcher, options: dict[str, Any], start_timeout_s: float):
        self.launcher, self._start_timeout_s = launcher, start_timeout_s
        require_open_files(1)
        self._owner, self._marks = os.getpid(), {RUN_VARIABLE: secrets.token_hex(16)}
        self._directories = [OwnedDirectory.named(parent) for parent in (temporary_dir(), memory_dir())]
        self._reaper = Reaper()
        self._hosts = _hosts(launcher, options, token=self._marks[RUN_VARIABLE])
        cancel = self._hosts.cancel_command if self._hosts else ()
        self._reaper.watch(directories=self._directories, marked=self._marks.items(), cancel=cancel)
        self.run_dir, self.segment_dir = map(created, self._directories)
        options = _with_address(options, self._hosts)
        self._controller = Controller(launcher, run_dir=self.run_dir, options=options, marks=self._marks)
        self._engines = self._source(launcher)
        self.status = ""
        self._known: set[int] = set()

    @property
    def address(self) -> str:
        """Address of this machine that all ranks reach."""
        return self._controller.cluster.controller_ip or LOOPBACK

    def fits(self, layout: Layout) -> bool:
        """Whether a layout has room where the ranks are; if not, all must end before others are started elsewhere.

        Raises:
            Refused: it has room nowhere.
        """
        return self._engines.fits(layout)

    def start(self, ranks: Sequence[int], *, layout: Layout, env: dict[str, str]) -> list[Process]:
        """Start an engine for each of these ranks and wait until they answer, in this order.

        Args:
            layout: says on which host each rank is to be.
            env: environment variables of their processes.

        Raises:
            RankDied: one ended while it started; RankTimeout: not all registered in time. HelperDied: the controller or
                the fork server died meanwhile. Refused: too few files may be open for so many.
        """
        self._require_owner()
        if not self._hosts:
            require_memory(len(ranks))
        require_open_files(max(layout.world_size, len(self._engines.processes()) + len(ranks)))
        deadline = time.monotonic() + self._start_timeout_s
        self._engines.open(env | self._marks)
        self._start_controller(deadline)
        try:
            return self._start(ranks, layout, env | self._marks, deadline)
        except BaseException:
            self._engines.kill_newest()
            self._known |= set(self._controller.client.ids)
            raise
        finally:
            self.status = ""

    def recover(self) -> bool:
        """Start another controller and reaper if they died, as they may between two calls.

        Returns:
            Whether the controller was replaced: engines then reconnect, if they live.
        """
        self._require_owner()
        self._reaper.ensure()
        found = self._controller.end()
        if found is None:
            return False
        words = f"the controller process died: {found.cause}; another was started, and the ranks stay as they are"
        warnings.warn(words, RuntimeWarning, stacklevel=4)
        self._start_controller(time.monotonic() + self._start_timeout_s)
        return True

    def require_helpers(self) -> None:
        """Raises HelperDied if no answer can come any more because the controller is gone; replaces a dead reaper."""
        self._reaper.ensure()
        self._controller.require()

    def reachable(self, processes: Mapping[int, Process], *, limit_s: float) -> set[int]:
        """Keys of the engines that answer within the limit, and so are idle.

        Each is asked again and again: a controller drops what is for an engine that has not reconnected yet.
        """
        ids, deadline = set(self._controller.client.ids), time.monotonic() + limit_s
        asked = {key: [] for key, process in processes.items() if process.engine in ids}
        answered: set[int] = set()
        while asked.keys() - answered and time.monotonic() < deadline:
            rest = asked.keys() - answered
            for key in rest:
                asked[key].append(self.submit(processes[key], "identify"))
            wait([future for key in rest for future in asked[key]], timeout=ASK_AGAIN_S)
            answered = {key for key, futures in asked.items() if any(future.done() for future in futures)}
        return answered

    @property
    def guard(self) -> Reaper:
        """Who cleans up what else is started, if this process is killed."""
        return self._reaper

    def submit(self, process: Process, method: str, *args: Any, **kwargs: Any) -> Future:
        """Ask an engine to call a method of its `Engine`; the future's result is what `unpack` reads."""
        from ipyparallel import Reference

        view = self._controller.client[process.engine]
        return view.apply_async(Reference("engine.answer"), pickle.dumps((method, args, kwargs)))

    def printed(self, future: Future) -> tuple[str, str]:
        """What a call has printed so far: standard output and standard error."""
        (metadata,) = future._metadata  # `future.metadata` is the same, but parses four dates, 0.5 ms per rank
        return metadata["stdout"], metadata["stderr"]

    def forget(self, futures: Iterable[Future]) -> None:
        """Drop what the client keeps of finished calls, so that long sweeps do not grow."""
        for future in futures:
            if future.done():
                self._controller.client.purge_local_results(future)

    def alive(self, process: Process) -> bool:
        """Whether the engine's process runs, as far as can be seen from here."""
        if self._engines.ended(process.host, process.pid):
            return False
        if not process.here:
            return process.engine in self._controller.client.ids
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
                self._engines.kill(process.host, process.pid)
        deadline = time.monotonic() + END_S
        while any(not p.here and self.alive(p) for p in processes) and time.monotonic() < deadline:
            time.sleep(POLL_S)

    def exit_status(self, process: Process) -> End:
        """How a dead engine's process ended, as its launcher noticed it, and the error that it had met before."""
        deadline = time.monotonic() + (END_REMOTE_S if self._hosts else END_S)
        while (found := self._engines.exit_status(process.host, process.pid)) is None and time.monotonic() < deadline:
            time.sleep(POLL_S)
        return after_error(found or End(cause="its process ended"), read_report(self.run_dir, process.pid))

    def close(self) -> None:
        """End every process and remove every file. Idempotent; works at whatever point the start was left.

        Nothing happens in a forked child of the process that started the ranks: they are not the child's.
        """
        if os.getpid() != self._owner:
            return
        self._controller.disconnect()
        if not self._hosts:
            end(self._engines.processes())
        with suppress(Exception):  # a launcher that cannot reach other machines must not keep this one from going on
            self._engines.close()
        end([*self._engines.processes(), *self._controller.processes])
        for mark in self._marks.items():  # also what lost its parent, such as the heartbeat of a dead controller
            end(marked_processes(*mark))
        self._controller.close()
        for directory in self._directories:
            directory.remove()
        self._reaper.dismiss()

    def _require_owner(self) -> None:
        if os.getpid() != self._owner:
            raise Refused(
                f"ranks of process {self._owner} in its forked child {os.getpid()}: only the process that started "
                "ranks can use them; start others in the child"
            )

    def _source(self, launcher: Launcher) -> ForkServer | LauncherEngines | RemoteForkServers:
        if self._hosts:
            return RemoteForkServers(
                self._hosts, self.run_dir, launcher.engine_args, directories=self._directories, marks=self._marks
            )
        if launcher.name == "local":
            return ForkServer(self.run_dir, launcher.engine_args, marks=self._marks)
        from mnnvl_lab.ranks.launchers import LauncherEngines

        return LauncherEngines(self._controller.cluster, self._controller.do, launcher.engine_args)

    def _start(self, ranks: Sequence[int], layout: Layout, env: dict[str, str], deadline: float) -> list[Process]:
        self._engines.start(ranks, layout=layout, env=env, deadline=deadline, say=self._say)
        self._reaper.watch(self._engines.processes())
        identities = self._await_registration(len(ranks), deadline)
        order = sorted(identities, key=lambda engine: (identities[engine].place, engine))
        return [Process.of(engine, identities[engine]) for engine in order]

    def _say(self, status: str) -> None:
        self.status = status

    def _start_controller(self, deadline: float) -> None:
        self._controller.start(deadline)
        self._known &= set(self._controller.client.ids)  # one that began anew numbers engines from 0 again
        self._reaper.watch(self._controller.processes)

    def _await_registration(self, count: int, deadline: float) -> dict[int, Identity]:
        """Who the next `count` engines are, once they have registered and answered."""
        asked: dict[int, Future] = {}
        while (answered := sum(future.done() for future in asked.values())) < count:
            for engine in set(self._controller.client.ids) - self._known - asked.keys():
                asked[engine] = self.submit(Process.unknown(engine), "identify")
            self.require_helpers()
            self._say(f"{answered} of {count} ranks registered")
            if found := self._engines.first_exit():
                raise RankDied(rank=len(self._known), phase="start", cause=found.cause, report=found.report)
            if time.monotonic() > deadline:
                cause = f"{count - answered} of {count} engines did not register within {self._start_timeout_s} s"
                raise RankTimeout(rank=len(self._known) + answered, phase="start", cause=cause)
            time.sleep(POLL_S)
        identities = {engine: unpack(future.result()) for engine, future in asked.items() if future.done()}
        self._known |= identities.keys()
        return identities


def _hosts(launcher: Launcher, options: dict[str, Any], *, token: str) -> SshHosts | SlurmHosts | None:
    """Where the hosts of a launcher come from; None if ranks run on this machine alone."""
    if launcher.name == "ssh":
        return SshHosts(options.get("SSHEngineSetLauncher", {}))
    if launcher.name == "slurm":
        return SlurmHosts(options.get("SlurmEngineSetLauncher", {}), token)
    return None


def _with_address(options: dict[str, Any], hosts: SshHosts | SlurmHosts | None) -> dict[str, Any]:
    """Let the controller listen where the hosts can reach it, if the options do not say where."""
    cluster = options.get("Cluster", {})
    if hosts is None or cluster.get("controller_ip"):
        return options
    return options | {"Cluster": {**cluster, "controller_ip": hosts.address()}}


def unpack(answer: bytes) -> Any:
    """What an engine answered: a value, or a `Failure`."""
    return pickle.loads(answer)


def failure_of(error: BaseException) -> Failure:
    """An answer that never came because ipyparallel failed in between."""
    return Failure(error=None, words=f"{type(error).__name__}: {error}", report="")

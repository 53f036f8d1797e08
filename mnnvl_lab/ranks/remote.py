"""Ranks on other hosts: one fork server on each, reached through `ssh` or `srun`.

A rank that died is forked again where it was, within a moment; a host that is lost takes its ranks along.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Protocol

import psutil

from mnnvl_lab.errors import HelperDied, RankDied, Refused
from mnnvl_lab.layout import Layout
from mnnvl_lab.processes.ownership import End, OwnedDirectory, after_error, alive, exit_message, tail
from mnnvl_lab.ranks.network import Say
from mnnvl_lab.ranks.remote_server import BOOT, NODE_VARIABLE
from mnnvl_lab.ranks.slurm import client_environment

POLL_S = 0.02
DEATH_NEWS_S = 1.0
CLEAN_UP_S = 15.0  # for a server to kill its ranks, remove directories and end


@dataclass(frozen=True, kw_only=True)
class Host:
    """A host for ranks.

    Attributes:
        name: as the launcher names it.
        slots: ranks that it has room for.
        command: runs Python there: what follows are its arguments.
        quote: makes arguments fit for it; a remote shell reads them once more.
    """

    name: str
    slots: int
    command: tuple[str, ...]
    quote: Callable[[str], str] = str


class Hosts(Protocol):
    """Where the hosts come from."""

    cancel_command: Sequence[str]  # run by the reaper, if this process is killed; empty if there is nothing to cancel
    leave_command: Sequence[str]  # run by the first host's server at its end; likewise

    def address(self) -> str:
        """Address of this machine that the hosts can reach."""

    def fits(self, layout: Layout) -> bool:
        """Whether the hosts at hand have room for a layout; if not, `ready` gets others. Raises Refused if none can."""

    def ready(self, layout: Layout, deadline: float, say: Say) -> list[Host]:
        """The hosts, once they can be used."""

    def how_it_ended(self) -> str:
        """What ended all hosts at once, in words; empty if nothing did."""

    def close(self) -> None:
        """Give the hosts back."""


def placed(hosts: Sequence[Host], layout: Layout) -> list[Host]:
    """Host of each rank: node by node in the layout's order, at most `gpus_per_node` on each.

    Raises:
        Refused: there is no room.
    """
    chosen = [host for host in hosts for _ in range(min(host.slots, layout.gpus_per_node))][: layout.world_size]
    if len(chosen) < layout.world_size:
        listed = ", ".join(f"{host.name}: {host.slots}" for host in hosts)
        raise Refused(
            f"{layout.world_size} ranks on hosts with {len(chosen)} places ({listed}; gpus_per_node is "
            f"{layout.gpus_per_node}): use more hosts or more ranks on each, or a smaller layout"
        )
    return chosen


class RemoteForkServers:
    """The notebook's end of all servers.

    Args:
        hosts: where they come from.
        run_dir: private directory here; a host gets one of the same path where it does not have it.
        directories: to be made on each host, with their owner's token.
        engine_args: command line of every engine.
        marks: environment variables that only processes of this run have.
    """

    def __init__(
        self,
        hosts: Hosts,
        run_dir: Path,
        engine_args: list[str],
        *,
        directories: Iterable[OwnedDirectory],
        marks: Mapping[str, str],
    ):
        self._hosts, self._run_dir, self._args, self._marks = hosts, Path(run_dir), engine_args, dict(marks)
        self._directories = list(directories)
        self._servers: dict[str, RemoteForkServer] = {}
        self._former: list[RemoteForkServer] = []  # told of ends only
        self._newest: list[tuple[RemoteForkServer, int]] = []

    def open(self, env: Mapping[str, str]) -> None:
        """Nothing can begin before the hosts are there."""

    def fits(self, layout: Layout) -> bool:
        return self._hosts.fits(layout)

    def start(
        self,
        ranks: Sequence[int],
        *,
        layout: Layout,
        env: Mapping[str, str],
        deadline: float,
        say: Say,
    ) -> None:
        """Have an engine forked for each of these ranks, on its host.

        Args:
            deadline: on the monotonic clock.
            say: told what is waited for.

        Raises:
            Refused: the hosts have no room. RankDied, RankTimeout: they did not come, or went. HelperDied: a server did
                not start.
        """
        self._newest = []
        host_of = placed(self._ready(layout, deadline, say), layout)
        by_host: dict[str, list[int]] = {}
        for rank in ranks:
            by_host.setdefault(host_of[rank].name, []).append(rank)
        try:
            say(f"starting Python on {', '.join(by_host)}")
            for name in by_host:
                self._servers[name].open(env)
            for name, on_host in by_host.items():
                server = self._servers[name]
                self._newest += [(server, pid) for pid in server.fork(on_host, env, deadline)]
        except HelperDied as error:
            if words := self._hosts.how_it_ended():
                raise RankDied(rank=ranks[0], phase="start", cause=words, report=error.report) from error
            raise

    def processes(self) -> list[psutil.Process]:
        """The processes here that hold the connections."""
        return [process for server in self._all() for process in server.processes()]

    def kill_newest(self) -> None:
        """Kill the engines of the last `start`."""
        for server, pid in self._newest:
            server.kill([pid])

    def kill(self, host: str, pid: int) -> None:
        """Kill one engine on its host."""
        for server in self._all():
            if server.started(host, pid):
                server.kill([pid])

    def ended(self, host: str, pid: int) -> bool:
        """Whether an engine is known to have ended, or its host is lost."""
        return any(server.started(host, pid) and server.exit_status(pid) for server in self._all())

    def first_exit(self) -> End | None:
        """How one of the newest engines ended, if one did."""
        return next(filter(None, (self._explained(server.exit_status(pid)) for server, pid in self._newest)), None)

    def exit_status(self, host: str, pid: int) -> End | None:
        ends = (server.exit_status(pid) for server in self._all() if server.started(host, pid))
        return self._explained(next(filter(None, ends), None))

    def close(self) -> None:
        for server in self._all():
            server.leave()
        for server in self._all():
            server.close()
        self._hosts.close()

    def _all(self) -> list[RemoteForkServer]:
        return [*self._servers.values(), *self._former]

    def _ready(self, layout: Layout, deadline: float, say: Say) -> list[Host]:
        """The hosts; servers on hosts that are not among them any more, in another job say, are closed."""
        hosts = self._hosts.ready(layout, deadline, say)
        known = {server.host: server for server in self._servers.values()}
        gone = [server for host, server in known.items() if host not in hosts]
        for server in gone:
            server.close()
        self._former += gone
        self._servers = {host.name: known.get(host) or self._server(host, first=host is hosts[0]) for host in hosts}
        return hosts

    def _server(self, host: Host, *, first: bool) -> RemoteForkServer:
        setup = {
            "directories": [asdict(directory) for directory in self._directories],
            "last": list(self._hosts.leave_command) if first else [],
        }
        return RemoteForkServer(host, self._run_dir, self._args, setup=setup, marks=self._marks)

    def _explained(self, end: End | None) -> End | None:
        """What ended the job, if something did, explains the end of an engine in it."""
        words = self._hosts.how_it_ended() if end else ""
        return End(cause=f"{words}; {end.cause}", report=end.report) if words else end


class RemoteForkServer:
    """The notebook's end of the server on one host."""

    def __init__(
        self, host: Host, run_dir: Path, engine_args: list[str], *, setup: Mapping[str, Any], marks: Mapping[str, str]
    ):
        self.host, self._run_dir, self._setup, self._marks = host, run_dir, setup, marks
        self._node = f"{next(iter(marks.values()), '')}-{host.name}"
        self._log = run_dir / "log" / f"server-{host.name.replace('/', '_')}.log"
        self._args = [f"--file={self._file}", f"--profile-dir={run_dir}", *engine_args]
        self._process: subprocess.Popen | None = None
        self._listener: threading.Thread | None = None
        self._pids: dict[int, str] = {}  # host name by pid, of all engines
        self._newest: list[int] = []
        self._ends: dict[int, End] = {}
        self._closing = False  # whether the server has said that it is ending

    @property
    def _file(self) -> Path:
        return self._run_dir / "security" / "ipcontroller-engine.json"

    def open(self, env: Mapping[str, str]) -> None:
        """Start the server if it does not run; it begins to import."""
        if self._process is not None and self._process.poll() is None:
            return
        self.close()
        self._closing = False
        self._log.parent.mkdir(exist_ok=True)
        with self._log.open("w") as log:
            command = [*self.host.command, *map(self.host.quote, ("-c", BOOT))]
            self._process = subprocess.Popen(
                command,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                text=True,
                env=client_environment() | self._marks,
                start_new_session=True,
            )
        name = f"mnnvl_lab-fork-server-{self.host.name}"
        self._listener = threading.Thread(target=self._listen, args=(self._process,), name=name, daemon=True)
        self._listener.start()
        path = {"PYTHONPATH": os.pathsep.join(_import_path())}
        self._send(dict(env) | self._marks | path | {NODE_VARIABLE: self._node})
        self._send(self._setup)

    def fork(self, ranks: Sequence[int], env: Mapping[str, str], deadline: float) -> list[int]:
        """Pids of new engines for these ranks.

        Raises:
            HelperDied: the server ended, or did not fork in time.
        """
        self.open(env)
        self._newest = []
        order = {"ranks": list(ranks), "args": self._args, "env": dict(env), "log_dir": str(self._log.parent)}
        self._send(order | {"file": str(self._file), "connection": self._file.read_text()})
        while len(self._newest) < len(ranks):
            if self._process.poll() is not None:
                raise self._died(exit_message(self._process.returncode))
            if time.monotonic() > deadline:
                self.close()
                raise self._died(f"it had forked only {len(self._newest)} of {len(ranks)} ranks in time")
            time.sleep(POLL_S)
        return list(self._newest)

    def processes(self) -> list[psutil.Process]:
        if self._process is None or self._process.poll() is not None:
            return []
        with suppress(psutil.NoSuchProcess):
            return [psutil.Process(self._process.pid)]
        return []

    def started(self, host: str, pid: int) -> bool:
        """Whether it forked this engine; the host is what the engine's machine calls itself."""
        return self._pids.get(pid) == host

    def exit_status(self, pid: int) -> End | None:
        """How an engine ended, as the server told it; or that the connection is lost, and the engine with it."""
        if pid in self._ends:
            return self._ends[pid]
        if not self._closing and any(map(alive, self.processes())):
            return None
        cause = f"the connection to host {self.host.name} ended, and its ranks with it"
        return End(cause=cause, report=tail(self._log))

    def kill(self, pids: Iterable[int]) -> None:
        self._send({"kill": list(pids)})

    def leave(self) -> None:
        """Have the server end what it started and itself."""
        if self._process is not None:
            with suppress(OSError, ValueError):
                self._process.stdin.close()

    def close(self) -> None:
        """End the connection; waits a moment for the server to clean up its host. Idempotent."""
        if self._process is None:
            return
        self.leave()
        try:
            self._process.wait(CLEAN_UP_S)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._listener.join(DEATH_NEWS_S)
        if not self._listener.is_alive():
            self._process.stdout.close()

    def _died(self, cause: str) -> HelperDied:
        self._listener.join(DEATH_NEWS_S)
        return HelperDied(helper=f"fork server on {self.host.name}", cause=cause, report=tail(self._log))

    def _send(self, order: Mapping[str, Any]) -> None:
        with suppress(BrokenPipeError, ValueError):  # its end is noticed where its answer is awaited
            print(json.dumps(order), file=self._process.stdin, flush=True)

    def _listen(self, process: subprocess.Popen) -> None:
        for line in process.stdout:
            try:
                news = json.loads(line)
            except ValueError:  # a greeting that the host's shell prints
                continue
            if "closing" in news:
                self._closing = True
            elif "ended" in news:
                found = End(cause=exit_message(news["exit_code"]), report=news["report"])
                self._ends[news["ended"]] = after_error(found, tuple(news["met"]))
            else:
                self._ends.pop(news["forked"], None)
                self._pids[news["forked"]] = news["host"]
                self._newest.append(news["forked"])


def _import_path() -> list[str]:
    """Where this process imports from, so that a host with the same file system finds the same code."""
    return [str(Path(__file__).parents[2]), *filter(None, sys.path)]

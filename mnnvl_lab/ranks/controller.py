"""An engine's process, as the notebook's process sees it."""

from __future__ import annotations

import asyncio
import json
import secrets
import socket
import threading
import time
from collections.abc import Coroutine, Mapping
from concurrent.futures import Future
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import psutil

from mnnvl_lab.errors import HelperDied, RankDied
from mnnvl_lab.processes.ownership import End, alive, end, exit_message, process_of, tail, write_private
from mnnvl_lab.ranks.engine import Identity

if TYPE_CHECKING:
    import ipyparallel

    from mnnvl_lab.ranks.launchers import Launcher


@dataclass(frozen=True, kw_only=True)
class Process:
    """An engine as seen from here.

    Attributes:
        engine: its number in ipyparallel.
        pid, started, host: its process, when that started (`ownership.started`), and its machine.
        memory: equal for processes that share POSIX memory.
        handle: its process, if the machine is this one.
    """

    engine: int
    pid: int
    started: float
    host: str
    memory: str
    handle: psutil.Process | None

    @property
    def here(self) -> bool:
        return self.handle is not None

    @classmethod
    def unknown(cls, engine: int) -> Process:
        """An engine that has registered and not yet said who it is."""
        return cls(engine=engine, pid=0, started=0.0, host="", memory="", handle=None)

    @classmethod
    def of(cls, engine: int, identity: Identity) -> Process:
        """The engine that gave this identity.

        Raises:
            RankDied: it runs on this machine and has ended since; its pid may be another's by now.
        """
        here = identity.host == socket.gethostname()
        handle = process_of(identity.pid, identity.started) if here else None
        if here and handle is None:
            raise RankDied(rank=engine, phase="start", cause="its process ended right after it had registered")
        told = {name: getattr(identity, name) for name in ("pid", "started", "host", "memory")}
        return cls(engine=engine, handle=handle, **told)


HELPER = "controller"
POLL_S = 0.02
LOOP_LIMIT_S = 2.0


class Controller:
    """The controller's process and its client, as the notebook's process holds them.

    Args:
        launcher: how engines start.
        run_dir: private directory for keys, connection files and logs.
        options: ipyparallel's own configuration by class name.
        marks: environment variables that only processes of this run have.

    Attributes:
        cluster: ipyparallel's, which also starts engines over MPI, SSH and Slurm.
        client: connected to the controller; None before it was started.
    """

    def __init__(self, launcher: Launcher, *, run_dir: Path, options: Mapping[str, Any], marks: Mapping[str, str]):
        self._run_dir, self._marks = run_dir, dict(marks)
        _write_keys(run_dir)
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="mnnvl_lab-cluster", daemon=True)
        self._thread.start()
        self.cluster = _ipyparallel_cluster(launcher, run_dir, options)
        self.client: ipyparallel.Client | None = None
        self._children: list[psutil.Process] = []
        self._usable = True  # the former's ports and list of engines

    def do(self, coroutine: Coroutine, timeout_s: float | None = None) -> Any:
        """Run on an event loop of its own: the notebook's is busy with the cell that waits for this."""
        return asyncio.run_coroutine_threadsafe(coroutine, self._loop).result(timeout_s)

    @property
    def processes(self) -> list[psutil.Process]:
        """The controller and its children, the heartbeat among them."""
        controller = self.cluster.controller
        own = [controller.process] if controller and controller.process else []
        return own + self._children

    def _note_children(self) -> None:
        """Watch the children too: without the one that sends heartbeats no engine can register."""
        with suppress(psutil.Error):
            self._children = self.processes[0].children(recursive=True)

    def end(self) -> End | None:
        """How the controller or its heartbeat process ended; None while both run, or before the start."""
        if all(map(alive, self.processes)):
            return None
        controller = self.cluster.controller
        if alive(controller.process):
            return End(cause="its heartbeat process ended", report=self._log())
        deadline = time.monotonic() + 1
        while not controller.stop_data and time.monotonic() < deadline:  # a thread of ipyparallel waits for its end
            time.sleep(POLL_S)
        return End(cause=exit_message((controller.stop_data or {}).get("exit_code")), report=self._log())

    def require(self) -> None:
        """Raises HelperDied if it does not run any more."""
        if found := self.end():
            raise HelperDied(helper=HELPER, cause=found.cause, report=found.report)

    def start(self, deadline: float) -> None:
        """Start it if it does not run, and connect.

        Args:
            deadline: on the monotonic clock.

        Raises:
            HelperDied: it ended while it started, or did not answer in time.
        """
        if self.client is not None and self.end() is None:
            return
        lost = self._leave_former()
        self.do(self.cluster.start_controller(environment=self._marks))
        try:
            self._connect(deadline)
            self._note_children()
            self.client.outstanding |= lost  # else it prints that it does not know them, should they come after all
        except BaseException:
            end(self.processes)
            self._usable = False
            raise

    def close(self) -> None:
        """Disconnect and stop the event loop. Idempotent. Whoever owns the processes has ended them."""
        self.disconnect()
        if not self._loop.is_closed():
            self._loop.call_soon_threadsafe(self._loop.stop)
            self._thread.join(LOOP_LIMIT_S)
            if not self._thread.is_alive():
                self._loop.close()

    def disconnect(self) -> None:
        if self.client is not None:
            with suppress(Exception):  # its peer may be gone in the middle of a message
                self.client.close(linger=0)
            self.client = None

    def _leave_former(self) -> set[str]:
        """End what is left of a controller that died: its heartbeat process would hold the ports.

        Returns:
            Messages that were not answered.
        """
        lost = set(self.client.outstanding if self.client else ())
        self.disconnect()
        end(self.processes)
        if self.cluster.controller is not None:
            self.cluster.controller, self._children = None, []
            (_mend_state if self._usable else _forget_state)(self._run_dir)
            self._usable = True
        return lost

    def _connect(self, deadline: float) -> None:
        from ipyparallel import Client

        file, last = (self._run_dir / "security" / f"ipcontroller-{end}.json" for end in ("client", "engine"))
        while not last.exists():  # written when the other is complete
            self._check(deadline)
        # In a thread, since the client's own wait cannot see that the controller ended.
        client = _in_thread(lambda: Client(str(file), timeout=max(1.0, deadline - time.monotonic())))
        while not client.done():
            self._check(deadline)
        try:
            self.client = client.result()
        except Exception as error:
            self.require()
            raise HelperDied(helper=HELPER, cause=f"no connection ({error})", report=self._log()) from error

    def _check(self, deadline: float) -> None:
        self.require()
        if time.monotonic() > deadline:
            raise HelperDied(helper=HELPER, cause="it did not answer in time, so it was ended", report=self._log())
        time.sleep(POLL_S)

    def _log(self) -> str:
        logs = (self._run_dir / "log").glob("ipcontroller*.log")
        return tail(max(logs, key=_modified_s, default=self._run_dir / "none"))


def _modified_s(path: Path) -> float:
    """When a file was last written; a controller that starts removes the logs of earlier ones meanwhile."""
    try:
        return path.stat().st_mtime
    except FileNotFoundError:
        return 0.0


def _in_thread(function) -> Future:
    """The result of a function that runs in a daemon thread, which may outlive whoever waits for it."""
    future: Future = Future()

    def run() -> None:
        try:
            future.set_result(function())
        except BaseException as error:
            future.set_exception(error)

    threading.Thread(target=run, name="mnnvl_lab-connect", daemon=True).start()
    return future


def _write_keys(run_dir: Path) -> None:
    """Have messages signed as well as encrypted, always with the same keys, and let a new controller find its engines.

    In a file (0600), since others can read command lines.
    """
    import zmq

    public, secret = zmq.curve_keypair()
    settings = {
        "Session.key": secrets.token_hex(32).encode(),
        "IPController.enable_curve": True,
        "IPController.curve_publickey": public,
        "IPController.curve_secretkey": secret,
        "IPController.reuse_files": True,
        "IPController.restore_engines": True,
    }
    text = "".join(f"c.{name} = {value!r}\n" for name, value in settings.items())
    write_private(run_dir / "ipcontroller_config.py", text)


def _mend_state(run_dir: Path) -> None:
    """Have a new controller number further engines beyond those that it finds: what it wrote may say 0, or be cut."""
    for path in (run_dir / "log").glob("engines*.json"):
        try:
            state = json.loads(path.read_text())
            state["next_id"] = max([state["next_id"], *(int(engine) + 1 for engine in state["engines"])])
        except (ValueError, KeyError, TypeError):
            path.unlink()
        else:
            path.write_text(json.dumps(state))


def _forget_state(run_dir: Path) -> None:
    """Have a new controller choose its ports anew and know no engine: with what was written it did not start."""
    for path in (*(run_dir / "log").glob("engines*.json"), *(run_dir / "security").glob("ipcontroller-*.json")):
        path.unlink()


def _ipyparallel_cluster(launcher: Launcher, run_dir: Path, options: Mapping[str, Any]) -> ipyparallel.Cluster:
    import ipyparallel
    from traitlets.config import Config

    return ipyparallel.Cluster(
        engines=launcher.engines,
        profile_dir=str(run_dir),
        cluster_id="",
        cluster_file="",
        controller_args=launcher.controller_args,
        config=Config(dict(options)),
        load_profile=False,
        shutdown_atexit=False,
        log_level=100,
        delay=0,
    )

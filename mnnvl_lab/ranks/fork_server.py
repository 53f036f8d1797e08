"""Fork server: engines on this machine, forked from one process that has already imported what they need.

Fresh processes import torch anew, which takes seconds on a small machine, at the start and after every kill. This one
imports once and never touches CUDA, sockets or threads, so that what it forks is as good as fresh. It reads one JSON
line per order from its standard input and writes one for each process that it has forked and for each child that ended.
"""

from __future__ import annotations

import json
import os
import select
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path

import psutil

from mnnvl_lab.errors import HelperDied
from mnnvl_lab.layout import Layout
from mnnvl_lab.processes.ownership import (
    RUN_VARIABLE,
    End,
    alive,
    end,
    end_marked,
    exit_message,
    process_of,
    started,
    tail,
)
from mnnvl_lab.ranks.network import Say

HELPER = "fork server"
POLL_S = 0.02
DEATH_NEWS_S = 1.0  # for the news of its children's ends to arrive after its own


class ForkServer:
    """The notebook's end: have engines forked, and know how each ended. A fork server that died is replaced.

    Args:
        run_dir: where the connection file is, and where logs go.
        engine_args: command line of every engine.
        marks: environment variables that only processes of this run have.
    """

    def __init__(self, run_dir: Path, engine_args: list[str], *, marks: Mapping[str, str]):
        self._log_dir = Path(run_dir) / "log"
        self._log_dir.mkdir(exist_ok=True)
        self._args = [f"--file={run_dir}/security/ipcontroller-engine.json", f"--profile-dir={run_dir}", *engine_args]
        self._marks = dict(marks)
        self._process: subprocess.Popen | None = None
        self._listener: threading.Thread | None = None
        self._started: dict[int, float] = {}  # by pid, as `ownership.started` gives it
        self._newest: list[int] = []
        self._ends: dict[int, str] = {}

    def open(self, env: Mapping[str, str]) -> None:
        """Begin to import, while the controller starts."""
        if self._process is not None and self._process.poll() is None:
            return
        self._release()
        with self._log(0).open("w") as log:
            self._process = subprocess.Popen(
                [sys.executable, "-c", "from mnnvl_lab.ranks.fork_server import main; main()"],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                text=True,
                env=os.environ | dict(env) | {"PYTHONPATH": os.pathsep.join(filter(None, sys.path))} | self._marks,
                start_new_session=True,
            )
        self._listener = threading.Thread(
            target=self._listen, args=(self._process,), name="mnnvl_lab-fork-server", daemon=True
        )
        self._listener.start()

    def fits(self, layout: Layout) -> bool:
        """This machine has room for any layout."""
        return True

    def start(
        self,
        ranks: Sequence[int],
        *,
        layout: Layout,
        env: Mapping[str, str],
        deadline: float,
        say: Say,
    ) -> None:
        """Have an engine forked for each of these ranks.

        Args:
            deadline: on the monotonic clock. A fork server that has not forked by then is killed.

        Raises:
            HelperDied: the fork server died, or did not fork in time.
        """
        count = len(ranks)
        try:
            self._order(count, env, deadline)
        except HelperDied:
            if self._newest or time.monotonic() > deadline:
                raise
            self._order(count, env, deadline)  # it was about to die when it got the order

    def _order(self, count: int, env: Mapping[str, str], deadline: float) -> None:
        self._newest = []
        self.open(env)
        self._newest.clear()  # of what a former fork server still told
        order = {"count": count, "args": self._args, "env": dict(env), "log_dir": str(self._log_dir)}
        with suppress(BrokenPipeError):  # its end is noticed below
            print(json.dumps(order), file=self._process.stdin, flush=True)
        while len(self._newest) < count:
            if self._process.poll() is not None:
                raise self._died(exit_message(self._process.returncode))
            if time.monotonic() > deadline:
                self._process.kill()
                self._process.wait()
                raise self._died(f"it had forked only {len(self._newest)} of {count} ranks in time, so it was ended")
            time.sleep(POLL_S)

    def processes(self) -> list[psutil.Process]:
        """The fork server and its engines, as far as they run; never another process that got one of their pids."""
        own = [psutil.Process(self._process.pid)] if self._process and self._process.poll() is None else []
        return own + self._running(self._started)

    def kill_newest(self) -> None:
        """Kill the engines of the last `start`, as far as they run."""
        end(self._running(self._newest))

    def kill(self, host: str, pid: int) -> None:
        """All engines run here, where whoever holds their processes kills them."""

    def ended(self, host: str, pid: int) -> bool:
        """All engines run here, where they are watched themselves."""
        return False

    def first_exit(self) -> End | None:
        """How one of the newest engines ended, if one did."""
        return next(filter(None, (self.exit_status("", pid) for pid in self._newest)), None)

    def exit_status(self, host: str, pid: int) -> End | None:
        cause = self._ends.get(pid)
        if cause is None and not self._listener.is_alive() and not self._running([pid]):
            cause = "its process ended (how is not known: the fork server, its parent, died before)"
        return End(cause=cause, report=tail(self._log(pid))) if cause else None

    def close(self) -> None:
        if self._process:
            self._process.kill()
            self._process.wait()
            self._release()

    def _running(self, pids: Iterable[int]) -> list[psutil.Process]:
        found = (process_of(pid, self._started[pid]) for pid in list(pids) if pid not in self._ends)
        return [process for process in found if process and alive(process)]

    def _died(self, cause: str) -> HelperDied:
        self._listener.join(DEATH_NEWS_S)  # what it forked at last is known before anyone cleans up
        return HelperDied(helper=HELPER, cause=cause, report=tail(self._log(0)))

    def _release(self) -> None:
        """Close the pipes of a fork server that ended, once its last news has been read."""
        if self._process:
            self._listener.join(DEATH_NEWS_S)
            with suppress(OSError):
                self._process.stdin.close()
            if not self._listener.is_alive():
                self._process.stdout.close()

    def _log(self, pid: int) -> Path:
        return self._log_dir / f"engine-{pid}.log"

    def _listen(self, process: subprocess.Popen) -> None:
        for line in process.stdout:
            news = json.loads(line)
            if "ended" in news:
                self._ends[news["ended"]] = exit_message(news["exit_code"])
            else:
                self._ends.pop(news["forked"], None)  # of an earlier process with this pid
                self._started[news["forked"]] = news["start"]
                self._newest.append(news["forked"])


def main() -> None:
    """The fork server's process: import, then fork for each order and report each child that ends."""
    import ipyparallel.engine.app  # noqa: F401
    import torch.distributed  # noqa: F401

    import mnnvl_lab.ranks.engine  # noqa: F401

    awake, wake = os.pipe()
    os.set_blocking(wake, False)
    signal.set_wakeup_fd(wake)
    signal.signal(signal.SIGCHLD, lambda *_: None)
    orders = b""
    while True:
        ready, _, _ = select.select([0, awake], [], [])
        if awake in ready:
            os.read(awake, 4096)
            _report_ends()
        if 0 in ready:
            news = os.read(0, 65536)
            if not news:  # the notebook's process ended; the reaper does the same, unless it died too
                end_marked(RUN_VARIABLE, os.environ[RUN_VARIABLE])
                return
            *lines, orders = (orders + news).split(b"\n")
            for order in map(json.loads, lines):
                for _ in range(order["count"]):
                    fork(order)


def fork(order: dict) -> int:
    """Fork an engine, tell of it, and return its pid."""
    pid = os.fork()
    if pid == 0:
        try:
            _become_engine(order)
        finally:
            os._exit(1)
    # Not yet waited for, so its pid cannot have been used again.
    tell(forked=pid, start=started(pid), host=socket.gethostname())
    return pid


def _become_engine(order: dict) -> None:
    signal.set_wakeup_fd(-1)
    for number in (signal.SIGCHLD, signal.SIGTERM):
        signal.signal(number, signal.SIG_DFL)
    os.setsid()
    log = os.open(f"{order['log_dir']}/engine-{os.getpid()}.log", os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    nothing = os.open(os.devnull, os.O_RDONLY)
    for target, source in ((0, nothing), (1, log), (2, log)):
        os.dup2(source, target)
    os.environ.update(order["env"])
    from ipyparallel.engine.app import IPEngine

    IPEngine.launch_instance(argv=order["args"])
    os._exit(0)


def _report_ends() -> None:
    with suppress(ChildProcessError):
        while (ended := os.waitpid(-1, os.WNOHANG))[0]:
            tell(ended=ended[0], exit_code=os.waitstatus_to_exitcode(ended[1]))


def tell(**news: object) -> None:
    """One line for the notebook's end."""
    print(json.dumps(news), flush=True)

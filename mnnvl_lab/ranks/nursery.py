"""Engines on this machine, forked from one process that has already imported what they need.

Four fresh processes import torch four times, which takes seconds on a small machine, at the start and after every kill.
This process imports once and never touches CUDA, sockets or threads, so that what it forks is as good as fresh.
It reads one JSON line a fork from its standard input and writes one when it has forked and one when a child has ended.
"""

from __future__ import annotations

import json
import os
import select
import signal
import subprocess
import sys
import threading
from contextlib import suppress
from pathlib import Path

import psutil

from mnnvl_lab.ranks.ends import End, exit_words, tail


class Nursery:
    """The notebook's end: have engines forked, and know how each ended.

    Args:
        run_dir: where the connection file is, and where logs go.
        engine_args: command line of every engine.
    """

    def __init__(self, run_dir: Path, engine_args: list[str]):
        self._log_dir = Path(run_dir) / "log"
        self._log_dir.mkdir(exist_ok=True)
        self._args = [f"--file={run_dir}/security/ipcontroller-engine.json", f"--profile-dir={run_dir}", *engine_args]
        self._process: subprocess.Popen | None = None
        self._pids: list[int] = []
        self._settled = 0  # how many of them are not new
        self._ends: dict[int, str] = {}

    def open(self, env: dict[str, str]) -> None:
        """Begin to import, while the controller starts."""
        if self._process is None:
            with self._log(0).open("w") as log:
                self._process = subprocess.Popen(
                    [sys.executable, "-c", "from mnnvl_lab.ranks.nursery import main; main()"],
                    stdin=subprocess.PIPE,
                    stdout=subprocess.PIPE,
                    stderr=log,
                    text=True,
                    env=os.environ | env | {"PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
                    start_new_session=True,
                )
            self._forked = threading.Semaphore(0)
            threading.Thread(target=self._listen, name="mnnvl_lab-nursery", daemon=True).start()

    def start(self, count: int, *, env: dict[str, str]) -> None:
        self.open(env)
        self._settled = len(self._pids)
        order = {"args": self._args, "env": env, "log_dir": str(self._log_dir)}
        for _ in range(count):
            with suppress(BrokenPipeError):  # its end is noticed by whoever waits for the engines
                print(json.dumps(order), file=self._process.stdin, flush=True)
        for _ in range(count):
            self._forked.acquire()

    def processes(self) -> list[psutil.Process]:
        """The nursery and its engines, as far as they run."""
        pids = [self._process.pid, *self._pids] if self._process else []
        return [psutil.Process(pid) for pid in pids if psutil.pid_exists(pid)]

    def first_end(self) -> End | None:
        """How the nursery ended, or whichever of the newest engines did."""
        if self._process.poll() is not None:
            return End(cause=exit_words(self._process.returncode), report=tail(self._log(0)))
        return next(filter(None, map(self.end_of, self._pids[self._settled :])), None)

    def end_of(self, pid: int) -> End | None:
        cause = self._ends.get(pid)
        return End(cause=cause, report=tail(self._log(pid))) if cause else None

    def close(self) -> None:
        if self._process:
            self._process.kill()
            self._process.wait()

    def _log(self, pid: int) -> Path:
        return self._log_dir / f"engine-{pid}.log"

    def _listen(self) -> None:
        for line in self._process.stdout:
            news = json.loads(line)
            if "ended" in news:
                self._ends[news["ended"]] = exit_words(news["exit_code"])
            else:
                self._pids.append(news["forked"])
                self._forked.release()
        for _ in range(1000):
            self._forked.release()  # whoever waits for a fork need not wait any longer


def main() -> None:
    """The nursery's process: import, then fork for each line that comes in and report each child that ends."""
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
            if not news:
                return
            *lines, orders = (orders + news).split(b"\n")
            for line in lines:
                _fork(json.loads(line))


def _fork(order: dict) -> None:
    pid = os.fork()
    if pid == 0:
        try:
            _become_engine(order)
        finally:
            os._exit(1)
    _tell(forked=pid)


def _become_engine(order: dict) -> None:
    signal.set_wakeup_fd(-1)
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
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
            _tell(ended=ended[0], exit_code=os.waitstatus_to_exitcode(ended[1]))


def _tell(**news: int) -> None:
    print(json.dumps(news), flush=True)

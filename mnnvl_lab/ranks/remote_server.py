"""Fork server on another host: forks ranks as the local one does, and tells how each ended.

The notebook's end talks to it through the standard input and output of `ssh` or `srun`. Nothing secret is in a command
line, an environment or a file of Slurm's: the connection file arrives in an order. When its input ends, or when it is
told to end, it kills what it started on this host and removes the directories that it made here.
"""

from __future__ import annotations

import json
import os
import select
import signal
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from mnnvl_lab.processes.ownership import OwnedDirectory, end_marked, tail, write_private

NODE_VARIABLE = "MNNVL_LAB_NODE"  # in the environment of what one server of one run starts, and of nothing else
PLACE_VARIABLE = "MNNVL_LAB_PLACE"  # rank for which an engine is started
LAST_LIMIT_S = 10.0
BOOT = """\
import json, os, sys
line = b""
while not line.endswith(b"\\n"):
    line += os.read(0, 1) or sys.exit("the notebook's process sent nothing")
command = [sys.executable, "-P", "-c", "from mnnvl_lab.ranks.remote_server import main; main()"]
os.execve(sys.executable, command, os.environ | json.loads(line))
"""
"""Reads the environment, which also says where to import from, and becomes the server."""


class Server:
    """The server's own state: what it made here, and which children run."""

    def __init__(self, setup: Mapping[str, Any]):
        self._last = setup["last"]
        self._made = [directory for directory in map(_made, setup["directories"]) if directory]
        self._children: dict[int, str] = {}  # log directory by pid

    def do(self, order: Mapping[str, Any]) -> None:
        """Fork ranks, or kill some."""
        from mnnvl_lab.ranks.fork_server import fork

        for pid in order.get("kill", ()):
            if pid in self._children:  # not yet waited for, so no other process can have its pid
                os.kill(pid, signal.SIGKILL)
        for rank in order.get("ranks", ()):
            _leave(Path(order["file"]), order["connection"])
            pid = fork(order | {"env": order["env"] | {PLACE_VARIABLE: str(rank)}})
            self._children[pid] = order["log_dir"]

    def report_ends(self) -> None:
        """Tell which children ended, with the end of their logs and the errors that they had met."""
        from mnnvl_lab.ranks.fork_server import tell
        from mnnvl_lab.ranks.rank import read_report

        with suppress(ChildProcessError):
            while (ended := os.waitpid(-1, os.WNOHANG))[0]:
                pid, code = ended[0], os.waitstatus_to_exitcode(ended[1])
                log_dir = self._children.pop(pid, None)
                if log_dir:
                    log = tail(Path(log_dir) / f"engine-{pid}.log")
                    tell(ended=pid, exit_code=code, report=log, met=read_report(Path(log_dir).parent, pid))

    def finish(self) -> None:
        """Leave nothing behind on this host."""
        from mnnvl_lab.ranks.fork_server import tell

        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        with suppress(OSError):  # whoever would read it may be gone
            tell(closing=True)
        end_marked(NODE_VARIABLE, os.environ[NODE_VARIABLE])
        for directory in self._made:
            directory.remove()
        if self._last:
            with suppress(OSError, subprocess.TimeoutExpired):
                subprocess.run(self._last, timeout=LAST_LIMIT_S, capture_output=True)


def main() -> None:
    """Import, then do what is ordered until the input ends."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    awake, wake = os.pipe()
    os.set_blocking(wake, False)
    orders = _orders(awake)
    server = Server(next(orders))
    try:
        import ipyparallel.engine.app  # noqa: F401
        import torch.distributed  # noqa: F401

        import mnnvl_lab.ranks.engine  # noqa: F401

        signal.set_wakeup_fd(wake)
        signal.signal(signal.SIGCHLD, lambda *_: None)
        for order in orders:
            server.do(order) if order else server.report_ends()
    finally:
        server.finish()


def _orders(awake: int) -> Iterator[dict[str, Any] | None]:
    """Orders from the standard input; None where a child may have ended."""
    rest = b""
    while True:
        ready, _, _ = select.select([0, awake], [], [])
        if awake in ready:
            os.read(awake, 4096)
            yield None
        if 0 in ready:
            news = os.read(0, 65536)
            if not news:
                return
            *lines, rest = (rest + news).split(b"\n")
            yield from map(json.loads, lines)


def _made(fields: Mapping[str, str]) -> OwnedDirectory | None:
    """The directory, if it was made here: file systems may be shared with the notebook's host."""
    directory = OwnedDirectory(**fields)
    with suppress(FileExistsError):
        directory.create()
        return directory
    return None


def _leave(file: Path, text: str) -> None:
    """Write the connection file where this host does not have it."""
    file.parent.mkdir(mode=0o700, exist_ok=True)
    (file.parents[1] / "log").mkdir(mode=0o700, exist_ok=True)
    with suppress(FileExistsError):
        write_private(file, text)

"""Client of the reaper (`mnnvl_lab.processes.reaper`), in the notebook's process."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import warnings
from collections.abc import Iterable, Sequence
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path

import psutil

from mnnvl_lab.processes.ownership import OwnedDirectory, exit_message, started

LIMIT_S = 5.0  # for a dismissed reaper to be gone


class Reaper:
    """The notebook's end: says what to clean up. The pipe closes with this process, however it ends.

    A reaper that died is replaced by the next `watch` or `ensure`, and told everything again.
    """

    def __init__(self):
        self._lines: list[str] = []
        self._told: set[psutil.Process] = set()
        self._process = self._start()

    @property
    def pid(self) -> int:
        return self._process.pid

    def watch(
        self,
        processes: Iterable[psutil.Process] = (),
        *,
        directories: Iterable[OwnedDirectory] = (),
        marked: Iterable[tuple[str, str]] = (),
        cancel: Sequence[str] = (),
    ) -> None:
        """Have further processes killed and directories removed.

        Args:
            marked: environment variables, by name and value, that only processes to kill have: told before a process
                starts, so that it is found also if this process dies before it can tell the pid.
            cancel: a command that gives back what was asked of a batch system.
        """
        for directory in directories:
            self._say({"directory": asdict(directory)})
        for name, value in marked:
            self._say({"marked": {"name": name, "value": value}})
        if cancel:
            self._say({"cancel": list(cancel)})
        for process in set(processes) - self._told:
            self._told.add(process)
            with suppress(psutil.NoSuchProcess):
                self._say({"process": {"pid": process.pid, "started": started(process.pid)}})

    def ensure(self) -> None:
        """Replace a reaper that died. Costs a system call while it lives."""
        code = self._process.poll()
        if code is not None:
            self._process.stdin.close()
            self._process = self._start()
            warnings.warn(
                f"the reaper process died ({exit_message(code)}); another was started and knows all ranks",
                RuntimeWarning,
                stacklevel=3,
            )

    def dismiss(self) -> None:
        """Everything is cleaned up: the reaper may go. Idempotent."""
        with suppress(OSError, ValueError):  # it was killed; or it is dismissed already
            self._write([json.dumps({"done": True})])
        with suppress(OSError):
            self._process.stdin.close()
        try:
            self._process.wait(LIMIT_S)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()

    def _say(self, item: dict) -> None:
        self._lines.append(json.dumps(item))
        self.ensure()
        with suppress(BrokenPipeError):  # it died just now: the next `ensure` tells its successor
            self._write(self._lines[-1:])

    def _start(self) -> subprocess.Popen:
        command = [sys.executable, "-P", "-m", "mnnvl_lab.processes.reaper", str(os.getpid())]
        path = [str(Path(__file__).parents[2]), *filter(None, sys.path)]
        env = os.environ | {"PYTHONPATH": os.pathsep.join(path)}
        self._process = subprocess.Popen(command, env=env, stdin=subprocess.PIPE, start_new_session=True)
        with suppress(BrokenPipeError):
            self._write(self._lines)
        return self._process

    def _write(self, lines: list[str]) -> None:
        self._process.stdin.write("".join(f"{line}\n" for line in lines).encode())
        self._process.stdin.flush()

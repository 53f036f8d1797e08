"""Clean up even if the notebook's process is killed: a small process of its own, run by path.

It reads lines from its standard input: `process PID CREATED`, `directory PATH` or `done`. At the end of input it kills those
processes with their children and removes those directories, unless `done` was the last word.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path

import psutil


class Warden:
    """The notebook's end: says what to clean up. The pipe closes with this process, however it ends."""

    def __init__(self, *directories: Path):
        command = [sys.executable, "-I", __file__]
        self._process = subprocess.Popen(command, stdin=subprocess.PIPE, text=True, start_new_session=True)
        self._told = set()
        for directory in directories:
            self._say(f"directory {directory}")

    def watch(self, processes: Iterable[psutil.Process]) -> None:
        for process in set(processes) - self._told:
            self._told.add(process)
            self._say(f"process {process.pid} {process.create_time()!r}")

    def dismiss(self) -> None:
        with suppress(BrokenPipeError, ValueError):
            self._say("done")
            self._process.stdin.close()
        self._process.wait(10)

    def _say(self, words: str) -> None:
        print(words, file=self._process.stdin, flush=True)


def end(pid: int, created: float) -> None:
    """Kill a process and its children if it is still the one that began at `created` (ids are used again)."""
    with suppress(psutil.Error):
        process = psutil.Process(pid)
        if process.create_time() == created:
            doomed = [*process.children(recursive=True), process]
            for each in doomed:
                with suppress(psutil.NoSuchProcess):
                    each.kill()
            psutil.wait_procs(doomed, timeout=5)


def clean_up(lines: Iterable[str]) -> None:
    processes, directories = [], []
    for line in lines:
        kind, _, rest = line.strip().partition(" ")
        if kind == "done":
            return
        (processes if kind == "process" else directories).append(rest)
    for words in processes:
        pid, created = words.split()
        end(int(pid), float(created))
    for path in directories:
        shutil.rmtree(path, ignore_errors=True)


if __name__ == "__main__":
    clean_up(sys.stdin)

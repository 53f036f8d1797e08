"""Clean up even if the notebook's process is killed: a small process of its own, run by path.

It reads lines from its standard input: `process PID CREATED`, `directory PATH` or `done`. At the end of input it kills
those processes with their children and removes those directories, unless `done` was the last word.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
import time
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path

import psutil

LIMIT_S = 10.0  # for killed processes to be gone


class Warden:
    """The notebook's end: says what to clean up. The pipe closes with this process, however it ends."""

    def __init__(self, *directories: Path):
        command = [sys.executable, "-P", __file__]  # by path: importing the package would take longer than its work
        self._process = subprocess.Popen(command, stdin=subprocess.PIPE, text=True, start_new_session=True)
        self._told = set()
        self.watch((), *directories)

    def watch(self, processes: Iterable[psutil.Process], *directories: Path) -> None:
        for directory in directories:
            self._say(f"directory {directory}")
        for process in set(processes) - self._told:
            self._told.add(process)
            self._say(f"process {process.pid} {process.create_time()!r}")

    def dismiss(self) -> None:
        if not self._process.stdin.closed:
            self._say("done")
            with suppress(BrokenPipeError):
                self._process.stdin.close()
        self._process.wait(10)

    def _say(self, words: str) -> None:
        with suppress(BrokenPipeError):  # it was killed: then only a kill of this process too would leave something
            print(words, file=self._process.stdin, flush=True)


def end(processes: Iterable[psutil.Process]) -> None:
    """Kill processes with their children and wait until they are gone."""
    doomed = []
    for process in processes:
        with suppress(psutil.NoSuchProcess):
            doomed += [*process.children(recursive=True), process]
    for process in doomed:
        with suppress(psutil.NoSuchProcess):
            process.kill()
    deadline = time.monotonic() + LIMIT_S
    while any(alive(process) for process in doomed) and time.monotonic() < deadline:
        time.sleep(0.01)


def alive(process: psutil.Process) -> bool:
    """Whether it runs: neither gone, nor replaced by another of the same id, nor dead and waiting for its parent."""
    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def clean_up(lines: Iterable[str]) -> None:
    """Do what the lines say, unless the last says that it is done."""
    processes, directories = [], []
    for line in lines:
        kind, *words = line.split()
        if kind == "done":
            return
        if kind == "directory":
            directories += words
        else:
            processes += _found(int(words[0]), float(words[1]))
    end(processes)
    for path in directories:
        remove(Path(path))


def remove(directory: Path) -> None:
    """Remove a directory for certain: a process on its way out may still write into it."""
    deadline = time.monotonic() + LIMIT_S
    while directory.exists() and time.monotonic() < deadline:
        shutil.rmtree(directory, ignore_errors=True)
        if directory.exists():
            time.sleep(0.05)


def _found(pid: int, created: float) -> list[psutil.Process]:
    """The process if it is the one that began at `created`: ids are used again."""
    with suppress(psutil.NoSuchProcess):
        process = psutil.Process(pid)
        return [process] if process.create_time() == created else []
    return []


if __name__ == "__main__":
    clean_up(sys.stdin)

"""Ownership: which directories (by a token) and processes (by pid and start time) are ours to remove or kill.

Everything that removes a tree or kills a process does so through this module.
"""

from __future__ import annotations

import os
import re
import secrets
import shutil
import signal
import stat
import time
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import psutil

LIMIT_S = 10.0  # for killed processes to be gone
SCAN_AGAIN_S = 0.1  # longer than a process takes from fork to exec, when its environment is still its parent's
NAME = re.compile(r"mnnvl_lab-(mps-)?[0-9a-f]{12}")
ZOMBIE_POLL_S = 0.05  # psutil.wait_procs waits for zombies until its limit
RUN_VARIABLE = "MNNVL_LAB_RUN"  # in the environment of every process that a run starts, and of no other
OWNER_FILE = ".mnnvl_lab-owner"


@dataclass(frozen=True, kw_only=True)
class OwnedDirectory:
    """A private directory (0700) that holds a token, so that it is recognized before it is removed.

    Attributes:
        parent: absolute path of the directory that it is in.
        name: `mnnvl_lab-` and random digits.
        token: content of the file `.mnnvl_lab-owner` in it.
    """

    parent: str
    name: str
    token: str

    @classmethod
    def named(cls, parent: str | os.PathLike, *, kind: str = "") -> OwnedDirectory:
        """A name that no directory has yet. Nothing is created, so that the reaper can be told before."""
        name = f"mnnvl_lab-{kind}{secrets.token_hex(6)}"
        return cls(parent=os.path.abspath(parent), name=name, token=secrets.token_hex(16))

    @property
    def path(self) -> Path:
        return Path(self.parent) / self.name

    def create(self) -> Path:
        """Make the directory and leave the token in it.

        Raises:
            OSError: it cannot be made, for instance because the disk is full.
        """
        self.path.mkdir(mode=0o700)
        write_private(self.path / OWNER_FILE, self.token)
        return self.path

    def remove(self) -> str:
        """Remove it for certain: a process on its way out may still write into it. Idempotent.

        Returns:
            Why it was left alone, or nothing.
        """
        with suppress(FileNotFoundError):
            if reason := self._foreign():
                return reason
            own, deadline = _inode(self.path), time.monotonic() + LIMIT_S
            while time.monotonic() < deadline and _inode(self.path) == own:
                shutil.rmtree(self.path, ignore_errors=True)
                time.sleep(0.02)
            return "it could not be removed"
        return ""

    def _foreign(self) -> str:
        """Why the directory is not this package's own, or nothing. A link is never followed."""
        if not NAME.fullmatch(self.name) or self.parent != os.path.abspath(self.parent):
            return "its name is not one that this package gives"
        found = os.lstat(self.path)
        if not stat.S_ISDIR(found.st_mode):
            return "it is not a directory"
        if found.st_uid != os.geteuid():
            return "it belongs to another user"
        if self._read_token() == self.token:
            return ""
        with suppress(OSError):  # made, but this process died before it left the token
            os.rmdir(self.path)
            return ""
        return f"it does not hold the token in {OWNER_FILE}"

    def _read_token(self) -> str:
        with suppress(OSError):
            file = os.open(self.path / OWNER_FILE, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
            try:
                return os.read(file, 256).decode(errors="replace")
            finally:
                os.close(file)
        return ""


def write_private(path: Path, text: str) -> None:
    """A new file that only its owner can read or write (0600), whatever the umask."""
    file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with open(file, "w") as stream:
        os.fchmod(file, 0o600)
        stream.write(text)


def started(pid: int) -> float:
    """When a process started, which with its pid identifies it: pids are used again.

    On Linux in clock ticks since boot, which stay the same when the clock is set, unlike psutil's `create_time`.

    Raises:
        psutil.NoSuchProcess: there is none.
    """
    with suppress(OSError):
        text = Path(f"/proc/{pid}/stat").read_text(errors="replace")
        return float(text.rpartition(")")[2].split()[19])
    return psutil.Process(pid).create_time()


def process_of(pid: int, start: float) -> psutil.Process | None:
    """The process `pid` if it is the one that started at `start` (see `started`)."""
    with suppress(psutil.NoSuchProcess, ValueError, OverflowError):
        process = psutil.Process(pid)
        return process if started(pid) == start else None
    return None


def marked_processes(name: str, value: str) -> list[psutil.Process]:
    """This user's processes that have the environment variable, except this one."""
    return [
        process for process in psutil.process_iter() if process.pid != os.getpid() and _marked(process, name, value)
    ]


def _marked(process: psutil.Process, name: str, value: str) -> bool:
    with suppress(psutil.Error, OSError):
        return process.uids().real == os.getuid() and process.environ().get(name) == value
    return False


def end(processes: Iterable[psutil.Process]) -> None:
    """Kill processes with their children and wait until they are gone. psutil refuses a pid that was used again."""
    targets = set()
    for process in processes:
        with suppress(psutil.NoSuchProcess):
            targets |= {process, *process.children(recursive=True)}
    for process in targets:
        with suppress(psutil.NoSuchProcess):
            process.kill()
    wait_until_gone(targets, limit_s=LIMIT_S)


def wait_until_gone(processes: Iterable[psutil.Process], *, limit_s: float) -> None:
    """Wait for processes to end; one whose parent does not ask about it (a zombie) counts as gone."""
    rest, deadline = list(processes), time.monotonic() + limit_s
    while (rest := list(filter(alive, rest))) and time.monotonic() < deadline:
        psutil.wait_procs(rest, timeout=ZOMBIE_POLL_S)


def end_marked(name: str, value: str) -> None:
    """Kill every process that has the environment variable, until a second look finds none."""
    deadline = time.monotonic() + LIMIT_S
    while time.monotonic() < deadline:
        end(marked_processes(name, value))
        time.sleep(SCAN_AGAIN_S)
        if not marked_processes(name, value):
            return


def alive(process: psutil.Process) -> bool:
    """Whether it runs: neither gone, nor replaced by another of the same id, nor dead and waiting for its parent."""
    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def _inode(path: Path) -> tuple[int, int]:
    found = os.lstat(path)
    return found.st_dev, found.st_ino


REPORT_LINES = 40


@dataclass(frozen=True, kw_only=True)
class End:
    """Why a process is gone, and the last lines that it wrote."""

    cause: str
    report: str = ""


def exit_message(exit_code: int | None) -> str:
    """An exit code as Python gives it: negative for a signal."""
    if exit_code is not None and exit_code < 0:
        return f"killed by signal {-exit_code} ({signal.Signals(-exit_code).name})"
    return f"exit code {exit_code}"


def after_error(end: End, met: tuple[str, str]) -> End:
    """The end of a process that had met an error, which is the cause then.

    Args:
        met: the error in a line or two, and its traceback (`rank.read_report`).
    """
    words, frames = met
    if not words:
        return end
    return End(cause=f"{words}\n  while cleaning up after this error: {end.cause}", report=f"{frames}\n{end.report}")


def tail(log: str | Path) -> str:
    """The end of a log, without the engine's own chatter."""
    if isinstance(log, Path):
        try:
            log = log.read_text(errors="replace")
        except FileNotFoundError:
            log = ""
    lines = [line for line in log.splitlines() if "[IPEngine" not in line and "[KernelNanny" not in line]
    return "\n".join(lines[-REPORT_LINES:])

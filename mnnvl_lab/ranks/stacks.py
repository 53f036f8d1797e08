"""Where a process is, asked from outside: SIGUSR1 makes it append its stacks to a file, even while inside C code."""

from __future__ import annotations

import signal
import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

import psutil

from mnnvl_lab.ranks.cluster import Process

LIMIT_S = 1.0
SETTLE_S = 0.03  # a stack is written within a millisecond; one that has not grown for so long is complete


def read_stacks(run_dir: Path, processes: Sequence[Process]) -> list[str]:
    """The stacks of each process, `faulthandler`'s text; empty where it is dead or on another machine."""
    paths = [run_dir / f"stack-{process.pid}" for process in processes]
    before = [_size(path) for path in paths]
    for process in processes:
        # Without its file a process has no handler yet, and the signal would end it; psutil refuses a pid used again.
        if process.here and (run_dir / f"stack-{process.pid}").exists():
            with suppress(psutil.NoSuchProcess):
                process.handle.send_signal(signal.SIGUSR1)
    _settle(paths, before)
    return [path.read_text()[size:] if path.exists() else "" for path, size in zip(paths, before, strict=True)]


def _settle(paths: list[Path], before: list[int]) -> None:
    deadline, last = time.monotonic() + LIMIT_S, list(before)
    while time.monotonic() < deadline:
        time.sleep(SETTLE_S)
        now = [_size(path) for path in paths]
        if now == last and now != before:
            return
        last = now


def _size(path: Path) -> int:
    return path.stat().st_size if path.exists() else 0

"""Watchdog: decides when ranks that are still busy hang, reads their state and stacks, and asks for a diagnosis."""

from __future__ import annotations

import os
import signal
import time
import uuid
from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import psutil

from mnnvl_lab.hang.agent import answer_path, pipe_path
from mnnvl_lab.hang.diagnosis import HangReport, diagnose
from mnnvl_lab.hang.snapshot import BUSY, DEAD, DEAF, DONE, Snapshot, from_json
from mnnvl_lab.layout import Layout

ROUND_LIMIT_S = 5.0  # rounds take milliseconds
WATCHDOG_POLL_S = 0.25
APART_S = 0.1  # between the two looks that must agree
AT_WORK = 0.1  # of a core: a rank that uses so much while others wait is late, not absent


class Watchdog:
    """Watches one call. What the ranks say costs a small file each; only when it stands still are they examined.

    Args:
        phases: what each rank says now.
        seconds_used: processor time of each rank until now, where it can be seen.
        examine: reads all ranks, given those that have answered, and judges.
        limit_s: seconds without a new word from anyone.
    """

    def __init__(
        self,
        *,
        phases: Callable[[], Mapping[int, str]],
        seconds_used: Callable[[], Mapping[int, float]],
        examine: Callable[[Collection[int]], HangReport],
        limit_s: float,
    ):
        self._phases, self._seconds_used, self._examine = phases, seconds_used, examine
        self._limit_s, self._next_s = limit_s, time.monotonic()
        self._said: Mapping[int, str] = {}
        self._begin_anew()

    def __call__(self, done: Collection[int]) -> HangReport | None:
        """The report if a round hangs now, given the ranks that have answered. Cheap to call often."""
        if time.monotonic() < self._next_s:
            return None
        self._next_s = time.monotonic() + WATCHDOG_POLL_S
        said = self._phases()
        if said != self._said:
            self._said = said
            self._begin_anew()
        if time.monotonic() - self._since_s < self._limit_s:
            return None
        return self._confirmed(done)

    def _begin_anew(self) -> None:
        self._since_s, self._used_s = time.monotonic(), self._seconds_used()

    def _confirmed(self, done: Collection[int]) -> HangReport | None:
        """Two looks that find the same ranks at the same wait: one alone may catch a moment of a running loop."""
        first = self._examine(done)
        if first.hangs_in_round and not self._at_work(first.culprits):
            time.sleep(APART_S)
            second = self._examine(done)
            if second.waits == first.waits:
                return second
        self._begin_anew()
        return None

    def _at_work(self, culprits: Collection[int]) -> bool:
        """Whether an awaited rank computes, as one does that checks a large round; the call's limit holds for it."""
        now_s, elapsed_s = self._seconds_used(), time.monotonic() - self._since_s
        used_s = [now_s[rank] - self._used_s[rank] for rank in culprits if rank in now_s and rank in self._used_s]
        return any(seconds > AT_WORK * elapsed_s for seconds in used_s)


ANSWER_LIMIT_S = 0.4
ANSWER_POLL_S = 0.005


def examine(
    run_dir: Path,
    pids: Mapping[int, int],
    *,
    layout: Layout,
    phases: Mapping[int, str],
    stacks: Mapping[int, str],
    done: Collection[int] = (),
    dead: Collection[int] = (),
    limit_s: float,
) -> HangReport:
    """Read every rank and judge.

    Args:
        run_dir: private directory of the ranks.
        pids, phases, stacks: process, phase and stack of each rank.
        done: ranks that have answered their call; `dead` those without a process.
        limit_s: how long was waited, for the report.
    """
    answers = ask(run_dir, {rank: pid for rank, pid in pids.items() if rank not in dead})
    snapshots = {}
    for rank in sorted(pids):
        state = DEAD if rank in dead else DONE if rank in done else BUSY if rank in answers else DEAF
        shown = answers.get(rank, Snapshot(rank=rank, trouble="it could not be asked"))
        snapshots[rank] = replace(
            shown, rank=rank, state=state, phase=phases.get(rank, shown.phase), stack=stacks.get(rank, "")
        )
    return diagnose(snapshots, layout, limit_s=limit_s)


def ask(run_dir: Path, pids: Mapping[int, int], *, limit_s: float = ANSWER_LIMIT_S) -> dict[int, Snapshot]:
    """Snapshots of those that answer within `limit_s`, by rank."""
    question, answers = uuid.uuid4().hex, {}
    waiting = {rank: pid for rank, pid in pids.items() if _send(pipe_path(run_dir, pid), question)}
    deadline = time.monotonic() + limit_s
    while waiting and time.monotonic() < deadline:
        for rank, pid in list(waiting.items()):
            path = answer_path(run_dir, pid, question)
            if path.exists():
                answers[rank] = from_json(path.read_text())
                path.unlink()
                del waiting[rank]
        if waiting:
            time.sleep(ANSWER_POLL_S)
    return answers


def _send(pipe: Path, question: str) -> bool:
    """Whether somebody listens: never waits."""
    with suppress(OSError):
        file = os.open(pipe, os.O_WRONLY | os.O_NONBLOCK)
        try:
            return os.write(file, f"{question}\n".encode()) > 0
        finally:
            os.close(file)
    return False


STACKS_LIMIT_S = 1.0
SETTLE_S = 0.03  # a stack is written within a millisecond; one that has not grown for so long is complete


def read_stacks(run_dir: Path, processes: Sequence[Any]) -> list[str]:
    """The stacks of each process, `faulthandler`'s text; empty where it is dead or on another machine."""
    paths = [run_dir / f"stack-{process.pid}" for process in processes]
    before = [_size(path) for path in paths]
    asked = [_ask_for_stack(path, process) for path, process in zip(paths, processes, strict=True)]
    _settle({path: size for path, size, was_asked in zip(paths, before, asked, strict=True) if was_asked})
    return [
        path.read_text()[size:] if was_asked else "" for path, size, was_asked in zip(paths, before, asked, strict=True)
    ]


def _ask_for_stack(path: Path, process: Any) -> bool:
    """Whether the process was asked. Without its file it has no handler yet, and the signal would end it."""
    if process.here and path.exists():
        with suppress(psutil.NoSuchProcess):  # psutil refuses a pid used again
            process.handle.send_signal(signal.SIGUSR1)
            return True
    return False


def _settle(before: Mapping[Path, int]) -> None:
    """Until every file has grown and none has for a while: on a busy machine a process may take its time."""
    deadline, last = time.monotonic() + STACKS_LIMIT_S, dict(before)
    while before and time.monotonic() < deadline:
        time.sleep(SETTLE_S)
        now = {path: _size(path) for path in before}
        if now == last and all(now[path] > before[path] for path in before):
            return
        last = now


def _size(path: Path) -> int:
    return path.stat().st_size if path.exists() else 0

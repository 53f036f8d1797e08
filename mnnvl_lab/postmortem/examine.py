"""The notebook's end: ask all ranks at once, also those that hang, and judge what they show."""

from __future__ import annotations

import os
import time
import uuid
from collections.abc import Collection, Mapping
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

from mnnvl_lab.layout import Layout
from mnnvl_lab.postmortem.listener import answer_path, pipe_path
from mnnvl_lab.postmortem.snapshot import BUSY, DEAD, DEAF, DONE, Snapshot, from_json
from mnnvl_lab.postmortem.verdict import Verdict, judge

LIMIT_S = 0.4
POLL_S = 0.005


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
) -> Verdict:
    """Read every rank and judge.

    Args:
        run_dir: private directory of the ranks.
        pids, phases, stacks: process, mark and stack of each rank.
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
    return judge(snapshots, layout, limit_s=limit_s)


def ask(run_dir: Path, pids: Mapping[int, int], *, limit_s: float = LIMIT_S) -> dict[int, Snapshot]:
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
            time.sleep(POLL_S)
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

"""The rank's end: a thread that describes the rank while its main thread is stuck.

It sleeps on a named pipe in the run directory, which only its owner can open, so it costs nothing until somebody asks.
Waiting for a GPU, for Gloo or in this package's own loops leaves Python to other threads; where it does not, the asker
gives up and still has the rank's stack.
"""

from __future__ import annotations

import os
import threading
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from mnnvl_lab.postmortem.snapshot import Meeting, Snapshot, to_json

if TYPE_CHECKING:
    from mnnvl_lab.ranks.rank import Rank


def pipe_path(run_dir: Path, pid: int) -> Path:
    return Path(run_dir) / f"ask-{pid}"


def answer_path(run_dir: Path, pid: int, question: str) -> Path:
    return Path(run_dir) / f"answer-{pid}-{question}"


class Listener:
    """Answers each line that comes through this process's pipe with a file.

    Args:
        run_dir: private directory of the ranks.
        current: gives the rank that this process is now, if any.
    """

    def __init__(self, run_dir: Path, current: Callable[[], Rank | None]):
        self._run_dir, self._current = run_dir, current
        path = pipe_path(run_dir, os.getpid())
        os.mkfifo(path, 0o600)
        # Open for both, so that reading blocks between two askers and does not end with the first.
        self._pipe = open(os.open(path, os.O_RDWR | os.O_CLOEXEC))  # noqa: SIM115 - lives as long as the process
        threading.Thread(target=self._listen, name="mnnvl_lab-listener", daemon=True).start()

    def _listen(self) -> None:
        for line in self._pipe:
            path = answer_path(self._run_dir, os.getpid(), line.strip())
            partial = path.with_suffix(".partial")
            partial.write_text(to_json(describe(self._current())))
            partial.rename(path)


def describe(rank: Rank | None) -> Snapshot:
    """What there is to see of a rank; whatever fails is named in `trouble`."""
    if rank is None:
        return Snapshot(rank=-1, trouble="it is no rank yet")
    meetings = {
        name: Meeting(ranks=group.ranks, begun=group.begun, done=group.done) for name, group in rank.groups.items()
    }
    seen = {"rank": rank.index, "phase": rank.phase, "meetings": meetings}
    try:
        return Snapshot(**seen, **_transport(rank))
    except Exception as error:
        return Snapshot(**seen, trouble="".join(traceback.format_exception_only(error)).strip())


def _transport(rank: Rank) -> dict[str, object]:
    transport = rank.watched and rank.watched()
    if transport is None:
        return {}
    if rank.device.type == "cuda":
        import torch

        torch.cuda.set_device(rank.device)  # a new thread begins at device 0
    peek = getattr(transport, "peek_flags", dict)
    return {"mode": transport.mode, "peers": transport.group.ranks, "active": transport.active, "flags": peek()}

"""Hang agent: a thread in each rank that reports the rank's state while its main thread is stuck.

It sleeps on a named pipe in the run directory, which only its owner can open, so it costs nothing until somebody asks.
Waiting for a GPU, for Gloo or in this package's own loops leaves Python to other threads; where it does not, the asker
gives up and still has the rank's stack. It lives as long as its process, whatever it is asked and whatever it finds:
what cannot be described is named in the answer, and the next question finds it listening.
"""

from __future__ import annotations

import os
import re
import threading
import traceback
from collections.abc import Callable, Iterable
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np

from mnnvl_lab.hang.snapshot import CollectiveCounter, Snapshot, to_json

QUESTION = re.compile("[0-9a-f]{32}")  # it becomes part of a file's name


def pipe_path(run_dir: Path, pid: int) -> Path:
    return Path(run_dir) / f"ask-{pid}"


def answer_path(run_dir: Path, pid: int, question: str) -> Path:
    return Path(run_dir) / f"answer-{pid}-{question}"


class HangAgent:
    """Answers each line that comes through this process's pipe with a file.

    Args:
        run_dir: private directory of the ranks.
        current: gives the rank that this process is now, if any.
    """

    def __init__(self, run_dir: Path, current: Callable[[], Any]):
        self._run_dir, self._current = run_dir, current
        path = pipe_path(run_dir, os.getpid())
        os.mkfifo(path, 0o600)
        # Open for both, so that reading blocks between two askers and does not end with the first.
        self._pipe = open(os.open(path, os.O_RDWR | os.O_CLOEXEC), "rb")  # noqa: SIM115 - lives as long as the process
        threading.Thread(target=self._listen, name="mnnvl_lab-listener", daemon=True).start()

    def _listen(self) -> None:
        for line in self._pipe:
            with suppress(BaseException):  # a full disk, no memory, or what a library raises: the next question may go
                self._answer(line.strip().decode())

    def _answer(self, question: str) -> None:
        if QUESTION.fullmatch(question):
            path = answer_path(self._run_dir, os.getpid(), question)
            partial = path.with_suffix(".partial")
            partial.write_text(to_json(describe(self._current())))
            partial.rename(path)


def describe(rank: Any) -> Snapshot:
    """What there is to see of a rank; whatever fails is named in `trouble`, and the rest is still told."""
    if rank is None:
        return Snapshot(rank=-1, trouble="it is no rank yet")
    seen, troubles = {"rank": -1}, []
    for part in (_place, _collectives, _transport):
        try:
            seen |= part(rank)
        except BaseException as error:
            troubles.append(_words(error))
    return Snapshot(**seen, trouble="; ".join(troubles))


def _words(error: BaseException) -> str:
    try:
        return "".join(traceback.format_exception_only(error)).strip()
    except BaseException:  # its own text cannot be made
        return type(error).__name__


def _place(rank: Any) -> dict[str, object]:
    return {"rank": int(rank.index), "phase": str(rank.phase)}


def _collectives(rank: Any) -> dict[str, object]:
    groups = list(rank.groups.items())  # at once: the main thread may add one meanwhile
    return {
        "collectives": {
            str(name): CollectiveCounter(ranks=_integers(group.ranks), begun=int(group.begun), done=int(group.done))
            for name, group in groups
        }
    }


def _transport(rank: Any) -> dict[str, object]:
    transport = rank.watched and rank.watched()
    if transport is None:
        return {}
    if rank.device.type == "cuda":
        import torch

        torch.cuda.set_device(rank.device)  # a new thread begins at device 0
    active = transport.active
    return {
        "mode": str(transport.mode),
        "peers": _integers(transport.group.ranks),
        "active": None if active is None else _integers(active),
        "flags": {str(name): _numbers(name, values) for name, values in list(transport.read_flags().items())},
    }


def _integers(values: Iterable) -> tuple[int, ...]:
    """Python's own, also out of numpy's or torch's."""
    return tuple(int(value) for value in values)


def _numbers(name: object, values: object) -> np.ndarray:
    array = np.asarray(values)
    if array.dtype.kind not in "biuf":
        raise TypeError(f"flags {name} are of type {array.dtype}, not numbers")
    return array

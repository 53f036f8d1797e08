"""Crash injection: a rank dies in a chosen phase, by a signal, an exit, an exception or a CUDA error."""

from __future__ import annotations

import os
import random
import signal
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType

from mnnvl_lab.measure.point import Point

PHASES = ("open", "dispatch", "after dispatch", "combine", "timing", "close")
"""As ranks announce them (`Rank.phase`); `start` comes before there is a rank function."""


def _kill() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def _exit() -> None:
    os._exit(7)


def _exhaust_memory() -> None:
    import numpy as np

    np.empty(2**60, np.uint8)  # more than there are addresses: MemoryError, with nothing taken


def _fail_on_gpu() -> None:
    """What an illegal address leaves behind: an error that stays with the CUDA context."""
    import torch

    torch.zeros(1, device="cuda")[torch.full((1,), 10**9, device="cuda")]
    torch.cuda.synchronize()


CAUSES: Mapping[str, Callable[[], None]] = MappingProxyType(
    {"SIGKILL": _kill, "exit": _exit, "memory": _exhaust_memory, "cuda": _fail_on_gpu}
)
WORDS: Mapping[str, str] = MappingProxyType(
    {"SIGKILL": "signal 9", "exit": "exit code 7", "memory": "MemoryError", "cuda": "CUDA error"}
)
"""What the error must say."""


def lose_gpu(rank) -> None:
    """Rank function: as if a CUDA error stayed with rank 1's process, also where there is no GPU."""
    if rank.index == 1:
        import torch

        if rank.device.type == "cuda":
            _fail_on_gpu()
        rank.device = torch.device("cuda", 0)
        raise RuntimeError("CUDA error: an illegal memory access was encountered")


def abort_in_cleanup(rank, point: Point, *, failing: int) -> None:
    """Rank function: as after a CUDA error whose cleaning up aborts the process, also where there is no GPU."""
    from mnnvl_lab.transport import open_transport

    with open_transport(rank, point.exchange) as transport:
        if rank.index == failing:
            transport.abort = os.abort
            rank.phase = "after dispatch"
            raise RuntimeError("CUDA error: an illegal memory access was encountered")
        rank.group("world").barrier()


class AbortsWhenFreed:
    """As a tensor of a GPU whose context has failed."""

    def __del__(self):
        os.abort()


def abort_with_the_frames(rank) -> None:
    """Rank function: rank 1 fails with a CUDA error while its frame holds what aborts once it is freed."""
    if rank.index == 1:
        import torch

        rank.device = torch.device("cuda", 0)
        held = AbortsWhenFreed()
        raise RuntimeError(f"CUDA error: an illegal memory access was encountered, {type(held).__name__}")


@dataclass(frozen=True, kw_only=True)
class Crash:
    """Who dies, when and how.

    Attributes:
        rank: global rank.
        phase: one of `PHASES`.
        cause: a key of `CAUSES`.
    """

    rank: int
    phase: str
    cause: str


class DeadlyPhaseFile:
    """The phase file of a rank (`mnnvl_lab.ranks.rank`) whose writer dies once it announces a phase."""

    def __init__(self, phase_file, crash: Crash):
        self._phase_file, self._crash = phase_file, crash
        self.read, self.report, self.forget_report = phase_file.read, phase_file.report, phase_file.forget_report

    def write(self, words: str) -> None:
        self._phase_file.write(words)
        if words.startswith(self._crash.phase):
            CAUSES[self._crash.cause]()


def crash_while_measuring(rank, point: Point, crash: Crash) -> None:
    """Rank function: a measured point, in which one rank dies where it is told to."""
    from mnnvl_lab.measure.run import measure_point

    living = rank._phase_file
    if rank.index == crash.rank:
        rank._phase_file = DeadlyPhaseFile(living, crash)
    try:
        measure_point(rank, point)
    finally:
        rank._phase_file = living


def crash_some_time(rank, point: Point, target: int, seed: int, within_s: float) -> None:
    """Rank function: rounds without end, in which one rank is killed at a random moment, inside C code or not."""
    from mnnvl_lab.measure.run import measure_point

    if rank.index == target:
        delay_s = random.Random(seed).uniform(0, within_s)
        threading.Thread(target=_kill_after, args=(delay_s,), daemon=True).start()
    while True:
        measure_point(rank, point)


def _kill_after(delay_s: float) -> None:
    time.sleep(delay_s)
    _kill()

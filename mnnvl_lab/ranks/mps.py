"""NVIDIA's Multi-Process Service for ranks that share a GPU: a private daemon in a private directory.

Without MPS the GPU is time-sliced between processes. Without a thread percentage the blocks of one rank can fill the
GPU and spin for a peer that then never gets to run.
"""

from __future__ import annotations

import os
import shutil
import subprocess
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

import psutil

from mnnvl_lab.errors import RankError, Refused
from mnnvl_lab.processes.ownership import OwnedDirectory, alive, end, wait_until_gone
from mnnvl_lab.ranks.arguments import created, temporary_dir

if TYPE_CHECKING:
    from mnnvl_lab.processes.reaper_client import Reaper

CONTROL = "nvidia-cuda-mps-control"
LIMIT_S = 10.0
QUIT_S = 2.0
PIPE_VARIABLE = "CUDA_MPS_PIPE_DIRECTORY"


class MpsDaemon:
    """A control daemon with private pipe and log directories; ended for certain at `close`.

    Args:
        ranks_per_gpu: ranks that share a GPU; each may use `100 // ranks_per_gpu` percent of its threads.
        guard: told of the directory and the processes before they exist, to clean up if this process is killed.

    Raises:
        Refused: the daemon is not installed. RankError: it did not start.
    """

    def __init__(self, *, ranks_per_gpu: int, guard: Reaper | None = None):
        if shutil.which(CONTROL) is None:
            raise Refused(
                f"{CONTROL} is not on PATH: fabric shared_gpu needs CUDA's MPS daemon; install the NVIDIA driver's "
                "utilities, or use fabric nvlink with one GPU per rank"
            )
        self.thread_percentage = 100 // ranks_per_gpu
        self._owned = OwnedDirectory.named(temporary_dir(), kind="mps-")
        self.directory = self._owned.path
        if guard:
            guard.watch(directories=[self._owned], marked=[(PIPE_VARIABLE, self._pipe)])
        created(self._owned)
        try:
            self._start()
        except BaseException:
            self.close()
            raise

    def __enter__(self):
        return self

    def __exit__(self, *exc):
        self.close()

    @property
    def env(self) -> dict[str, str]:
        """What a rank's process needs, before it first touches CUDA, to compute through this daemon."""
        return self._directories | {"CUDA_MPS_ACTIVE_THREAD_PERCENTAGE": str(self.thread_percentage)}

    @property
    def processes(self) -> list[psutil.Process]:
        """The daemon and its servers: MPS processes that have its directory in their environment."""
        return [process for process in psutil.process_iter() if self._owns(process)]

    def close(self) -> None:
        """Ask the daemon to quit, kill what is left of it, remove its directories. Idempotent."""
        if self.directory.exists():
            leaving = self.processes  # known from now on: one that is on its way out shows no environment any more
            with suppress(OSError, subprocess.SubprocessError):
                self._control("quit -t 1\n")
            wait_until_gone(leaving, limit_s=QUIT_S)
            end([*leaving, *self.processes])
            self._owned.remove()

    def _start(self) -> None:
        for directory in self._directories.values():
            Path(directory).mkdir(mode=0o700)
        done = subprocess.run([CONTROL, "-d"], env=self._environ, capture_output=True, text=True, timeout=LIMIT_S)
        if done.returncode:
            cause = f"{CONTROL} -d ended with exit code {done.returncode}"
            raise RankError(rank=0, phase="start", cause=cause, report=done.stdout + done.stderr)

    def _control(self, command: str) -> None:
        subprocess.run([CONTROL], input=command, env=self._environ, capture_output=True, text=True, timeout=LIMIT_S)

    @property
    def _directories(self) -> dict[str, str]:
        return {
            PIPE_VARIABLE: str(self.directory / "pipe"),
            "CUDA_MPS_LOG_DIRECTORY": str(self.directory / "log"),
        }

    @property
    def _pipe(self) -> str:
        return self._directories[PIPE_VARIABLE]

    @property
    def _environ(self) -> dict[str, str]:
        return os.environ | self._directories

    def _owns(self, process: psutil.Process) -> bool:
        with suppress(psutil.Error):
            return process.name().startswith("nvidia-cuda-mps") and self._pipe == process.environ().get(PIPE_VARIABLE)
        return False


class GpuSharing:
    """The daemon that the ranks of `shared_gpu` compute through at the moment, if any.

    Args:
        guard: told of the daemon's processes and directory, to clean up if this process is killed.
    """

    def __init__(self, guard: Reaper):
        self._guard, self._daemon, self._ranks_per_gpu, self._owner = guard, None, 0, os.getpid()
        self._processes: list[psutil.Process] = []

    @property
    def env(self) -> dict[str, str]:
        return self._daemon.env if self._daemon else {}

    def suits(self, ranks_per_gpu: int) -> bool:
        """Whether there is such a daemon and it runs."""
        return self._ranks_per_gpu == ranks_per_gpu and any(map(alive, self._processes))

    def change(self, ranks_per_gpu: int) -> None:
        """Start a daemon for so many ranks per GPU; the ranks of the former one must be gone."""
        self.close()
        self._daemon = MpsDaemon(ranks_per_gpu=ranks_per_gpu, guard=self._guard)
        self._ranks_per_gpu = ranks_per_gpu
        self._processes = self._daemon.processes
        self._guard.watch(self._processes)

    def close(self) -> None:
        """Idempotent. In a forked child of the process that started the daemon, nothing happens: it is not its own."""
        if self._daemon and os.getpid() == self._owner:
            self._daemon.close()
            self._daemon, self._ranks_per_gpu = None, 0

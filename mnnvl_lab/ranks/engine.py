"""Rank side of a call: one `Engine` in each ipyparallel engine answers what the notebook's process asks.

Requests and answers are pickled here, by reference to package functions, so that no code travels and arrays come back
writable. Both ends are this package's own processes and every message between them is signed.
"""

from __future__ import annotations

import faulthandler
import os
import pickle
import signal
import socket
import sys
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mnnvl_lab.errors import LabError
from mnnvl_lab.hang.agent import HangAgent
from mnnvl_lab.hardware import comes_to_rest
from mnnvl_lab.processes.ownership import started
from mnnvl_lab.ranks.network import own_address, shared_memory_id, use_interface_towards
from mnnvl_lab.ranks.rank import PhaseFile, Rank, RankAssignment
from mnnvl_lab.ranks.remote_server import PLACE_VARIABLE

RANK_HINTS = (PLACE_VARIABLE, "OMPI_COMM_WORLD_RANK", "PMI_RANK", "PMIX_RANK")
"""Set by fork servers on other hosts, and by MPI launchers."""


@dataclass(frozen=True, kw_only=True)
class Identity:
    """Who an engine is: its process (`started` as `ownership.started` gives it), its machine, its place as its
    launcher counts, if it does, and what tells its machine's shared memory from any other."""

    pid: int
    started: float
    host: str
    place: int
    memory: str


@dataclass(frozen=True, kw_only=True)
class Failure:
    """A rank function's exception.

    Attributes:
        error: the object itself, where the notebook's process can have it.
        words, report: the exception in a line or two, and its traceback.
        phase: what the rank was doing.
        lost: the process is of no more use: a CUDA error stays with it for life, or a kernel spins for a peer.
    """

    error: BaseException | None
    words: str
    report: str
    phase: str = ""
    lost: bool = False


class Engine:
    """One engine's state: the rank that it is now, if any."""

    def __init__(self):
        import torch  # noqa: F401 - loaded while the other processes start

        self.rank: Rank | None = None
        self._store = None
        self._phase_file: PhaseFile | None = None
        self._listener: HangAgent | None = None
        self._stack_file = None
        self._errors: list[BaseException] = []

    def answer(self, request: bytes) -> bytes:
        """Do what is asked; never raise."""
        try:
            method, args, kwargs = pickle.loads(request)
            return pickle.dumps(getattr(self, method)(*args, **kwargs))
        except BaseException as error:  # also SystemExit of a rank function: the engine must live on
            return pickle.dumps(self._failure(error))

    def _failure(self, error: BaseException) -> Failure:
        phase = ""
        if self._phase_file:
            phase = self._phase_file.read()
            self._phase_file.report(error)
        lost = self._gpu_is_lost()
        if lost:  # kept for good: tensors in its frames would free GPU memory, which aborts before the answer is sent
            self._errors.append(error)
        return _failure(error, phase=phase, lost=lost)

    def identify(self) -> Identity:
        place = next((int(os.environ[hint]) for hint in RANK_HINTS if hint in os.environ), 0)
        return Identity(
            pid=os.getpid(),
            started=started(os.getpid()),
            host=socket.gethostname(),
            place=place,
            memory=shared_memory_id(),
        )

    def prepare(self, path: list[str], run_dir: Path, env: dict[str, str]) -> None:
        """Import from where the notebook imports; say on SIGUSR1 where the process is, even inside C code."""
        sys.path.extend(entry for entry in path if entry not in sys.path)
        os.environ.update(env)
        if self._phase_file is None:
            run_dir.mkdir(mode=0o700, parents=True, exist_ok=True)
            self._phase_file = PhaseFile(run_dir)
            self._listener = HangAgent(run_dir, lambda: self.rank)
            self._stack_file = open(run_dir / f"stack-{os.getpid()}", "w")  # noqa: SIM115 - lives as long as the process
            faulthandler.register(signal.SIGUSR1, file=self._stack_file, all_threads=True)

    def host_store(self, peer: str) -> tuple[str, int]:
        """The TCPStore through which groups find each other: a port that the system chose, on one address only.

        Args:
            peer: address of the notebook's machine; the address here is the one by which this machine reaches it.
        """
        import torch.distributed as dist

        address = own_address(peer)
        if self._store is None:
            listener = socket.create_server((address, 0))
            port = listener.getsockname()[1]
            self._store = dist.TCPStore(
                address, port, is_master=True, wait_for_workers=False, master_listen_fd=listener.detach()
            )
        return address, self._store.port

    def join(self, assignment: RankAssignment) -> str:
        """Become a rank, leaving the place held before.

        Returns:
            Network interface of Gloo and NCCL.
        """
        self.leave()
        interface = use_interface_towards(assignment.store[0])
        self.rank = Rank(assignment, self._phase_file)
        return interface

    def leave(self) -> None:
        """Give up the place.

        Raises:
            RuntimeError: a kernel still spins on the GPU, or the GPU is lost: this process can be no rank any more.
        """
        if self.rank is None:
            return
        self.rank.close()
        if self._gpu_is_lost():
            raise RuntimeError("the GPU does not come to rest, so this process was ended; the next call starts another")
        self.rank = None

    def _gpu_is_lost(self) -> bool:
        """Whether nothing on the GPU will work in this process again, or a kernel spins that only its end stops."""
        return self.rank is not None and self.rank.device.type == "cuda" and not comes_to_rest(self.rank.device)

    def run(self, fn: Callable, args: tuple, kwargs: dict[str, Any]) -> Any:
        self._phase_file.forget_report()
        self._phase_file.write(fn.__name__)
        return fn(self.rank, *args, **kwargs)


def _failure(error: BaseException, **more: Any) -> Failure:
    portable = error if _portable(error) else None
    words = "".join(traceback.format_exception_only(error)).strip()
    return Failure(error=portable, words=words, report="".join(traceback.format_exception(error)), **more)


def _portable(error: BaseException) -> bool:
    """Whether the notebook's process gets the object: not a library's, to be imported first (torch: 3 s).

    All that a `LabError` or an exception of Python's own needs is there already.
    """
    if not (isinstance(error, LabError) or type(error).__module__ == "builtins"):
        return False
    try:
        pickle.loads(pickle.dumps(error))
    except Exception:
        return False
    return True

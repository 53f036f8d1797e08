"""An engine's process, as the notebook's process sees it."""

from __future__ import annotations

import socket
from dataclasses import dataclass

import psutil

from mnnvl_lab.errors import RankDied
from mnnvl_lab.processes.ownership import process_of
from mnnvl_lab.ranks.engine import Identity


@dataclass(frozen=True, kw_only=True)
class Process:
    """An engine as seen from here.

    Attributes:
        engine: its number in ipyparallel.
        pid, host: its process and machine.
        handle: its process, if the machine is this one.
    """

    engine: int
    pid: int
    host: str
    handle: psutil.Process | None

    @property
    def here(self) -> bool:
        return self.handle is not None

    @classmethod
    def unknown(cls, engine: int) -> Process:
        """An engine that has registered and not yet said who it is."""
        return cls(engine=engine, pid=0, host="", handle=None)

    @classmethod
    def of(cls, engine: int, identity: Identity) -> Process:
        """The engine that gave this identity.

        Raises:
            RankDied: it runs on this machine and has ended since; its pid may be another's by now.
        """
        here = identity.host == socket.gethostname()
        handle = process_of(identity.pid, identity.started) if here else None
        if here and handle is None:
            raise RankDied(rank=engine, phase="start", cause="its process ended right after it had registered")
        return cls(engine=engine, pid=identity.pid, host=identity.host, handle=handle)

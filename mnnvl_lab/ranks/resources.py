"""What must be there before any process starts: room for private directories."""

from __future__ import annotations

import tempfile
from pathlib import Path

import psutil

from mnnvl_lab.errors import Refused
from mnnvl_lab.processes.ownership import OwnedDirectory

ROOM_BYTES = 4 << 20
REMEDY = "free some space, or set TMPDIR to a directory that has it"


def temporary_dir() -> str:
    """Where private directories go.

    Raises:
        Refused: there is none, or it has no room for them.
    """
    try:
        directory = tempfile.gettempdir()
        free_bytes = psutil.disk_usage(directory).free
    except OSError as error:
        raise Refused(f"no temporary directory can be used ({error}); {REMEDY}") from error
    if free_bytes < ROOM_BYTES:
        raise Refused(f"{directory} has {free_bytes} bytes free: ranks need {ROOM_BYTES} for keys and logs; {REMEDY}")
    return directory


def memory_dir() -> str:
    """Where shared segments that need a name go: in memory, where the system has such a place."""
    return "/dev/shm" if Path("/dev/shm").is_dir() else temporary_dir()


def created(directory: OwnedDirectory) -> Path:
    """Create a private directory.

    Raises:
        Refused: it cannot be created.
    """
    try:
        return directory.create()
    except OSError as error:
        raise Refused(f"{directory.path} cannot be created ({error.strerror}); {REMEDY}") from error

"""What must be there before any process starts: room for private directories, and open files."""

from __future__ import annotations

import resource
import tempfile
from pathlib import Path

import psutil

from mnnvl_lab.errors import Refused
from mnnvl_lab.processes.ownership import OwnedDirectory

CONTROLLER_FILES, RANK_FILES = 128, 8  # open in the controller or in rank 0: measured 77 + 6 per rank, and 67 + 2
NOTEBOOK_FILES = 40  # that this process opens besides: measured 30
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


def require_open_files(ranks: int) -> None:
    """Check that this process and those that it starts may open enough files: a controller with fewer never answers.

    Raises:
        Refused: the limit is too low.
    """
    limit, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    needed = max(CONTROLLER_FILES + RANK_FILES * ranks, psutil.Process().num_fds() + NOTEBOOK_FILES)
    if limit != resource.RLIM_INFINITY and limit < needed:
        raise Refused(
            f"at most {limit} files may be open per process (ulimit -n), but {ranks} ranks need {needed}: raise the "
            f"limit in the shell that starts Jupyter (ulimit -n {max(needed, 1024)}), or here with "
            f"resource.setrlimit(resource.RLIMIT_NOFILE, ({needed}, {max(needed, hard)}))"
        )

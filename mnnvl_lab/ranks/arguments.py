"""Checks of what callers pass to `Ranks`: each refusal gives the value, the rule and the remedy."""

from __future__ import annotations

import math
import resource
import sys
import tempfile
from collections.abc import Callable, Iterable, Mapping
from numbers import Real
from pathlib import Path
from typing import Any

import psutil

from mnnvl_lab.errors import Refused, is_whole, shown
from mnnvl_lab.layout import Layout
from mnnvl_lab.processes.ownership import OwnedDirectory


def require_layout(layout: Any) -> Layout:
    """`layout` if it is one.

    Raises:
        Refused: it is something else.
    """
    if not isinstance(layout, Layout):
        raise Refused(f"layout is {shown(layout)}: it must be a Layout; pass one, such as Layout(tp=2, dp=2)")
    return layout


def require_rank(rank: Any, size: int, *, name: str = "rank") -> int:
    """A global rank as an int.

    Raises:
        Refused: it is no integer from 0 to `size` - 1.
    """
    if not is_whole(rank) or not 0 <= rank < size:
        raise Refused(f"{name} is {shown(rank)}: the layout has {size} ranks; pass an integer from 0 to {size - 1}")
    return int(rank)


def require_ranks(only: Iterable[int] | None, size: int) -> list[int]:
    """Global ranks in ascending order, each once; all of them for None.

    Raises:
        Refused: `only` is no collection of ranks of the layout, or is empty.
    """
    if only is None:
        return list(range(size))
    if not isinstance(only, Iterable) or isinstance(only, str | bytes):
        raise Refused(f"only is {shown(only)}: it must be a list of ranks; pass one, such as only=[0], or None for all")
    ranks = sorted({require_rank(rank, size, name="a rank in only") for rank in only})
    if not ranks:
        raise Refused("only is empty: a call needs at least one rank; pass some, such as only=[0], or None for all")
    return ranks


def require_seconds(name: str, value: Any) -> float:
    """A time limit in seconds; infinity means no limit.

    Raises:
        Refused: it is no number above 0.
    """
    if isinstance(value, bool) or not isinstance(value, Real) or math.isnan(value) or value <= 0:
        raise Refused(f"{name} is {shown(value)}: it must be a number of seconds above 0; pass one, such as {name}=60")
    return value


def require_options(options: Any) -> dict[str, Any]:
    """ipyparallel's configuration by class name, as a dict; empty for None.

    Raises:
        Refused: it is no dict of dicts.
    """
    given = {} if options is None else options
    if not isinstance(given, Mapping) or not all(isinstance(fields, Mapping) for fields in given.values()):
        raise Refused(
            f"launcher_options is {shown(options)}: it must be a dict of dicts by class name; "
            'see docs/launchers.md, such as {"SSHEngineSetLauncher": {"engines": {"host": 4}}}'
        )
    return dict(given)


def require_environment(env: Any) -> Mapping[str, str] | Callable[[int], Mapping[str, str]]:
    """Environment variables of the ranks, or a function of the rank that gives them.

    Raises:
        Refused: it is neither, or holds a name or value that is no string.
    """
    if callable(env):
        return env
    if not isinstance(env, Mapping):
        raise Refused(f"env is {shown(env)}: it must be a dict of strings, or a function from a rank to one")
    return require_strings(env)


def require_strings(env: Any) -> dict[str, str]:
    """Environment variables as a dict.

    Raises:
        Refused: not a dict of strings.
    """
    if not isinstance(env, Mapping):
        raise Refused(f"the function env gave {shown(env)}: it must give a dict of strings")
    for name, value in env.items():
        if not (isinstance(name, str) and isinstance(value, str)):
            raise Refused(
                f"env has {shown(name)}: {shown(value)}: names and values must be strings; put both in quotes"
            )
    return dict(env)


def require_importable(fn: Any) -> Callable:
    """A function that a rank can import by its name: notebooks pass values, never code.

    Raises:
        Refused: it is no function, or not at the top level of a module.
    """
    if not callable(fn):
        raise Refused(f"{shown(fn)} is no function: pass one that a module defines, such as measure_point")
    module, name = getattr(fn, "__module__", None), getattr(fn, "__qualname__", shown(fn))
    if module in (None, "__main__") or getattr(sys.modules.get(module), name, None) is not fn:
        raise Refused(
            f"function {name} of {module}: a rank must be able to import it by its name; "
            "put it at the top level of a module and import it from there"
        )
    return fn


CONTROLLER_FILES, RANK_FILES = 128, 8  # open in the controller or in rank 0: measured 77 + 6 per rank, and 67 + 2
NOTEBOOK_FILES = 40  # that this process opens besides: measured 30
RANK_MIB = 60  # of a forked rank of its own: measured 58 with 64 ranks on `host`; what it imports is shared
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


def require_memory(ranks: int) -> None:
    """Check that this machine has memory for so many more ranks: with less, Linux would end some process or other.

    Raises:
        Refused: too little is available.
    """
    available_mib = psutil.virtual_memory().available >> 20
    if available_mib < RANK_MIB * ranks:
        raise Refused(
            f"{available_mib} MiB of memory are available, but {ranks} more ranks need {RANK_MIB * ranks} "
            f"({RANK_MIB} each, before any workspace): use a smaller layout, close other ranks, or spread them over "
            "hosts (docs/launchers.md)"
        )


def _open_files(limit: int) -> int:
    """Files that this process has open; `limit` where even counting them would need one more."""
    try:
        return psutil.Process().num_fds()
    except OSError:
        return limit


def require_open_files(ranks: int) -> None:
    """Check that this process and those that it starts may open enough files: a controller with fewer never answers.

    Raises:
        Refused: the limit is too low.
    """
    limit, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    needed = max(CONTROLLER_FILES + RANK_FILES * ranks, _open_files(limit) + NOTEBOOK_FILES)
    if limit != resource.RLIM_INFINITY and limit < needed:
        raise Refused(
            f"at most {limit} files may be open per process (ulimit -n), but {ranks} ranks need {needed}: raise the "
            f"limit in the shell that starts Jupyter (ulimit -n {max(needed, 1024)}), or here with "
            f"resource.setrlimit(resource.RLIMIT_NOFILE, ({needed}, {max(needed, hard)}))"
        )

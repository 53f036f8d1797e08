"""Record files: Parquet with the provenance inside, written whole or not at all, and refused when anything is off."""

from __future__ import annotations

import fcntl
import glob
import json
import os
from collections.abc import Iterable, Mapping
from contextlib import suppress
from io import BytesIO
from pathlib import Path

import pandas as pd

from mnnvl_lab.errors import RecordError
from mnnvl_lab.records.atomic import replacing
from mnnvl_lab.records.columns import POINT_COLUMNS
from mnnvl_lab.records.tables import ATTRIBUTE, conform, join, new_table, parts_of, provenance_of, require_provenance

KEY_COLUMNS = tuple(name for name in POINT_COLUMNS if name not in ("phase", "ep_group"))
"""What names a point of a sweep; its phases and EP groups are measured together."""


def save(table: pd.DataFrame, path: str | os.PathLike) -> Path:
    """Write a table atomically: whoever opens `path` finds the old file or the new one, never a part.

    Raises:
        RecordError: the table has no provenance or unknown columns.
    """
    ready = new_table(table, provenance_of(table))
    with replacing(path) as file:
        ready.to_parquet(file, engine="pyarrow", index=False, write_page_checksum=True)
    return Path(path)


def load(path: str | os.PathLike) -> pd.DataFrame:
    """Read a record file.

    Raises:
        RecordError: no such file; truncated or damaged; not a record; of a newer schema; without provenance.
    """
    path = Path(path)
    if not path.is_file():
        raise RecordError(f"{path}: no such file; a sweep writes one with --out")
    try:
        content = BytesIO(path.read_bytes())  # once: a sweep may replace the file between two looks at its path
        _require_origin(content)
        table = pd.read_parquet(content, engine="pyarrow", page_checksum_verification=True)
        provenance = require_provenance(table.attrs.get(ATTRIBUTE))
        table = conform(table)
    except RecordError as error:
        raise RecordError(f"{path}: {error}") from None
    except (OSError, ValueError) as error:
        raise RecordError(f"{path}: {_damage(path)} ({str(error).splitlines()[0]}); measure again") from None
    table.attrs = {ATTRIBUTE: provenance}
    return table


def point_key(point: Mapping[str, object]) -> tuple:
    """What names a point among the rows of a file: the values of `KEY_COLUMNS`."""
    return tuple(point[name] for name in KEY_COLUMNS)


def done_points(path: str | os.PathLike) -> set[tuple]:
    """Keys of the points that a file holds, complete, since a point is added whole; empty without a file."""
    return _keys(load(path)) if Path(path).exists() else set()


class Appender:
    """A record file that grows by whole points, held by one sweep at a time.

    After each point the file is rewritten atomically, so a killed sweep loses at most the point in progress.

    Args:
        path: the file.
        provenance: of this run.
        resume: go on with a file that exists, made on the same fabric, device and clock.

    Raises:
        RecordError: another sweep holds the file; it exists and `resume` is False; or it is not a sound record.
    """

    def __init__(self, path: str | os.PathLike, provenance: Mapping[str, object], *, resume: bool = False):
        self.path = Path(path)
        self._provenance = require_provenance(provenance)
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self._lock = _lock(self.path)
        try:
            self.table = self._existing(resume)
        except BaseException:
            self.close()
            raise

    @property
    def done(self) -> set[tuple]:
        """Keys of the points already in the file."""
        return set() if self.table is None else _keys(self.table)

    def add(self, rows: Iterable[Mapping[str, object]] | pd.DataFrame) -> None:
        """Add all samples of one point, or of several.

        Raises:
            RecordError: see `new_table` and `join`.
        """
        fresh = new_table(rows, self._provenance)
        grown = fresh if self.table is None else join([self.table, fresh], by=("clock",))
        save(grown, self.path)
        self.table = grown

    def close(self) -> None:
        """Let the next sweep have the file. Idempotent."""
        if self._lock is not None:
            with suppress(FileNotFoundError):
                os.unlink(_lock_path(self.path))
            os.close(self._lock)
            self._lock = None

    def __enter__(self):
        return self

    def __exit__(self, *exc):
        self.close()

    def _existing(self, resume: bool) -> pd.DataFrame | None:
        for partial in self.path.parent.glob(f".{glob.escape(self.path.name)}.{'[0-9a-f]' * 32}.partial"):
            partial.unlink(missing_ok=True)
        if not self.path.exists():
            return None
        if not resume:
            raise RecordError(f"{self.path}: exists already; resume it (--resume), or name another file")
        return self._require_device(load(self.path))

    def _require_device(self, table: pd.DataFrame) -> pd.DataFrame:
        """Found out before anything is measured; `join` judges the rest."""
        there, here = (parts_of(p)[0].get("device") for p in (provenance_of(table), self._provenance))
        if there != here:
            raise RecordError(f"{self.path}: measured on {there}, not on {here}: device differs; name another file")
        return table


def _keys(table: pd.DataFrame) -> set[tuple]:
    return set(table[list(KEY_COLUMNS)].drop_duplicates().itertuples(index=False, name=None))


def _require_origin(content: BytesIO) -> None:
    """Judge a file by its footer, before a column of it is read."""
    from pyarrow import parquet

    stored = (parquet.read_schema(content).metadata or {}).get(b"PANDAS_ATTRS", b"{}")
    require_provenance(json.loads(stored).get(ATTRIBUTE))


def _damage(path: Path) -> str:
    with path.open("rb") as file:
        return "truncated or damaged" if file.read(4) == b"PAR1" else "not a record file"


def _lock_path(path: Path) -> Path:
    return path.with_name(f".{path.name}.lock")


def _lock(path: Path) -> int:
    """Hold `path` for this process. The kernel lets go when the process ends, however it ends."""
    name = _lock_path(path)
    while True:
        handle = os.open(name, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(handle)
            raise RecordError(f"{path}: another sweep is writing it; wait for it, or name another file") from None
        with suppress(FileNotFoundError):
            if os.fstat(handle).st_ino == os.stat(name).st_ino:
                return handle
        os.close(handle)

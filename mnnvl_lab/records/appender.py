"""A record file that grows point by point while a sweep runs."""

from __future__ import annotations

import fcntl
import glob
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from uuid import uuid4

import pandas as pd

from mnnvl_lab.errors import RecordError
from mnnvl_lab.records import journal
from mnnvl_lab.records.files import keys_of, naming, save, tables_in, to_bytes
from mnnvl_lab.records.table import join, new_table, parts_of, provenance_of, require_one_origin, require_provenance


class Appender:
    """A record file that grows by whole points, held by one sweep at a time.

    Until it is closed, the file is a journal (`records.journal`) to which each point is appended: the thousandth costs
    as much as the first, a killed sweep loses at most the point in progress, and `records.load` reads it at any moment.
    `close` rewrites it once, atomically, as one Parquet file. The lock is on the file itself.

    Args:
        path: the file.
        provenance: of this run.
        resume: go on with a file that exists, made on the same fabric and device.

    Raises:
        RecordError: another sweep holds the file; it exists and `resume` is False; it is not a sound record; or it
            cannot be written.
    """

    def __init__(self, path: str | os.PathLike, provenance: Mapping[str, object], *, resume: bool = False):
        self.path = Path(path)
        self._provenance = require_provenance(provenance)
        self._tables: list[pd.DataFrame] = []
        self._base, self._end = b"", 0
        self._file: int | None = _lock(self.path)
        try:
            self._take_up(resume)
        except BaseException:
            os.close(self._file)
            raise
        self.done = {key for table in self._tables for key in keys_of(table)}
        self._first = self._tables[0].iloc[:1] if self._tables else None

    @property
    def table(self) -> pd.DataFrame | None:
        """All samples so far; None before the first point."""
        if len(self._tables) > 1:
            self._tables = [join(self._tables, by=("clock",))]
        return self._tables[0] if self._tables else None

    def add(self, rows: Iterable[Mapping[str, object]] | pd.DataFrame) -> None:
        """Add all samples of one point, or of several.

        Raises:
            RecordError: see `new_table` and `join`; or the file cannot be written, and is as it was before.
        """
        fresh = new_table(rows, self._provenance)
        if self._first is None:
            self._first = fresh.iloc[:1]
        require_one_origin([self._first, fresh], by=("clock",))
        segment = journal.frame(to_bytes(fresh))
        if not self._end:
            self._begin_journal()
        self._append(segment)
        self._tables.append(fresh)
        self.done |= keys_of(fresh)

    def close(self) -> None:
        """Rewrite the file as Parquet and let the next sweep have it. Idempotent.

        Raises:
            RecordError: it cannot be rewritten; the points stay in the journal, which `records.load` reads.
        """
        if self._file is None:
            return
        try:
            if self._end and self._tables:
                save(self.table, self.path)
            elif not self._base:
                self.path.unlink(missing_ok=True)
        except OSError as error:
            raise RecordError(
                f"{self.path}: cannot be rewritten as Parquet ({error.strerror}): it stays a journal with all its "
                "points, which load reads; make room and resume it"
            ) from None
        finally:
            os.close(self._file)
            self._file = None

    def __enter__(self):
        return self

    def __exit__(self, *exc):
        self.close()

    def _take_up(self, resume: bool) -> None:
        """Read what the file holds, and cut off a segment that a killed sweep left incomplete."""
        for partial in self.path.parent.glob(f".{glob.escape(self.path.name)}.{'[0-9a-f]' * 32}.partial"):
            partial.unlink(missing_ok=True)
        content = self.path.read_bytes()
        with naming(self.path, content):
            is_journal = journal.MAGIC.startswith(content[: len(journal.MAGIC)])
            end = journal.segments(content)[1] if is_journal else 0
        if is_journal and end == len(journal.MAGIC):  # a sweep that was killed before its first point
            os.ftruncate(self._file, 0)
            return
        self._base = content
        if not resume:
            raise RecordError(f"{self.path}: exists already; resume it (--resume), or name another file")
        with naming(self.path, content):
            self._tables = tables_in(content)
            self._require_device(self._tables[0])
        if is_journal:
            os.ftruncate(self._file, end)
            self._end = end

    def _require_device(self, table: pd.DataFrame) -> None:
        """Found out before anything is measured; `require_one_origin` judges the rest."""
        there, here = (parts_of(p)[0].get("device") for p in (provenance_of(table), self._provenance))
        if there != here:
            raise RecordError(f"measured on {there}, not on {here}: device differs; name another file")

    def _begin_journal(self) -> None:
        """A new file gets its first bytes; a Parquet file becomes the first segment of a journal in its place."""
        if not self._base:
            self._append(journal.MAGIC)
            return
        partial = self.path.with_name(f".{self.path.name}.{uuid4().hex}.partial")
        file = os.open(partial, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o666)
        fcntl.flock(file, fcntl.LOCK_EX)
        old, self._file = self._file, file
        try:
            self._append(journal.MAGIC + journal.frame(self._base))
            os.replace(partial, self.path)
        except BaseException:
            self._file, self._end = old, 0
            os.close(file)
            partial.unlink(missing_ok=True)
            raise
        os.close(old)

    def _append(self, data: bytes) -> None:
        """All of `data` at the end of the file, or nothing."""
        try:
            written = 0
            while written < len(data):
                written += os.pwrite(self._file, data[written:], self._end + written)
            os.fsync(self._file)
        except OSError as error:
            os.ftruncate(self._file, self._end)
            raise RecordError(
                f"{self.path}: cannot be written ({error.strerror}); the points before are kept: make room and "
                "resume it"
            ) from None
        self._end += len(data)


def _lock(path: Path) -> int:
    """Open `path` and hold it for this process. The kernel lets go when the process ends, however it ends."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        while True:
            file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
            if _is_held(file, path):
                return file
            os.close(file)
    except BlockingIOError:
        raise RecordError(f"{path}: another sweep is writing it; wait for it, or name another file") from None
    except OSError as error:
        raise RecordError(f"{path}: cannot be written ({error.strerror}); name another file") from None


def _is_held(file: int, path: Path) -> bool:
    """Whether the lock is on the file that `path` names; not so if another sweep has just replaced or removed it."""
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        return path.exists() and os.fstat(file).st_ino == path.stat().st_ino
    except FileNotFoundError:
        return False
    except BaseException:
        os.close(file)
        raise

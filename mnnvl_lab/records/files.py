"""Atomic writes of record files, and reading them."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from io import BytesIO
from pathlib import Path
from typing import IO
from uuid import uuid4

import pandas as pd

from mnnvl_lab.errors import RecordError
from mnnvl_lab.records import journal
from mnnvl_lab.records.digest import DIGEST, digest, verify
from mnnvl_lab.records.schema import POINT_COLUMNS, SCHEMA
from mnnvl_lab.records.table import ATTRIBUTE, conform, join, new_table, provenance_of, require_provenance


@contextmanager
def replacing(path: str | os.PathLike, *, text: bool = False) -> Iterator[IO]:
    """A file that takes the place of `path` when the block ends well: a reader finds the old one or the new one."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.{uuid4().hex}.partial")
    try:
        with partial.open("x" if text else "xb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)


KEY_COLUMNS = tuple(name for name in POINT_COLUMNS if name not in ("phase", "ep_group"))
"""What names a point of a sweep; its phases and EP groups are measured together."""


def save(table: pd.DataFrame, path: str | os.PathLike) -> Path:
    """Write a table atomically: whoever opens `path` finds the old file or the new one, never a part.

    Raises:
        RecordError: the table has no provenance or unknown columns.
    """
    content = to_bytes(table)
    with replacing(path) as file:
        file.write(content)
    return Path(path)


def load(path: str | os.PathLike) -> pd.DataFrame:
    """Read a record file, also one that a sweep is writing or has left unfinished.

    Raises:
        RecordError: no such file; truncated or damaged; not a record; of a newer schema; without provenance or rows.
    """
    content = read(path)
    with naming(path, content):
        tables = tables_in(content)
        if not tables:
            raise RecordError("holds no point yet; let its sweep go on, with --resume")
        return join(tables, by=("clock",)) if len(tables) > 1 else tables[0]


def read(path: str | os.PathLike) -> bytes:
    """All bytes of a file, at once: a sweep may replace it between two looks at its path.

    Raises:
        RecordError: no such file, or it cannot be read.
    """
    path = Path(path)
    if not path.is_file():
        raise RecordError(f"{path}: no such file; a sweep writes one with --out")
    try:
        return path.read_bytes()
    except OSError as error:
        raise RecordError(f"{path}: cannot be read ({error.strerror}); name another file") from None


def tables_in(content: bytes) -> list[pd.DataFrame]:
    """The tables of a file's bytes: one of a Parquet file, one per point of a journal.

    Raises:
        RecordError: not sound; other errors come from the Parquet reader, which a damaged file can make fail anyhow.
    """
    if journal.MAGIC.startswith(content[: len(journal.MAGIC)]):
        return [from_bytes(segment) for segment in journal.segments(content)[0]]
    return [from_bytes(content)]


def to_bytes(table: pd.DataFrame) -> bytes:
    """A table as a Parquet file with its provenance and a digest of both.

    Raises:
        RecordError: the table has no provenance or unknown columns.
    """
    ready = new_table(table, provenance_of(table))
    provenance = provenance_of(ready) | {"schema": SCHEMA}
    ready.attrs = {ATTRIBUTE: provenance, DIGEST: digest(ready, provenance)}
    content = BytesIO()
    ready.to_parquet(content, engine="pyarrow", index=False, write_page_checksum=True)
    return content.getvalue()


def from_bytes(content: bytes) -> pd.DataFrame:
    """The table of a Parquet file.

    Raises:
        RecordError: of a newer schema, without provenance, or other than its digest says. Anything: damaged.
    """
    _require_origin(BytesIO(content))
    table = pd.read_parquet(BytesIO(content), engine="pyarrow", page_checksum_verification=True)
    provenance, stored = require_provenance(table.attrs.get(ATTRIBUTE)), table.attrs.get(DIGEST)
    table = conform(table)
    verify(table, provenance, stored)
    table.attrs = {ATTRIBUTE: provenance} | ({DIGEST: stored} if stored else {})
    return table


@contextmanager
def naming(path: str | os.PathLike, content: bytes) -> Iterator[None]:
    """Errors of reading `content` as those of the file that it came from.

    Raises:
        RecordError: for any error: the reader of a damaged file may raise whatever it likes.
    """
    try:
        yield
    except RecordError as error:
        raise RecordError(f"{path}: {error}") from None
    except Exception as error:
        kind = "truncated or damaged" if content[:4] == b"PAR1" else "not a record file"
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise RecordError(f"{path}: {kind} ({reason}); measure again") from None


def point_key(point: Mapping[str, object]) -> tuple:
    """What names a point among the rows of a file: the values of `KEY_COLUMNS`."""
    return tuple(point[name] for name in KEY_COLUMNS)


def done_points(path: str | os.PathLike) -> set[tuple]:
    """Keys of the points that a file holds, complete, since a point is added whole; empty without a file."""
    if not Path(path).exists():
        return set()
    content = read(path)
    with naming(path, content):
        return {key for table in tables_in(content) for key in keys_of(table)}


def keys_of(table: pd.DataFrame) -> set[tuple]:
    """Keys of a table's points."""
    return set(table[list(KEY_COLUMNS)].drop_duplicates().itertuples(index=False, name=None))


def _require_origin(content: BytesIO) -> None:
    """Judge a file by its footer, before a column of it is read."""
    from pyarrow import parquet

    stored = (parquet.read_schema(content).metadata or {}).get(b"PANDAS_ATTRS", b"{}")
    attrs = json.loads(stored)
    require_provenance(attrs.get(ATTRIBUTE) if isinstance(attrs, Mapping) else None)


KIND = "mnnvl_lab_kind"


def save_auxiliary(table: pd.DataFrame, path: str | os.PathLike, *, kind: str) -> Path:
    """Write a table with its provenance and its kind inside, atomically, as Parquet.

    Args:
        kind: what the table is, such as `links` or `memory`; `load_auxiliary` asks for it.

    Raises:
        RecordError: the table does not say where it comes from.
    """
    provenance = require_provenance(provenance_of(table)) | {"schema": SCHEMA}
    ready = _as_read(table)
    ready.attrs = {ATTRIBUTE: provenance, KIND: kind, DIGEST: digest(ready, provenance)}
    with replacing(path) as file:
        ready.to_parquet(file, engine="pyarrow", index=False, write_page_checksum=True)
    return Path(path)


def load_auxiliary(path: str | os.PathLike, *, kind: str) -> pd.DataFrame:
    """Read what `save_auxiliary` wrote.

    Raises:
        RecordError: no such file, damaged, another kind, or without provenance.
    """
    content = read(path)
    with naming(path, content):
        table = pd.read_parquet(BytesIO(content), engine="pyarrow", page_checksum_verification=True)
        found, stored = table.attrs.get(KIND), table.attrs.get(DIGEST)
        if found != kind:
            raise RecordError(f"holds {found or 'something else'}, not {kind}; name another file")
        provenance = require_provenance(table.attrs.get(ATTRIBUTE))
        verify(table, provenance, stored)
    table.attrs = {ATTRIBUTE: provenance} | ({DIGEST: stored} if stored else {})
    return table


def _as_read(table: pd.DataFrame) -> pd.DataFrame:
    """The table with the types that it has when it is read back, such as numbers for a column with gaps."""
    bare = table.copy()
    bare.attrs = {}
    content = BytesIO()
    bare.to_parquet(content, engine="pyarrow", index=False)
    return pd.read_parquet(content, engine="pyarrow")

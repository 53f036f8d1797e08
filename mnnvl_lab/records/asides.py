"""Measured tables that are not samples of a sweep: limits of a link, a memory ledger. Same care, other columns."""

from __future__ import annotations

import os
from io import BytesIO
from pathlib import Path

import pandas as pd

from mnnvl_lab.errors import RecordError
from mnnvl_lab.records.atomic import replacing
from mnnvl_lab.records.columns import SCHEMA
from mnnvl_lab.records.digest import DIGEST, digest, verify
from mnnvl_lab.records.files import naming, read
from mnnvl_lab.records.tables import ATTRIBUTE, provenance_of, require_provenance

KIND = "mnnvl_lab_kind"


def save_aside(table: pd.DataFrame, path: str | os.PathLike, *, kind: str) -> Path:
    """Write a table with its provenance and its kind inside, atomically, as Parquet.

    Args:
        kind: what the table is, such as `links` or `memory`; `load_aside` asks for it.

    Raises:
        RecordError: the table does not say where it comes from.
    """
    provenance = require_provenance(provenance_of(table)) | {"schema": SCHEMA}
    ready = _as_read(table)
    ready.attrs = {ATTRIBUTE: provenance, KIND: kind, DIGEST: digest(ready, provenance)}
    with replacing(path) as file:
        ready.to_parquet(file, engine="pyarrow", index=False, write_page_checksum=True)
    return Path(path)


def load_aside(path: str | os.PathLike, *, kind: str) -> pd.DataFrame:
    """Read what `save_aside` wrote.

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

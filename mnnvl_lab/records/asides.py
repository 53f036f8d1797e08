"""Measured tables that are not samples of a sweep: limits of a link, a memory ledger. Same care, other columns."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

import pandas as pd

from mnnvl_lab.errors import RecordError
from mnnvl_lab.records.atomic import replacing
from mnnvl_lab.records.tables import ATTRIBUTE, provenance_of, require_provenance

KIND = "mnnvl_lab_kind"


def save_aside(table: pd.DataFrame, path: str | os.PathLike, *, kind: str) -> Path:
    """Write a table with its provenance and its kind inside, atomically, as Parquet.

    Args:
        kind: what the table is, such as `links` or `memory`; `load_aside` asks for it.

    Raises:
        RecordError: the table does not say where it comes from.
    """
    ready = table.copy()
    ready.attrs = {ATTRIBUTE: require_provenance(provenance_of(table)), KIND: kind}
    with replacing(path) as file:
        ready.to_parquet(file, engine="pyarrow", index=False)
    return Path(path)


def load_aside(path: str | os.PathLike, *, kind: str) -> pd.DataFrame:
    """Read what `save_aside` wrote.

    Raises:
        RecordError: no such file, another kind, or without provenance.
    """
    try:
        table = pd.read_parquet(path, engine="pyarrow")
    except (OSError, ValueError) as error:
        raise RecordError(
            f"{path}: cannot be read ({str(error).splitlines()[0]}); record it with tools.record"
        ) from None
    found = table.attrs.get(KIND)
    if found != kind:
        raise RecordError(f"{path}: holds {found or 'something else'}, not {kind}; name another file")
    table.attrs = _checked(path, table.attrs)
    return table


def _checked(path: str | os.PathLike, attrs: Mapping[str, object]) -> dict[str, object]:
    try:
        return {ATTRIBUTE: require_provenance(attrs.get(ATTRIBUTE))}
    except RecordError as error:
        raise RecordError(f"{path}: {error}") from None

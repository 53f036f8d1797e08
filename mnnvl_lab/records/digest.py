"""Digest of a table's rows and provenance: detects whether a file was changed after it was written."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping

import numpy as np
import pandas as pd

from mnnvl_lab.errors import RecordError

DIGEST = "mnnvl_lab_digest"
SINCE_SCHEMA = 2
"""Files of this schema and later have a digest."""


def digest(table: pd.DataFrame, provenance: Mapping[str, object]) -> str:
    """SHA-256 over provenance, column names and values, as hexadecimal digits."""
    found = hashlib.sha256(json.dumps(provenance, sort_keys=True).encode())
    for name in table.columns:
        found.update(f"\n{name}\n".encode())
        for part in _parts(table[name]):
            found.update(part)
    return found.hexdigest()


def verify(table: pd.DataFrame, provenance: Mapping[str, object], stored: object) -> None:
    """Refuse a table that is not what was written.

    Raises:
        RecordError: rows or provenance have another digest, or the file should have one and has none.
    """
    if stored is None and provenance["schema"] < SINCE_SCHEMA:
        return
    if stored != digest(table, provenance):
        raise RecordError("damaged: rows or provenance are not what was written (their digest differs); measure again")


def protection_of(table: pd.DataFrame) -> str:
    """Whether a digest protects the file that a table was loaded from, in words."""
    if table.attrs.get(DIGEST):
        return "rows and provenance are as written (digest verified)"
    return "no digest: written before schema 2, so that a change of its provenance would not show"


def _parts(values: pd.Series):
    """A column as bytes that do not depend on how a file encodes it."""
    if values.dtype.kind in "biuf":
        array = values.to_numpy()
        yield np.ascontiguousarray(np.where(np.isnan(array), np.nan, array) if array.dtype.kind == "f" else array)
    elif values.dtype == "str":
        codes, names = pd.factorize(values)
        yield codes.astype("<i8")
        yield json.dumps(list(names)).encode()
    else:
        yield json.dumps([str(value) for value in values]).encode()

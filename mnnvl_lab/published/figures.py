"""What all readers share: rows as a table of published figures, files that cannot be read."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Mapping
from pathlib import Path

import pandas as pd

from mnnvl_lab.datasets import COUNTS, NUMBERS, WORDS
from mnnvl_lab.errors import RecordError


def figures(path: str | os.PathLike, rows: Iterable[Mapping[str, object]]) -> pd.DataFrame:
    """Rows as a table of published figures.

    Raises:
        RecordError: none, or the file has not the fields that its format promises.
    """
    try:
        made = [dict(row) for row in rows]
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        reason = f"{type(error).__name__}: {error}"
        raise RecordError(f"{path}: not as its writer makes it ({reason}); pass such a file") from None
    if not made:
        raise RecordError(f"{path}: holds no figures; pass a file with results")
    table = pd.DataFrame(made).reindex(columns=[*WORDS, *NUMBERS, *COUNTS])
    words = {name: table[name].astype(object).fillna("").astype(str) for name in WORDS}
    counts = {name: pd.to_numeric(table[name], errors="coerce").astype("Int64") for name in COUNTS}
    numbers = {name: pd.to_numeric(table[name], errors="coerce") for name in NUMBERS}
    return table.assign(**words, **counts, **numbers)


def read_text(path: str | os.PathLike) -> str:
    try:
        return Path(path).read_text(encoding="utf-8", errors="replace")
    except OSError as error:
        raise RecordError(f"{path}: cannot be read ({error.strerror}); name another file") from None


def read_json(path: str | os.PathLike) -> object:
    try:
        return json.loads(read_text(path))
    except (json.JSONDecodeError, RecursionError) as error:
        raise RecordError(f"{path}: no JSON ({error}); pass the file as it was written") from None

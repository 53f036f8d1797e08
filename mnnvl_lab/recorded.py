"""What this project measured on GPUs, by name: the record files of `data/`, so that a notebook needs no GPU.

`data/README.md` says on which machine each was recorded, and with which command of `tools.record`.
"""

from __future__ import annotations

from pathlib import Path

import pandas as pd

from mnnvl_lab import checkout, records


def names(*, folder: Path = checkout.DATA) -> list[str]:
    """Every recorded table, in alphabetical order.

    Raises:
        RecordError: the package runs without its checkout.
    """
    found = sorted(path.stem for path in folder.glob("*.parquet"))
    checkout.require_data(bool(found), folder, "recorded tables")
    return found


def load(name: str, *, kind: str | None = None, folder: Path = checkout.DATA) -> pd.DataFrame:
    """The recorded table of that name, with its provenance in `attrs`.

    Args:
        name: one of `names()`.
        kind: of a table that holds no samples of a sweep, such as `links` or `memory`.

    Raises:
        RecordError: the package runs without its checkout; the file is damaged, or of another kind.
        Refused: no such table; near names are given.
    """
    checkout.require_known(name, names(folder=folder), "recorded table")
    path = folder / f"{name}.parquet"
    return records.load(path) if kind is None else records.load_aside(path, kind=kind)

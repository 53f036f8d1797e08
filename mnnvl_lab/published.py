"""Published figures as data: what others measured, with what their numbers count and where they stand.

Context for figures, never mixed with records: the columns differ, so `records.join` refuses them. The files lie in
`data/published/` of the checkout, beside their checksums; its README says how they were read.
"""

from __future__ import annotations

import hashlib
from pathlib import Path

import pandas as pd

from mnnvl_lab import checkout
from mnnvl_lab.errors import RecordError

FOLDER = checkout.DATA / "published"
CHECKSUMS = "SHA256SUMS"

NUMBERS = ("value", "plus_minus")
COUNTS = ("devices", "ep_size", "tokens", "hidden", "experts", "top_k")
WORDS = (
    "quantity",
    "phase",
    "unit",
    "percentile",
    "mode",
    "library",
    "variant",
    "device",
    "format",
    "clock",
    "bandwidth_convention",
    "routing",
    "source",
    "date",
    "caveat",
)


def load(name: str | None = None, *, folder: Path = FOLDER) -> pd.DataFrame:
    """The table of that name, one figure a row; without a name, which tables exist.

    Args:
        name: a name of the list.
        folder: where the tables lie.

    Returns:
        Columns `NUMBERS` (float64), `COUNTS` (Int64, missing where the source does not say) and `WORDS` (empty where
        it does not say); or, without a name, `name`, `rows`, `devices` and `sources`.

    Raises:
        RecordError: the package runs without its checkout, or a file is not what its checksum says.
        Refused: no such table; near names are given.
    """
    known = _checksums(folder)
    if name is None:
        return pd.DataFrame([_entry(stem, _read(stem, known, folder)) for stem in known])
    checkout.require_known(name, known, "published table")
    return _read(name, known, folder)


def _checksums(folder: Path) -> dict[str, str]:
    path = folder / CHECKSUMS
    checkout.require_data(path.is_file(), path, "published tables")
    lines = (line.split() for line in path.read_text().splitlines())
    return {Path(file).stem: digest for digest, file in lines}


def _read(name: str, known: dict[str, str], folder: Path) -> pd.DataFrame:
    path = folder / f"{name}.csv"
    content = path.read_bytes() if path.is_file() else b""
    if hashlib.sha256(content).hexdigest() != known[name]:
        raise RecordError(f"{path}: missing, or not what {CHECKSUMS} says; restore it from the repository")
    types = dict.fromkeys(NUMBERS, "float64") | dict.fromkeys(COUNTS, "Int64") | dict.fromkeys(WORDS, "str")
    table = pd.read_csv(path, dtype=types, na_values={column: [""] for column in (*NUMBERS, *COUNTS)})
    return table.fillna(dict.fromkeys(WORDS, ""))


def _entry(name: str, table: pd.DataFrame) -> dict[str, object]:
    return {
        "name": name,
        "rows": len(table),
        "devices": ", ".join(table["device"].unique()),
        "sources": "; ".join(table["source"].unique()),
    }

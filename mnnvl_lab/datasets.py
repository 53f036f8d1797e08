"""Data sets of the source checkout: recorded sweeps (`data/*.parquet`) and tables that others published.

An installed package comes without them.
"""

from __future__ import annotations

import hashlib
from pathlib import Path

import pandas as pd

from mnnvl_lab import records
from mnnvl_lab.errors import RecordError, choose

DATA = Path(__file__).resolve().parents[1] / "data"


def require_data(found: bool, place: Path, what: str) -> None:
    """Refuse where the data are not beside the package.

    Args:
        found: whether they are.
        place: where they were looked for.
        what: such as "the published tables".

    Raises:
        RecordError: with the remedy.
    """
    if not found:
        raise RecordError(
            f"{place}: no such file; {what} come with the source checkout, not with an installed package: "
            "clone the repository and install it with `pip install --editable .`"
        )


def recorded_names(*, folder: Path = DATA) -> list[str]:
    """Every recorded table, in alphabetical order.

    Raises:
        RecordError: the package runs without its checkout.
    """
    found = sorted(path.stem for path in folder.glob("*.parquet"))
    require_data(bool(found), folder, "recorded tables")
    return found


def load_recorded(name: str, *, kind: str | None = None, folder: Path = DATA) -> pd.DataFrame:
    """The recorded table of that name, with its provenance in `attrs`.

    Args:
        name: one of `recorded_names()`.
        kind: of a table that holds no samples of a sweep, such as `links` or `memory`.

    Raises:
        RecordError: the package runs without its checkout; the file is damaged, or of another kind.
        Refused: no such table; near names are given.
    """
    name = choose(name, recorded_names(folder=folder), "recorded table")
    path = folder / f"{name}.parquet"
    return records.load(path) if kind is None else records.load_auxiliary(path, kind=kind)


FOLDER = DATA / "published"
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


def load_published(name: str | None = None, *, folder: Path = FOLDER) -> pd.DataFrame:
    """The table of that name, one figure per row; without a name, the list of tables.

    Args:
        name: a name of the list.
        folder: where the tables are.

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
    name = choose(name, known, "published table")
    return _read(name, known, folder)


def _checksums(folder: Path) -> dict[str, str]:
    path = folder / CHECKSUMS
    require_data(path.is_file(), path, "published tables")
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

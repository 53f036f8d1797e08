"""The files of a write-up: what each holds, judged before anything is written."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from types import MappingProxyType

import pandas as pd

from mnnvl_lab import records
from mnnvl_lab.errors import RecordError, Refused
from mnnvl_lab.plots.selection import load
from mnnvl_lab.records.files import KIND, naming, read
from mnnvl_lab.records.table import parts_of

SAMPLES = "samples"
KINDS: Mapping[str, tuple[str, ...]] = MappingProxyType(
    {
        SAMPLES: (),
        "memory": ("rank", "step", "used_bytes", "change_bytes", "predicted_bytes", "mode", "ep_size", "tokens"),
        "links": ("quantity", "direction", "moved_bytes", "iteration", "latency_us"),
    }
)
"""What a write-up can show: samples of a sweep, a memory ledger, rates of links; the columns that it needs of each."""
LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"


@dataclass(frozen=True, kw_only=True, eq=False)
class Source:
    """One file.

    Attributes:
        letter: by which the page calls it.
        name: of the file, without its folder.
        path: as it was given.
        kind: of `KINDS`.
        table: its rows.
        sha256: of its bytes.
    """

    letter: str
    name: str
    path: str
    kind: str
    table: pd.DataFrame
    sha256: str

    @property
    def provenance(self) -> dict[str, object]:
        return records.provenance_of(self.table)

    @property
    def parts(self) -> list[dict[str, object]]:
        """Provenance of each run that is in the file."""
        return parts_of(self.provenance)

    @property
    def device(self) -> str:
        return ", ".join(dict.fromkeys(str(part.get("device", "unknown device")) for part in self.parts))


def read_sources(files: Sequence[str]) -> tuple[Source, ...]:
    """Every file, or an error that names the one that is wrong.

    Raises:
        RecordError: no such file, truncated, damaged, empty, foreign, or of a kind that a write-up does not show.
        Refused: no files, too many, one given twice, or none with samples.
    """
    if not files:
        raise Refused("no files: a write-up is of one record file or more; name those that a sweep has written")
    if len(files) > len(LETTERS):
        raise Refused(f"{len(files)} files: a write-up calls them A to Z; write up at most {len(LETTERS)} together")
    sources = tuple(_read(letter, str(path)) for letter, path in zip(LETTERS, files, strict=False))
    seen: dict[str, str] = {}
    for source in sources:
        if source.sha256 in seen:
            raise Refused(f"{source.path}: the same bytes as {seen[source.sha256]}; name each file once")
        seen[source.sha256] = source.path
    if not any(source.kind == SAMPLES for source in sources):
        raise Refused("no file holds samples of a sweep: a write-up is of latencies; name one that `sweep` has written")
    return sources


def _read(letter: str, path: str) -> Source:
    content = read(path)
    with naming(path, content):
        kind = _kind(content)
    table = load(path) if kind == SAMPLES else records.load_auxiliary(path, kind=kind)
    if missing := [name for name in KINDS[kind] if name not in table.columns]:
        raise RecordError(f"{path}: says that it holds {kind}, without the column {', '.join(missing)}; leave it out")
    digest = hashlib.sha256(content).hexdigest()
    return Source(letter=letter, name=Path(path).name, path=path, kind=kind, table=table, sha256=digest)


def _kind(content: bytes) -> str:
    """What a file says that it holds; samples where it says nothing, which `load` then judges."""
    if content[:4] != b"PAR1":
        return SAMPLES
    from pyarrow import parquet

    attrs = json.loads((parquet.read_schema(BytesIO(content)).metadata or {}).get(b"PANDAS_ATTRS", b"{}"))
    kind = attrs.get(KIND, SAMPLES) if isinstance(attrs, dict) else SAMPLES
    if kind not in KINDS:
        raise RecordError(f"holds {kind}: a write-up shows {', '.join(KINDS)}; leave it out")
    return kind

"""What came of each attempt: a row of a table, and a file that carries its provenance."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path

import pandas as pd

from mnnvl_lab import records
from mnnvl_lab.errors import RecordError
from mnnvl_lab.records.atomic import replacing
from mnnvl_lab.records.tables import ATTRIBUTE, require_provenance

KIND = "mnnvl_lab.wrong_group"
FOLDER = Path(__file__).resolve().parents[2] / "data"


@dataclass(frozen=True, kw_only=True)
class Attempt:
    """What came of one workspace over one group.

    Attributes:
        tp, dp, pcp, pp, ep_size: the layout.
        fabric: what carried the bytes.
        layer: `kernels`, called directly by this package's transports (on `host` their protocol between processes), or
            one of FlashInfer's classes.
        mode: one_sided or two_sided.
        group: name of the group whose communicator allocated the workspace.
        spans: ranks of that group.
        outcome: `right`, a round equal to the oracle's; `mismatch`, refused because `spans` is not `ep_size`; `error`,
            failed in another way.
        phase: where it failed; empty if it did not.
        words: what was said then, word for word.
        checked: how strictly the round was compared, `exact` or `bounded`; empty where no round was.
        workspace_bytes: of one rank; None where no workspace stood.
        latencies_us: of each round, its slowest rank; empty where none was timed.
    """

    tp: int
    dp: int
    pcp: int
    pp: int
    ep_size: int
    fabric: str
    layer: str
    mode: str
    group: str
    spans: int
    outcome: str
    phase: str = ""
    words: str = ""
    checked: str = ""
    workspace_bytes: int | None = None
    latencies_us: tuple[float, ...] = ()


COLUMNS = tuple(field.name for field in fields(Attempt))


def to_frame(attempts: Iterable[Attempt], provenance: Mapping[str, object]) -> pd.DataFrame:
    """Attempts as a table with the statistics that are derived of them."""
    table = pd.DataFrame([asdict(attempt) for attempt in attempts], columns=list(COLUMNS))
    table["workspace_bytes"] = table["workspace_bytes"].astype("Int64")
    table["p50_us"] = [pd.Series(latencies, dtype=float).median() for latencies in table["latencies_us"]]
    table.attrs = {ATTRIBUTE: require_provenance(provenance)}
    return table


def join(tables: Sequence[pd.DataFrame]) -> pd.DataFrame:
    """Tables of one run, one behind the other, with the provenance of the first."""
    joined = pd.concat(tables, ignore_index=True)
    joined.attrs = dict(tables[0].attrs)
    return joined


def save(table: pd.DataFrame, path: str | os.PathLike) -> Path:
    """Write a table of `side_by_side` as JSON with its provenance, whole or not at all."""
    rows = table[list(COLUMNS)].astype(object).where(table[list(COLUMNS)].notna(), None).to_dict("records")
    document = {"kind": KIND, "provenance": records.provenance_of(table), "attempts": rows}
    with replacing(path, text=True) as file:
        json.dump(document, file, indent=1, allow_nan=False)
    return Path(path)


def load(path: str | os.PathLike) -> pd.DataFrame:
    """Read what `save` wrote.

    Raises:
        RecordError: no such file, no such record, or one of a newer schema.
    """
    try:
        document = json.loads(Path(path).read_text())
        if document["kind"] != KIND:
            raise ValueError(f"it is a {document['kind']!r}")
        attempts = [Attempt(**row | {"latencies_us": tuple(row["latencies_us"])}) for row in document["attempts"]]
        return to_frame(attempts, document["provenance"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise RecordError(f"{path} is no wrong_group record ({error}); record it with tools.record") from error


def recorded(folder: Path = FOLDER) -> pd.DataFrame:
    """All attempts in `data/wrong_group_*.json` of the checkout, each with its `device` and `clock`; empty without."""
    tables = [_named(load(path)) for path in sorted(folder.glob("wrong_group_*.json"))]
    return join(tables) if tables else pd.DataFrame(columns=[*COLUMNS, "p50_us", "device", "clock"])


def _named(table: pd.DataFrame) -> pd.DataFrame:
    origin = records.provenance_of(table)
    return table.assign(device=origin["device"], clock=", ".join(origin["clocks"]))

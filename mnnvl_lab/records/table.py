"""Make and join tables of samples: known columns and types, one origin."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence

import numpy as np
import pandas as pd

from mnnvl_lab.errors import RecordError, Refused
from mnnvl_lab.records.provenance import REQUIRED
from mnnvl_lab.records.schema import COLUMNS, DEFAULTS, SAMPLE_COLUMNS, SCHEMA

ATTRIBUTE = "mnnvl_lab"
ONE_ORIGIN = ("fabric", "device", "clock")
"""Fields whose values never mix unless the reader names them."""


def new_table(rows: Iterable[Mapping[str, object]] | pd.DataFrame, provenance: Mapping[str, object]) -> pd.DataFrame:
    """A tidy table of samples that knows where it comes from.

    Args:
        rows: one mapping per sample, with at least the columns of `SAMPLE_COLUMNS`.
        provenance: see `provenance.provenance`.

    Raises:
        RecordError: a column is missing or unknown, a value is not of its column's type, or provenance is incomplete.
    """
    table = conform(rows if isinstance(rows, pd.DataFrame) else pd.DataFrame(list(rows)))
    table.attrs = {ATTRIBUTE: require_provenance(provenance)}
    return table


class Provenance(dict):
    """Where a table comes from, as plain JSON values, never changed: `provenance | {...}` makes another.

    So tables can share one. pandas makes a deep copy of `attrs` at nearly every operation, which took a quarter of the
    time of an analysis.
    """

    def __deepcopy__(self, memo: dict) -> Provenance:
        return self

    def __reduce__(self):
        return Provenance, (dict(self),)

    def _refuse(self, *args: object, **kwargs: object):
        raise TypeError("provenance is never changed: make another with `provenance | {...}`")

    __setitem__ = __delitem__ = __ior__ = update = setdefault = pop = popitem = clear = _refuse


def conform(table: pd.DataFrame) -> pd.DataFrame:
    """The same rows with the registry's columns, order, types and defaults, and a fresh index.

    Raises:
        RecordError: a column is missing or unknown, or a value is not of its column's type.
    """
    missing = [name for name in SAMPLE_COLUMNS if name not in table.columns and name not in DEFAULTS]
    if missing:
        raise RecordError(
            f"no column {', '.join(missing)}: a record has {', '.join(SAMPLE_COLUMNS)}; add what is missing"
        )
    unknown = [name for name in table.columns if name not in COLUMNS]
    if unknown:
        raise RecordError(
            f"unknown column {', '.join(map(repr, unknown))}: add it to the registry in records/columns.py"
        )
    if table.empty:
        raise RecordError("no rows: a record holds samples; measure at least one point")
    bare = pd.DataFrame(table)
    bare.attrs = {}  # pandas copies them at every operation
    given = pd.DataFrame({name: _typed(bare[name]) for name in bare.columns}).reset_index(drop=True)
    _require_latencies(given["latency_us"])
    full = _with_defaults(given)
    return full[[name for name in COLUMNS if name in full.columns]]


def _with_defaults(table: pd.DataFrame) -> pd.DataFrame:
    lacking = {name: DEFAULTS[name] for name in SAMPLE_COLUMNS if name not in table.columns}
    try:
        values = {name: default(table) if callable(default) else default for name, default in lacking.items()}
    except Refused as error:
        raise RecordError(str(error)) from None
    return table.assign(**values)


def _require_latencies(latency_us: pd.Series) -> None:
    wrong = latency_us[~np.isfinite(latency_us) | (latency_us < 0)]
    if len(wrong):
        raise RecordError(f"latency_us holds {wrong.iloc[0]}: a time is at least 0; leave such samples out")


def provenance_of(table: pd.DataFrame) -> dict[str, object]:
    """Where a table comes from; empty for a table that was computed, not measured."""
    return table.attrs.get(ATTRIBUTE, {})


def require_provenance(provenance: object) -> Provenance:
    """Provenance as plain JSON values.

    Raises:
        RecordError: it is no mapping, newer than this package, incomplete, or holds what JSON cannot.
    """
    if not isinstance(provenance, Mapping) or "schema" not in provenance:
        raise RecordError(
            "no provenance: a record says where it comes from; only files written by this package are read"
        )
    if not isinstance(provenance["schema"], int) or provenance["schema"] > SCHEMA:
        raise RecordError(
            f"schema {provenance['schema']}: this package reads up to {SCHEMA}; install a newer mnnvl_lab"
        )
    missing = [field for field in REQUIRED if not any(part.get(field) for part in parts_of(provenance))]
    if missing:
        raise RecordError(f"provenance lacks {', '.join(missing)}: a figure must name its device; measure again")
    try:
        return Provenance(json.loads(json.dumps(dict(provenance), allow_nan=False)))
    except (TypeError, ValueError) as error:
        raise RecordError(f"provenance is not plain JSON ({error}): pass numbers, strings and lists") from None


def join(tables: Sequence[pd.DataFrame], *, by: Sequence[str] = ()) -> pd.DataFrame:
    """Tables one after the other, if they come from the same fabric, device and clock.

    Args:
        by: fields of `fabric`, `device`, `clock` that may differ; each is a column of the result.

    Raises:
        RecordError: nothing to join, or a field differs that `by` does not name.
    """
    if not tables:
        raise RecordError("no tables: join needs at least one")
    require_one_origin(tables, by=by)
    labelled = [_with_device(table) for table in tables] if "device" in by else list(tables)
    joined = conform(pd.concat([pd.DataFrame(t).rename_axis(None) for t in labelled], ignore_index=True))
    parts = [part for table in tables for part in parts_of(provenance_of(table))]
    joined.attrs = {ATTRIBUTE: Provenance(_merge(parts))}
    return joined


def require_one_origin(tables: Sequence[pd.DataFrame], *, by: Sequence[str] = ()) -> None:
    """Refuse tables of another fabric, device or clock, unless `by` names that field.

    Raises:
        RecordError: names the field and its values.
    """
    for field in ONE_ORIGIN:
        values = [_values(table, field) for table in tables]
        if field not in by and any(value != values[0] for value in values):
            shown = " and ".join(dict.fromkeys(", ".join(value) for value in values))
            raise RecordError(
                f"{field} differs ({shown}): such times do not compare; pass by=({field!r},) to join them"
            )


def parts_of(provenance: Mapping[str, object]) -> list[dict[str, object]]:
    """The provenance of each run that went into a table; one for a table that was never joined."""
    common = {field: value for field, value in provenance.items() if field != "joined"}
    return [common | part for part in provenance.get("joined", [{}])]


def _merge(parts: Sequence[Mapping[str, object]]) -> dict[str, object]:
    """What all runs have in common once, and the rest under `joined`, one per run; the newest schema is of all."""
    schema = {"schema": max(part["schema"] for part in parts)} if all("schema" in part for part in parts) else {}
    parts = [dict(part) | schema for part in parts]
    distinct = [part for i, part in enumerate(parts) if part not in parts[:i]]
    first = distinct[0]
    common = {f: v for f, v in first.items() if all(f in part and part[f] == v for part in distinct)}
    if len(distinct) == 1:
        return common
    return common | {"joined": [{f: v for f, v in part.items() if f not in common} for part in distinct]}


def _values(table: pd.DataFrame, field: str) -> tuple[str, ...]:
    if field in table.columns:
        return tuple(sorted(map(str, table[field].unique())))
    return tuple(sorted({str(part.get(field, "unknown")) for part in parts_of(provenance_of(table))}))


def _with_device(table: pd.DataFrame) -> pd.DataFrame:
    if "device" in table.columns:
        return table
    return table.assign(device=" + ".join(_values(table, "device")))


def _typed(values: pd.Series) -> pd.Series:
    column = COLUMNS[values.name]
    if values.dtype == column.dtype and (values.dtype.kind in "biuf" or not values.isna().any()):
        return values  # as in every table that was written: a conversion and a comparison would find nothing
    if column.dtype == "float64" or not values.isna().any():
        try:
            typed = values.astype(column.dtype)
        except (TypeError, ValueError):
            typed = None
        if typed is not None and (column.dtype == "str" or (typed == values).where(values.notna(), True).all()):
            return typed
    raise RecordError(
        f"column {column.name} holds {values.dtype} {values.iloc[:1].tolist()}: it must be {column.dtype}"
    )

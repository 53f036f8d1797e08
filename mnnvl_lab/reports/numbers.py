"""The numbers of a page as plain JSON: what a program reads instead of the page."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import pandas as pd

from mnnvl_lab.analysis import crossover
from mnnvl_lab.errors import RecordError, Refused
from mnnvl_lab.link_rates import limits as rates
from mnnvl_lab.records import summary
from mnnvl_lab.reports.comparison import compared, pairs
from mnnvl_lab.reports.extras import bandwidths, opened, stragglers, timed_phases, workspaces
from mnnvl_lab.reports.inputs import SAMPLES, Source
from mnnvl_lab.reports.results import ahead_of

SCHEMA = 1


def numbers(sources: tuple[Source, ...], *, question: str) -> dict[str, object]:
    """Everything that the page can show, by file, with the columns of the registry.

    Returns:
        `schema`, `question`, `files` (each with letter, name, kind, rows, sha256, provenance and its tables: `latency`,
        `fastest`, `crossings`, `bandwidth`, `workspaces`, `skew`, or `memory`, or `links`, see `plain`), and
        `comparisons`.
    """
    return {
        "schema": SCHEMA,
        "question": question,
        "files": [_file(source) for source in sources],
        "comparisons": [_comparison(a, b) for a, b in pairs(sources)],
    }


def _file(source: Source) -> dict[str, object]:
    tables = {SAMPLES: _samples, "memory": _memory, "links": _links}[source.kind](source)
    about = {name: getattr(source, name) for name in ("letter", "name", "kind", "sha256", "provenance")}
    return about | {"rows": len(source.table)} | {name: plain(table) for name, table in tables.items()}


def _samples(source: Source) -> dict[str, pd.DataFrame]:
    table = source.table
    clock, ahead = ahead_of(table)
    tables = {"latency": summary(table)}
    if ahead is not None:
        tables["fastest"] = ahead
        tables["crossings"] = crossover.crossings(table[table["delay_us"] == 0], clock=clock)
    if len(timed := timed_phases(table)):
        tables["bandwidth"] = bandwidths(timed)
    tables |= {"workspaces": workspaces(table), "skew": stragglers(table)}
    return {name: found for name, found in tables.items() if len(found)}


def _memory(source: Source) -> dict[str, pd.DataFrame]:
    return {"memory": opened(source.table)}


def _links(source: Source) -> dict[str, pd.DataFrame]:
    return {"links": rates(source.table)}


def _comparison(a: Source, b: Source) -> dict[str, object]:
    pair = {"a": a.letter, "b": b.letter}
    try:
        table = compared(a, b)
    except (RecordError, Refused) as reason:
        return pair | {"reason": str(reason)}
    only = {name: int(table.attrs[name]) for name in ("only_a", "only_b")}
    return pair | only | {"points": plain(table)}


def plain(table: pd.DataFrame) -> dict[str, object]:
    """A table as JSON has it: `same`, the columns that never vary, and `rows` with the others."""
    same = [name for name in table.columns if len(table) > 1 and table[name].nunique(dropna=False) == 1]
    rows = table.drop(columns=same).to_dict("records")
    return {
        "same": {name: _value(table[name].iloc[0]) for name in same},
        "rows": [{name: _value(value) for name, value in row.items()} for row in rows],
    }


def frame(plain_table: Mapping[str, object]) -> pd.DataFrame:
    """The table that `plain` made plain."""
    return pd.DataFrame([plain_table["same"] | row for row in plain_table["rows"]])


def _value(value: object) -> object:
    if value is pd.NA or (isinstance(value, float | np.floating) and not np.isfinite(value)):
        return None
    return value.item() if isinstance(value, np.generic) else value

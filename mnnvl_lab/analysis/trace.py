"""Samples as a timeline that Perfetto (https://ui.perfetto.dev) and `chrome://tracing` open.

The Trace Event Format in its JSON form: complete events (`ph` X) with `ts` and `dur` in microseconds; a process a
measured point, a thread, and so a track, a rank. Inside a phase a slice shows how long the rank waited for the last one
to enter.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pandas as pd

from mnnvl_lab.analysis.skew import entries
from mnnvl_lab.errors import Refused

ARGS = ("mode", "fabric", "tokens", "format", "routing", "phase", "iteration", "delay_us", "delayed_rank", "checked")
POINT = ("mode", "fabric", "clock", "tp", "dp", "pcp", "pp", "tokens", "format", "routing", "seed", "delay_us")
WAIT = "wait for the last rank"


def save(table: pd.DataFrame, path: str | os.PathLike) -> Path:
    """Write the timeline of a table of samples.

    Raises:
        Refused: samples that do not lie on one time base.
    """
    path = Path(path)
    document = {"traceEvents": list(events(table)), "displayTimeUnit": "ns", "otherData": _origin(table)}
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(document, default=_plain, allow_nan=False))
    return path


def events(table: pd.DataFrame) -> Iterator[dict]:
    """The trace events of a table, names of processes and threads first. Time begins with its first sample.

    Raises:
        Refused: samples of clock `kernel`, or without `start_us`.
    """
    _require_time_base(table)
    point = [column for column in POINT if column in table.columns]
    process = table.groupby(point, sort=False).ngroup().rename("process")
    yield from _names(table, process, point)
    first_us = table["start_us"].min()
    for row, pid in zip(_with_waits(table).to_dict("records"), process, strict=True):
        place = {"ph": "X", "pid": int(pid), "tid": int(row["rank"]), "ts": row["start_us"] - first_us}
        yield place | {"name": row["phase"], "cat": "phase", "dur": row["latency_us"], "args": _args(row)}
        if row["wait_us"] > 0:
            yield place | {"name": WAIT, "cat": "wait", "dur": row["wait_us"], "args": {}}


def _with_waits(table: pd.DataFrame) -> pd.DataFrame:
    """Waiting is known where entries are; a replayed graph is one slice as long as its mean round."""
    if (table["clock"] == "eager").all():
        return entries(table)
    return table.assign(wait_us=0.0)


def _names(table: pd.DataFrame, process: pd.Series, point: list[str]) -> Iterator[dict]:
    for pid, rows in table.groupby(process, sort=True):
        words = " ".join(f"{column}={rows[column].iloc[0]}" for column in point)
        yield _name("process_name", pid, 0, words)
        for rank in sorted(rows["rank"].unique()):
            yield _name("thread_name", pid, rank, f"rank {rank}")


def _name(kind: str, pid: int, tid: int, words: str) -> dict:
    return {"ph": "M", "name": kind, "pid": int(pid), "tid": int(tid), "args": {"name": words}}


def _args(row: dict) -> dict:
    return {name: row[name] for name in ARGS if name in row and not pd.isna(row[name])}


def _plain(value):
    """numpy's scalars as Python's."""
    if isinstance(value, np.generic):
        return value.item()
    raise TypeError(f"{type(value).__name__} is not JSON")


def _origin(table: pd.DataFrame) -> dict[str, str]:
    return {name: str(value) for name, value in table.attrs.get("mnnvl_lab", {}).items()}


def _require_time_base(table: pd.DataFrame) -> None:
    if (table["clock"] == "kernel").any():
        raise Refused(
            "clock kernel: the profiler of each rank counts from its own start, so the ranks' spans do not line up; "
            "export samples of clock eager or graph"
        )
    if table["start_us"].isna().any():
        raise Refused("start_us is missing in some samples: a timeline needs every start; measure again")

"""A table of samples split into what makes one figure each."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence

import numpy as np
import pandas as pd

from mnnvl_lab import records
from mnnvl_lab.errors import RecordError
from mnnvl_lab.records import POINT_COLUMNS
from mnnvl_lab.records.schema import OPTIONS, SIZES

LATENCY = tuple(name for name in POINT_COLUMNS if name not in ("mode", "tokens", *SIZES))


def load(path: str) -> pd.DataFrame:
    """A record file with samples that can be drawn and compared.

    Raises:
        RecordError: no sound record, without rows, or with latencies that are no positive numbers.
    """
    table = records.load(path)
    if table.empty:
        raise RecordError(f"{path}: has no samples: a record needs one point at least; measure again")
    wrong = ~(np.isfinite(table["latency_us"]) & (table["latency_us"] > 0))
    if wrong.any():
        raise RecordError(
            f"{path}: latency_us of {wrong.sum()} of {len(table)} rows is no positive number, such as "
            f"{table['latency_us'][wrong].iloc[0]}: a latency is one; measure again"
        )
    return table


def lines(table: pd.DataFrame) -> Iterator[tuple[str, pd.DataFrame]]:
    """The parts of a table that make one figure, a line per mode.

    How a mode is used, such as written in place, parts figures only where one mode is used in both ways; capacity and
    runtime max only where they do not follow from the tokens.
    """
    own = [name for name in OPTIONS if (table.groupby("mode")[name].nunique() == 1).all()]
    sizes = [name for name in SIZES if (table.groupby(["mode", "tokens"])[name].nunique() > 1).any()]
    yield from settings(table, [*(name for name in LATENCY if name not in own), *sizes])


def settings(table: pd.DataFrame, columns: Sequence[str]) -> Iterator[tuple[str, pd.DataFrame]]:
    """The parts of a table in which `columns` do not vary, each named by those that vary in the whole table."""
    varying = [name for name in columns if table[name].nunique() > 1]
    if not varying:
        yield "", table
        return
    for values, part in table.groupby(varying, sort=False):
        words = [v if isinstance(v, str) else f"{name}{v}" for name, v in zip(varying, values, strict=True)]
        yield "-" + re.sub(r"[^\w.-]+", "_", "-".join(words)), part

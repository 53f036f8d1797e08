"""Statistics of samples. Communication is synchronous, so the slowest rank of an iteration is its time."""

from __future__ import annotations

from collections.abc import Sequence

import pandas as pd

from mnnvl_lab.records.columns import POINT_COLUMNS


def slowest_rank(table: pd.DataFrame) -> pd.DataFrame:
    """One row an iteration: that of the rank which took longest (FlashInfer's `benchmarks/routines/moe_comm.py`)."""
    iterations = table.groupby([*_points(table), "iteration"], sort=False)["latency_us"]
    return table.loc[iterations.idxmax()].reset_index(drop=True)


def summary(table: pd.DataFrame, *, by: Sequence[str] | None = None) -> pd.DataFrame:
    """Percentiles over iterations of the slowest rank.

    Args:
        table: samples of all ranks; raw, as `measure.run` returns them.
        by: columns that tell the rows of the result apart; all point columns by default.

    Returns:
        Columns `by`, then `p50_us, p90_us, p99_us, min_us, spread, n`; percentiles interpolate linearly, `spread` is
        the interquartile range over the median.
    """
    by = list(by) if by is not None else _points(table)
    groups = slowest_rank(table).groupby(by, sort=False)["latency_us"]
    quantile = groups.quantile([0.25, 0.5, 0.75, 0.9, 0.99]).unstack()
    derived = pd.DataFrame(
        {
            "p50_us": quantile[0.5],
            "p90_us": quantile[0.9],
            "p99_us": quantile[0.99],
            "min_us": groups.min(),
            "spread": (quantile[0.75] - quantile[0.25]) / quantile[0.5],
            "n": groups.size(),
        }
    ).reset_index()
    derived.attrs = dict(table.attrs)
    return derived


def _points(table: pd.DataFrame) -> list[str]:
    """Point columns of a table, with the device where joined tables made it one."""
    return [name for name in (*POINT_COLUMNS, "device") if name in table.columns]

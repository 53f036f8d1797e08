"""Statistics of samples. Communication is synchronous, so the slowest rank of an EP group is an iteration's time."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd

from mnnvl_lab.errors import RecordError
from mnnvl_lab.order_statistics import median_ranks
from mnnvl_lab.records.columns import POINT_COLUMNS, ep_groups


def slowest_rank(table: pd.DataFrame) -> pd.DataFrame:
    """One row per iteration and EP group: that of the rank which took longest.

    As FlashInfer's `benchmarks/routines/moe_comm.py` counts. With pipeline stages, each has an EP group of its own,
    which neither waits for the others nor samples as often: the column `ep_group` keeps them apart.
    """
    if "ep_group" not in table.columns and {"pp", "rank"} <= set(table.columns):
        table = table.assign(ep_group=ep_groups(table))
    iterations = table.groupby([*_points(table), "iteration"], sort=False)["latency_us"]
    return table.loc[iterations.idxmax()].reset_index(drop=True)


def summary(table: pd.DataFrame, *, by: Sequence[str] | None = None) -> pd.DataFrame:
    """Percentiles over iterations of the slowest rank.

    Args:
        table: samples of all ranks; raw, as `measure.run` returns them.
        by: columns that tell the rows of the result apart; all point columns by default.

    Returns:
        Columns `by`, then `p50_us, p90_us, p99_us, min_us, spread, n, low_us, high_us`; percentiles interpolate
        linearly, `spread` is the interquartile range over the median, `low_us` and `high_us` enclose the median with
        95 % confidence (`order_statistics.median_ranks`), NaN where fewer than six iterations leave it open.

    Raises:
        RecordError: `by` would mix independent EP groups.
    """
    slowest = slowest_rank(table)
    by = list(by) if by is not None else _points(slowest)
    _require_one_ep_group(slowest, by)
    groups = slowest.groupby(by, sort=False)["latency_us"]
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
    )
    derived[["low_us", "high_us"]] = [_interval(values.to_numpy()) for _, values in groups]
    derived = derived.reset_index()
    derived.attrs = dict(table.attrs)
    return derived


def _interval(values: np.ndarray) -> tuple[float, float]:
    """The samples that enclose the median, or nothing where there are too few."""
    places = median_ranks(len(values))
    return tuple(np.sort(values)[list(places)]) if places else (np.nan, np.nan)


def _require_one_ep_group(slowest: pd.DataFrame, by: list[str]) -> None:
    if "ep_group" in by or "ep_group" not in slowest or slowest["ep_group"].nunique() == 1:
        return
    if not by or slowest.groupby(by, sort=False)["ep_group"].nunique().max() > 1:
        raise RecordError(
            f"ep_group has the values {', '.join(map(str, slowest['ep_group'].unique()))}: pipeline stages are "
            "independent; add ep_group to by, or select one of them"
        )


def _points(table: pd.DataFrame) -> list[str]:
    """Point columns of a table, with the device where joined tables made it one."""
    return [name for name in (*POINT_COLUMNS, "device") if name in table.columns]

"""Waiting apart from moving: when each rank entered an operation, and what a straggler costs the others.

A dispatch cannot end before the last rank has entered it, so up to then the others wait. Only clock `eager` says when
ranks enter: `start_us` is the host's monotonic clock, which the processes of one machine share, read as the operation
is enqueued. On `host` the operation begins then. On a GPU the measured span begins at an event a few microseconds
later; its stream is empty after the barrier, so that this is the same on all ranks and entries compare to some
microseconds, not better.
"""

from __future__ import annotations

import pandas as pd

from mnnvl_lab.errors import Refused
from mnnvl_lab.layout import Layout

SIZES = ["tp", "dp", "pcp", "pp"]
NO_POINT = ("rank", "ep_rank", "ep_group", "iteration", "latency_us", "start_us", "checked", "stopped", "phase")
DELAY = ("delay_us", "delayed_rank")


def entries(table: pd.DataFrame) -> pd.DataFrame:
    """Each sample split into waiting and moving.

    Args:
        table: samples of all ranks, of clock `eager`.

    Returns:
        `table` with `ep_group, ep_rank`; `entered_us` after the first rank of its EP group; `wait_us`, from its entry
        to that of the last rank, or to its own end; `moving_us`, the rest of its latency.

    Raises:
        Refused: another clock, or samples that do not say when they began.
    """
    _require_entries(table)
    placed = with_places(table)
    operation = [*_point_columns(placed), "phase", "ep_group", "iteration"]
    together = placed.groupby(operation, sort=False, dropna=False)["start_us"]
    wait_us = (together.transform("max") - placed["start_us"]).clip(upper=placed["latency_us"])
    return placed.assign(
        entered_us=placed["start_us"] - together.transform("min"),
        wait_us=wait_us,
        moving_us=placed["latency_us"] - wait_us,
    )


def straggler_effect(table: pd.DataFrame, *, phase: str = "dispatch") -> pd.DataFrame:
    """How much the others' latency grows when one rank is made to enter late.

    Args:
        table: samples of points that differ in `delay_us`, with one of no delay for each.
        phase: which latency; the delay goes ahead of `dispatch` and `round`.

    Returns:
        A row per point and delay: its columns; `others_p50_us` and `delayed_p50_us`, medians over iterations (of
        the others the slowest counts); `growth_us` of the others against no delay, which should equal `delay_us`;
        `excess_us`, growth beyond it; `n` iterations. Without delay both are 0.

    Raises:
        Refused: no sample of the phase, or a point without its undelayed twin.
    """
    chosen = with_places(table[table["phase"] == phase])
    if chosen.empty:
        raise Refused(f"no samples of phase {phase}: there are {', '.join(table['phase'].unique())}; name one of these")
    twins = [column for column in _point_columns(chosen) if column not in DELAY]
    rows = [row for _, samples in chosen.groupby(twins, sort=False, dropna=False) for row in _effects(samples, twins)]
    return pd.DataFrame(rows).sort_values([*twins, *DELAY], ignore_index=True)


def with_places(table: pd.DataFrame) -> pd.DataFrame:
    """`table` with each rank's `ep_group` (its number) and `ep_rank`, by its layout's sizes."""
    fresh = table.drop(columns=["ep_group", "ep_rank"], errors="ignore")
    layouts = table[SIZES].drop_duplicates().astype(int).to_dict("records") or [dict.fromkeys(SIZES, 1)]
    places = pd.concat([_places(sizes) for sizes in layouts], ignore_index=True)
    return fresh.merge(places, on=["rank", *SIZES], how="left", validate="many_to_one")


def _places(sizes: dict[str, int]) -> pd.DataFrame:
    return Layout(**sizes).to_frame()[["rank", "ep_group", "ep_rank"]].assign(**sizes)


def _effects(samples: pd.DataFrame, twins: list[str]):
    """One point's rows: its delays, each against the iterations without one."""
    undelayed = samples[samples["delay_us"] == 0]
    if undelayed.empty:
        raise Refused(
            f"delays {sorted(samples['delay_us'].unique())} us and none of 0: growth is against no delay; "
            "measure the same point without a delay too"
        )
    point = samples.iloc[0][twins].to_dict()
    for (delay_us, late), delayed in samples.groupby(list(DELAY), sort=False):
        base_us = _others_us(undelayed, late).median()
        others_us = _others_us(delayed, late)
        growth_us = others_us.median() - base_us
        yield point | {
            "delay_us": delay_us,
            "delayed_rank": late,
            "others_p50_us": others_us.median(),
            "delayed_p50_us": delayed.loc[delayed["ep_rank"] == late, "latency_us"].median(),
            "growth_us": growth_us,
            "excess_us": growth_us - delay_us,
            "n": len(others_us),
        }


def _others_us(samples: pd.DataFrame, late: int) -> pd.Series:
    """Latency of the slowest of the ranks that are not late, an entry an iteration and EP group."""
    others = samples[samples["ep_rank"] != late]
    return others.groupby(["ep_group", "iteration"])["latency_us"].max()


def _point_columns(table: pd.DataFrame) -> list[str]:
    return [column for column in table.columns if column not in NO_POINT]


def _require_entries(table: pd.DataFrame) -> None:
    clocks = sorted(table["clock"].unique()) if "clock" in table else []
    if clocks not in ([], ["eager"]):
        raise Refused(
            f"clock {', '.join(clocks)}: only eager says when each rank entered an operation (a graph's rounds have no "
            "entries of their own, the profiler's times have no base in common); measure with clock eager"
        )
    if table["start_us"].isna().any():
        raise Refused("start_us is missing in some samples: waiting needs each rank's entry; measure again")

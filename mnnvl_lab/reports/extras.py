"""Sections that appear when their data do: bandwidths, memory, skew, and what of a link was measured."""

from __future__ import annotations

from dataclasses import replace

import pandas as pd

from mnnvl_lab import plots
from mnnvl_lab.analysis import bandwidth
from mnnvl_lab.analysis.skew import straggler_effect
from mnnvl_lab.hardware import require_gpu
from mnnvl_lab.link_rates import limits as rates
from mnnvl_lab.model import require_format
from mnnvl_lab.plots.bounds import LOADS, can_redraw, need_of
from mnnvl_lab.plots.style import origin
from mnnvl_lab.records import summary
from mnnvl_lab.reports.blocks import Block, figure, joined, paragraph, table_block
from mnnvl_lab.reports.inputs import Source
from mnnvl_lab.reports.results import CLOCKS, spread_of
from mnnvl_lab.routing import Load

TIMED = ("dispatch", "combine")
SENT_ONCE = ("one_sided", "two_sided")
"""Modes that send one row per token and target rank, which is what the conventions count."""
LOAD = ("tokens", "routing", "experts", "top_k", "ep_size")
OPTIONS = ["payload_in_workspace", "low_precision_combine", "format"]


def timed_phases(table: pd.DataFrame) -> pd.DataFrame:
    """Samples of dispatch and combine of which a bandwidth can be given, of the first clock that has any."""
    chosen = table[table["phase"].isin(TIMED) & table["mode"].isin(SENT_ONCE) & (table["delay_us"] == 0)]
    chosen = chosen[(chosen["tokens"] > 0) & chosen["routing"].map(can_redraw).astype(bool)]
    clock = next((clock for clock in CLOCKS if (chosen["clock"] == clock).any()), None)
    return chosen[chosen["clock"] == clock]


def bandwidths(table: pd.DataFrame) -> pd.DataFrame:
    """GB/s of dispatch and combine by each convention, from medians of the clock that times phases.

    Args:
        table: of `timed_phases`.

    Returns:
        A row per point: `mode, phase, clock, format, routing, tokens, p50_us`, and a column a convention.
    """
    rows = []
    for _, points in summary(table).groupby([*LOAD, *LOADS[1:], "seed"], sort=False):
        transfer = _transfer(points.iloc[0])
        rows += [_bandwidth(point, transfer) for _, point in points.iterrows()]
    return pd.DataFrame(rows)


def _transfer(point: pd.Series) -> bandwidth.Transfer:
    """Rows that the load of a point moves, whose size and time its phases fill in."""
    shape = {name: int(point[name]) for name in ("experts", "top_k", "ep_size")}
    return bandwidth.Transfer.of(Load.from_row(point), **shape, bytes_per_token=1, latency_us=1.0)


def _row_bytes(point: pd.Series) -> int:
    """Of one row of the phase; ids and weights are left out, as the conventions do."""
    if point["phase"] == "dispatch":
        return require_format(point["format"]).bytes_per_token(int(point["hidden"]))
    need = need_of(point, int(point["tokens"]))
    return need.hidden if need.low_precision_combine else need.combine_bytes_per_token


def _bandwidth(point: pd.Series, moved: bandwidth.Transfer) -> dict[str, object]:
    transfer = replace(moved, bytes_per_token=_row_bytes(point), latency_us=float(point["p50_us"]))
    names = ("mode", "phase", "clock", "format", "routing", "tokens", "p50_us")
    values = {name: convention.gigabytes_per_s(transfer) for name, convention in bandwidth.CONVENTIONS.items()}
    return {name: point[name] for name in names} | values


def bandwidth_block(source: Source) -> Block:
    """Bandwidths with their conventions side by side."""
    timed = timed_phases(source.table)
    found = bandwidths(timed[timed["tokens"].isin(spread_of(timed["tokens"]))])
    varying = [name for name in ("format", "routing") if found[name].nunique() > 1]
    columns = ["mode", "phase", *varying, "tokens", "p50_us", *bandwidth.CONVENTIONS]
    words = f"{source.letter}: GB/s of the median, clock {found['clock'].iloc[0]}, one column per convention"
    where = {"file": source.letter, "clock": found["clock"].iloc[0], "table": "bandwidth"}
    names = {name: name.replace("_", " ") for name in bandwidth.CONVENTIONS}
    return table_block(found, where, caption=words, columns=columns, headings=names)


def conventions() -> Block:
    """What each convention counts."""
    rows = [
        {
            "convention": c.name.replace("_", " "),
            "counts": c.counts,
            "includes what stays": c.includes_self,
            "scope": c.scope,
        }
        for c in bandwidth.CONVENTIONS.values()
    ]
    return table_block(pd.DataFrame(rows), {"table": "conventions"}, caption="what the columns count")


def opened(table: pd.DataFrame) -> pd.DataFrame:
    """Memory that opening a workspace took, beside its prediction: a row per point, of the first rank."""
    rows = table[(table["step"] == "open") & (table["rank"] == table["rank"].min())]
    used = [name for name in OPTIONS if rows[name].nunique() > 1]
    names = ["mode", *used, "tokens", "predicted_bytes", "change_bytes", "rest_bytes"]
    return rows[names].rename(columns={"change_bytes": "measured_bytes", "rest_bytes": "difference_bytes"})


def memory_block(source: Source, *, folder: str | None = None) -> Block:
    """Memory measured against predicted, and the whole ledger of the largest point."""
    found = opened(source.table)
    where = {"file": source.letter, "table": "memory"}
    words = f"{source.letter}: memory per GPU that opening the workspace took, from cudaMemGetInfo or mappings"
    first = source.table[source.table["mode"] == source.table["mode"].iloc[0]]
    keys = [name for name in ("tokens", *OPTIONS) if name in first.columns]
    largest = first[first["tokens"] == first["tokens"].max()]
    point = largest[(largest[keys] == largest[keys].iloc[0]).all(axis=1)]
    ledger = figure(plots.memory_ledger(point), f"memory-{source.letter}", source=source.table, folder=folder)
    return table_block(found, where, caption=words) + ledger


def workspaces(table: pd.DataFrame, gpu_name: str = "h100") -> pd.DataFrame:
    """What the workspaces of the measured points must take, computed."""
    points = table[table["mode"].isin(SENT_ONCE)].drop_duplicates(["tokens", "format", "ep_size", "max_tokens"])
    needs = [need_of(point, int(point["max_tokens"])) for _, point in points.iterrows()]
    if not needs:
        return pd.DataFrame()
    made = plots.memory_table(needs, gpu=require_gpu(gpu_name))
    names = ["mode", "format", "ep_size", "tokens", "workspace_bytes", "allocated_bytes", "mapped_bytes"]
    return made[names].drop_duplicates().reset_index(drop=True)


def workspace_block(source: Source) -> Block:
    """The same as a table, said to be computed."""
    found = workspaces(source.table)
    picked = found[found["tokens"].isin(spread_of(found["tokens"]))]
    varying = [name for name in ("format", "ep_size") if picked[name].nunique() > 1]
    words = f"{source.letter}: workspaces by arithmetic (two-sided for the multiprocessors of an H100), not measured"
    columns = ["mode", *varying, "tokens", "workspace_bytes", "allocated_bytes", "mapped_bytes"]
    return table_block(picked, {"file": source.letter, "table": "workspaces"}, caption=words, columns=columns)


def stragglers(table: pd.DataFrame) -> pd.DataFrame:
    """How the others' latency grows with the delay of one rank; empty where no rank was delayed."""
    eager = table[table["clock"] == "eager"]
    if eager.empty or eager["delay_us"].nunique() < 2:
        return pd.DataFrame()
    return straggler_effect(eager)


def skew_block(source: Source, *, folder: str | None = None) -> Block:
    """One late rank: what it costs the others."""
    effect = stragglers(source.table)
    names = [name for name in ("mode", "routing", "tokens") if effect[name].nunique() > 1]
    columns = [*names, "delay_us", "others_p50_us", "delayed_p50_us", "growth_us", "n"]
    where = {"file": source.letter, "table": "skew"}
    blocks = [table_block(effect, where, caption=f"{source.letter}: dispatch, one rank late", columns=columns)]
    for values, part in effect.groupby(["routing", "tokens"], sort=False):
        own = source.table[(source.table["routing"] == values[0]) & (source.table["tokens"] == values[1])]
        ax = plots.others_wait(part, words=origin(own))
        name = f"skew-{source.letter}-{values[0]}-{values[1]}".replace(":", "_")
        blocks.append(figure(ax, name, source=source.table, folder=folder))
    return joined(blocks)


def links_block(source: Source) -> Block:
    """Rates of the links, from which the lower bounds follow."""
    where = {"file": source.letter, "table": "links"}
    return table_block(rates(source.table), where, caption=f"{source.letter}: links of {source.device}, medians")


def bounds_words(links: Source | None) -> Block:
    """Where the lower bounds of the figures come from."""
    if links is not None:
        return paragraph(f"The lower bounds rest on the rates of {links.name}.")
    return paragraph("The lower bounds rest on the rates that stand below each figure.")

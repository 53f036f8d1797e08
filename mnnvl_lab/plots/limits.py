"""The bounds that belong to a table of samples, from its own routing and the device that it names."""

from __future__ import annotations

import pandas as pd

from mnnvl_lab.bounds import LINKS, Bound, Link, combine_bound, dispatch_bound, host_bound, round_bound
from mnnvl_lab.hardware import GPUS
from mnnvl_lab.layout import Layout
from mnnvl_lab.model import require_format
from mnnvl_lab.need import Need
from mnnvl_lab.records.tables import parts_of, provenance_of
from mnnvl_lab.routing import Load, parse, traffic

PHASES = ("dispatch", "combine", "round")


def limits(table: pd.DataFrame) -> pd.DataFrame | None:
    """Least times of the points of a table, for `plots.latency(bounds=...)`.

    Args:
        table: samples of one phase, layout, shape and routing on one fabric.

    Returns:
        Columns `tokens, latency_us, bound, basis`; None where no bound is known: another phase, a device without
        rates, a replayed routing, of which a record has the label alone.
    """
    point, rates = table.iloc[0], parts_of(provenance_of(table))[0]
    if point["phase"] not in PHASES or not can_redraw(point["routing"]):
        return None
    rows = [
        {"tokens": int(tokens), "latency_us": bound.latency_us, "bound": "least for the bytes", "basis": bound.basis}
        for tokens in sorted(table["tokens"].unique())
        if (bound := _bound(point, int(tokens), rates)) is not None
    ]
    return pd.DataFrame(rows) if rows else None


def need_of(point: pd.Series, tokens: int) -> Need:
    """What the workspace of a measured point carries."""
    layout = Layout(**{name: int(point[name]) for name in ("tp", "dp", "pcp", "pp")})
    shape = {name: int(point[name]) for name in ("hidden", "experts", "top_k")}
    return Need(layout=layout, max_tokens=max(tokens, 1), format=require_format(point["format"]).name, **shape)


def can_redraw(routing: str) -> bool:
    """Whether a routing follows from its label."""
    return not routing.startswith("replay")


def rows_of(point: pd.Series, tokens: int):
    """Rows `[source, target]` of a measured point, drawn again from its routing and seed."""
    load = Load(routing=parse(point["routing"]), tokens=tokens, seed=int(point["seed"]))
    return traffic.rows_RR(load, **{name: int(point[name]) for name in ("experts", "top_k", "ep_size")})


def _bound(point: pd.Series, tokens: int, rates: dict) -> Bound | None:
    need, rows_RR = need_of(point, tokens), rows_of(point, tokens)
    dispatch_RR = traffic.to_bytes(rows_RR, bytes_per_token=need.dispatch_bytes_per_token)
    combine_RR = traffic.to_bytes(rows_RR, bytes_per_token=need.combine_bytes_per_token)
    if point["fabric"] == "host":
        moved_RR = {"dispatch": dispatch_RR, "combine": combine_RR, "round": dispatch_RR + combine_RR}[point["phase"]]
        rate = rates.get("memory_copy_gigabytes_per_s")
        return host_bound(moved_RR, phase=point["phase"], memory_copy_gigabytes_per_s=rate) if rate else None
    link = _link(point["fabric"], str(rates.get("device", "")))
    if link is None:
        return None
    if point["phase"] == "round":
        return round_bound(dispatch_RR, combine_RR, link=link)
    bound = dispatch_bound if point["phase"] == "dispatch" else combine_bound
    return bound(dispatch_RR if point["phase"] == "dispatch" else combine_RR, link=link)


def _link(fabric: str, device: str) -> Link | None:
    """Measured rates where there are any, else those on paper; none where ranks share a GPU and so its link."""
    if fabric != "nvlink":
        return None
    if "H100" in device:
        return LINKS["h100_pair"]
    return next((Link.on_paper(gpu) for name, gpu in GPUS.items() if name.upper() in device.upper().split()), None)

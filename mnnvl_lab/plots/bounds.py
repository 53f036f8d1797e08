"""The lower bounds that belong to a table of samples, from its own routing, options and the machine that it names."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress
from types import MappingProxyType

import numpy as np
import pandas as pd

from mnnvl_lab import datasets
from mnnvl_lab.bounds import Bound, Link, combine_bound, dispatch_bound, host_bound, round_bound
from mnnvl_lab.errors import RecordError
from mnnvl_lab.exchange import ExchangeShape
from mnnvl_lab.layout import Layout
from mnnvl_lab.link_rates import measured_link, nominal_link
from mnnvl_lab.model import require_format
from mnnvl_lab.records.table import parts_of, provenance_of
from mnnvl_lab.routing import ROUTINGS, Load, traffic

PHASES = ("dispatch", "combine", "round")
NAME = "least for the bytes"
FP8_BYTES = 1
MOVES: Mapping[str, str] = MappingProxyType(
    {
        "format": "{}",
        "low_precision_combine": "{}",
        "combine_dtype": "combine {}",
        "extra_payload_bytes": "extras {}",
        "routing": "{}",
        "seed": "seed {}",
        "hidden": "hidden {}",
        "experts": "{} experts",
        "top_k": "top-{}",
        "ep_size": "EP {}",
    }
)
"""Columns on which the bytes of a point depend, besides its tokens, and how a line of theirs is named."""
LOADS = ("tokens", "token_counts", "padding_rows", "padding_counts", "padding_id", "invalid_ids", "replicas")
"""Columns of a load, besides its routing and seed."""


def lower_bounds(table: pd.DataFrame, *, links: pd.DataFrame | None = None) -> pd.DataFrame | None:
    """Lower bounds of the points of a table, for `plots.latency(bounds=...)`.

    On NVLink the rates are those of `links`; without it, those recorded on the same device and topology; without such
    a record, the nominal rates of the topology in the provenance. Nothing is measured.

    Args:
        table: samples of one phase on one fabric.
        links: of `measure.links.measure_links` on the same machine.

    Returns:
        Columns `tokens, latency_us, bound, basis`, one `bound` for each set of points that move the same bytes; None
        where no bound is known: another phase, a machine without rates, a replayed routing, of which a record has the
        label alone.
    """
    first, machine = table.iloc[0], _machine(table)
    if first["phase"] not in PHASES or machine is None:
        return None
    link = _link(first["fabric"], machine, links)
    varying = [name for name in MOVES if name in table.columns and table[name].nunique() > 1]
    rows = []
    for values, points in table.groupby(varying, sort=False) if varying else [((), table)]:
        words = [_words(name, value) for name, value in zip(varying, values, strict=True)]
        rows += _rows(points, ", ".join([NAME, *words]), machine, link)
    return pd.DataFrame(rows) if rows else None


def _words(column: str, value: object) -> str:
    if column == "low_precision_combine":
        return "combine in fp8" if value else "combine not in fp8"
    return MOVES[column].format(value)


def need_of(point: pd.Series, tokens: int) -> ExchangeShape:
    """What the workspace of a measured point carries."""
    shape = {name: int(point[name]) for name in ("hidden", "experts", "top_k")}
    extras = str(point.get("extra_payload_bytes", ""))
    return ExchangeShape(
        layout=Layout.from_row(point),
        max_tokens=max(tokens, 1),
        format=require_format(point["format"]).name,
        combine_dtype=str(point.get("combine_dtype", "bf16")),
        extra_payload_bytes=tuple(int(size) for size in extras.split(",") if size),
        low_precision_combine=bool(point["low_precision_combine"]),
        **shape,
    )


def can_redraw(routing: str) -> bool:
    """Whether a routing follows from its label."""
    return routing.partition(":")[0] in {kind.label for kind in ROUTINGS}


def rows_of(point: pd.Series) -> np.ndarray:
    """Rows `[source, target]` of a measured point, drawn again from its routing and seed."""
    shape = {name: int(point[name]) for name in ("experts", "top_k", "ep_size")}
    return traffic.rows_RR(Load.from_row(point), **shape)


def _rows(points: pd.DataFrame, name: str, machine: dict, link: Link | None) -> list[dict[str, object]]:
    """One row per number of tokens of the fullest rank, with the least bound of the loads that have it."""
    if not can_redraw(points["routing"].iloc[0]):
        return []
    loads = [column for column in LOADS if column in points.columns]
    found: dict[int, Bound] = {}
    for _, point in points.drop_duplicates(loads).sort_values("tokens").iterrows():
        bound, tokens = _bound(point, machine, link), int(point["tokens"])
        if bound is not None and (tokens not in found or bound.latency_us < found[tokens].latency_us):
            found[tokens] = bound
    return [
        {"tokens": tokens, "latency_us": bound.latency_us, "bound": name, "basis": bound.basis}
        for tokens, bound in found.items()
    ]


def _bound(point: pd.Series, machine: dict, link: Link | None) -> Bound | None:
    need, rows_RR, phase = need_of(point, int(point["tokens"])), rows_of(point), point["phase"]
    dispatch_RR = traffic.to_bytes(rows_RR, bytes_per_token=need.dispatch_bytes_per_token)
    combine_RR = traffic.to_bytes(rows_RR, bytes_per_token=_combined_bytes(need))
    if point["fabric"] == "host":
        moved_RR = {"dispatch": dispatch_RR, "combine": combine_RR, "round": dispatch_RR + combine_RR}[phase]
        rate = machine.get("memory_copy_gigabytes_per_s")
        return host_bound(moved_RR, phase=phase, memory_copy_gigabytes_per_s=rate) if rate else None
    if link is None:
        return None
    if phase == "round":
        return round_bound(dispatch_RR, combine_RR, link=link)
    return dispatch_bound(dispatch_RR, link=link) if phase == "dispatch" else combine_bound(combine_RR, link=link)


def _combined_bytes(need: ExchangeShape) -> int:
    """That a row takes on its way back: one byte per value with low-precision combine (fp8 without a scale)."""
    return need.hidden * FP8_BYTES if need.low_precision_combine else need.combine_bytes_per_token


def _machine(table: pd.DataFrame) -> dict[str, object] | None:
    """Provenance of the one machine that was measured, with the fastest of its memory rates; None for several."""
    parts = parts_of(provenance_of(table))
    if len({(part.get("device"), part.get("topology")) for part in parts}) != 1:
        return None
    rates = [part["memory_copy_gigabytes_per_s"] for part in parts if "memory_copy_gigabytes_per_s" in part]
    return parts[0] | ({"memory_copy_gigabytes_per_s": max(rates)} if rates else {})


def _link(fabric: str, machine: dict, links: pd.DataFrame | None) -> Link | None:
    """None where ranks share a GPU, and so its link."""
    if fabric != "nvlink":
        return None
    if links is not None:
        return measured_link(links)
    device, topology = str(machine.get("device")), str(machine.get("topology"))
    with suppress(RecordError):  # an installed package comes without records
        for name in datasets.recorded_names():
            if name.endswith("_links"):
                samples = datasets.load_recorded(name, kind="links")
                origin = provenance_of(samples)
                if (origin.get("device"), origin.get("topology")) == (device, topology):
                    return measured_link(samples)
    return nominal_link(device, topology)

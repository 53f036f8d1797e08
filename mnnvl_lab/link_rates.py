"""Rates of links: medians of measured samples, or what the topology allows on paper. Nothing is measured here.

A rate counts bytes that arrive, summed over both directions where both are busy; a copy within one memory counts what
is read and what is written.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from types import MappingProxyType

import numpy as np
import pandas as pd

from mnnvl_lab.bounds import Link
from mnnvl_lab.errors import Refused
from mnnvl_lab.hardware import Gpu

NVLINK_GIGABYTES_PER_S: Mapping[str, float] = MappingProxyType(
    dict.fromkeys(("NVIDIA A100-SXM4-40GB", "NVIDIA A100-SXM4-80GB"), 25.0)
    | dict.fromkeys(("NVIDIA H100 80GB HBM3", "NVIDIA H100 NVL", "NVIDIA H100 PCIe"), 25.0)
    | dict.fromkeys(("NVIDIA H200", "NVIDIA H200 NVL", "NVIDIA GH200 480GB"), 25.0)
    | dict.fromkeys(("NVIDIA B200", "NVIDIA GB200", "NVIDIA B300 SXM6 AC", "NVIDIA GB300"), 50.0)
)
"""Of one NVLink, one direction, by the whole name that NVML gives: NVLink 3 and 4 move 50 GB/s both ways together,
NVLink 5 moves 100 (NVIDIA's architecture papers of A100, H100, Blackwell). The topology says how many links there are.
"""

DEVICE = re.compile(r"(\d+) x (.+)")
TOPOLOGY = re.compile(r"NVLink x (\d+), (\d+) of (\d+) pairs peer to peer")


def limits(samples: pd.DataFrame) -> pd.DataFrame:
    """Medians: `quantity, direction, moved_bytes, latency_us, gigabytes_per_s, samples`; no bytes, no rate."""
    groups = samples.groupby(["quantity", "direction", "moved_bytes"], sort=False)["latency_us"]
    table = groups.agg(latency_us="median", samples="size").reset_index()
    rate = table["moved_bytes"] / table["latency_us"] / 1e3
    table.insert(4, "gigabytes_per_s", rate.where(table["moved_bytes"] > 0, np.nan))
    table.attrs = dict(samples.attrs)
    return table


def require_limit(samples: pd.DataFrame, quantity: str, direction: str) -> pd.Series:
    """The row of `limits` for a quantity and direction; the largest copy where there are several.

    Raises:
        Refused: it was not measured.
    """
    table = limits(samples)
    found = table[(table["quantity"] == quantity) & (table["direction"] == direction)]
    if found.empty:
        there = ", ".join(f"{row.quantity} {row.direction}" for row in table.itertuples())
        raise Refused(
            f"{quantity} {direction} was not measured, only {there}: a link needs two GPUs that reach each other; "
            "measure on a machine that has them"
        )
    return found.loc[found["moved_bytes"].idxmax()]


def measured_link(samples: pd.DataFrame, *, gpu: Gpu | None = None) -> Link:
    """The link between two GPUs, with the rates of one run.

    Args:
        samples: of `measure.links.measure_links`, or a recorded table of kind `links`.
        gpu: for the nominal rate; if left out, it follows from the device and topology in the provenance.

    Raises:
        Refused: the run had no link, or its nominal rate is not known.
    """
    origin = samples.attrs.get("mnnvl_lab", {})
    device, taken_at = str(origin.get("device", "this machine")), str(origin.get("created_at", "in this process"))
    paper = Link.on_paper(gpu) if gpu else nominal_link(device, str(origin.get("topology", "")))
    if paper is None:
        raise Refused(f"device {device!r} has no known nominal rate: pass gpu=require_gpu(...), such as 'h100'")
    return Link(
        name=f"{device}, bare kernels measured {taken_at[:10]}",
        stores_gigabytes_per_s=require_limit(samples, "kernel_stores", "both_ways")["gigabytes_per_s"] / 2,
        loads_gigabytes_per_s=require_limit(samples, "kernel_loads", "both_ways")["gigabytes_per_s"] / 2,
        copy_gigabytes_per_s=require_limit(samples, "copy_engine", "one_way")["gigabytes_per_s"],
        nominal_gigabytes_per_s=paper.nominal_gigabytes_per_s,
        source=f"measured {taken_at} on {device}; nominal: {paper.source}",
    )


def nominal_link(device: str, topology: str) -> Link | None:
    """The link of one GPU on paper, from device and topology as `records.provenance` writes them.

    Args:
        device: such as `2 x NVIDIA H100 80GB HBM3`.
        topology: such as `NVLink x 18, 1 of 1 pairs peer to peer`.

    Returns:
        None where the GPUs are of several kinds or unknown, or where not all pairs reach each other over NVLink.
    """
    named, links = DEVICE.fullmatch(device), TOPOLOGY.fullmatch(topology)
    each = NVLINK_GIGABYTES_PER_S.get(named[2]) if named else None
    if each is None or links is None or links[1] == "0" or links[2] != links[3]:
        return None
    rate = int(links[1]) * each
    return Link(
        name=f"{named[2]}, {links[1]} NVLinks of nominal {each:g} GB/s",
        stores_gigabytes_per_s=rate,
        loads_gigabytes_per_s=rate,
        copy_gigabytes_per_s=rate,
        nominal_gigabytes_per_s=rate,
        source=f"{links[1]} links (topology) x {each:g} GB/s one way (NVIDIA's architecture papers)",
    )

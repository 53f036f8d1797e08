"""Limits of the machine, measured in the same run as what they bound: links, memory, launches, flags.

One row a sample, as everywhere; rates are derived. A rate counts bytes that arrive, summed over both directions where
both are busy; a copy within one memory counts what is read and what is written.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass
from itertools import chain
from types import MappingProxyType

import numpy as np
import pandas as pd

from mnnvl_lab.bounds import Link
from mnnvl_lab.errors import Refused
from mnnvl_lab.hardware import Gpu
from mnnvl_lab.ranks import Ranks

QUANTITIES: Mapping[str, str] = MappingProxyType(
    {
        "copy_engine": "from GPU to GPU by the copy engine",
        "kernel_stores": "from GPU to GPU by a kernel that loads here and stores there, as dispatch does",
        "kernel_loads": "from GPU to GPU by a kernel that loads there and stores here, as combine does",
        "memory_copy": "within one GPU's memory, or on a host into a segment that another process maps",
        "memory_copy_by_kernel": "within one GPU's memory by the kernel that is used for the links",
        "launch": "one empty kernel in a CUDA graph, launched behind another",
        "flag_round_trip": "a flag raised at a peer, seen there, and answered",
    }
)
"""What is measured. `direction` tells `one_way` and `both_ways` over a link, `local` in one GPU, `one_rank` and
`all_ranks` at once on a host, and `there_and_back`."""

SIZE_BYTES: Mapping[str, int] = MappingProxyType({"host": 32 << 20, "nvlink": 256 << 20, "shared_gpu": 256 << 20})
"""Bytes of one copy: several times the caches of a GPU; on a host what two cores copy in some milliseconds."""
LINK_TIMEOUT_S = 120


@dataclass(frozen=True, kw_only=True)
class LinkSample:
    """One sample of one limit.

    Attributes:
        quantity: a name of `QUANTITIES`.
        direction: who moves at once.
        moved_bytes: in `latency_us`, by all that move; 0 where nothing is counted.
        iteration: number of the sample.
        latency_us: of one copy, launch or round trip.
    """

    quantity: str
    direction: str
    moved_bytes: int
    iteration: int
    latency_us: float


def take_samples(
    quantity: str, direction: str, moved_bytes: int, once: Callable[[], float], samples: int
) -> Iterator[LinkSample]:
    """Call `once` for a latency in microseconds, first without counting it: it warms up, compiles, touches pages."""
    for iteration in range(-1, samples):
        latency_us = once()
        if iteration >= 0:
            yield LinkSample(
                quantity=quantity,
                direction=direction,
                moved_bytes=moved_bytes,
                iteration=iteration,
                latency_us=latency_us,
            )


def link_samples(rank, *, size_bytes: int, samples: int) -> list[LinkSample]:
    """Rank function: everything that this fabric's machine allows to be measured. Collective; rank 0 brings it home.

    On GPUs rank 0 alone works, on its own GPU and the next, on which it makes a context that stays as long as its
    process; the other ranks must leave their GPUs idle meanwhile.
    """
    if rank.fabric == "host":
        from mnnvl_lab.measure.links_host import host_samples

        return list(host_samples(rank, size_bytes=size_bytes, samples=samples))
    if rank.index:
        return []
    from mnnvl_lab.measure.links_gpu import gpu_samples

    return list(gpu_samples(rank.device, size_bytes=size_bytes, samples=samples))


def measure_links(
    ranks: Ranks,
    *,
    size_bytes: int | None = None,
    samples: int = 10,
    provenance: Mapping[str, object] = MappingProxyType({}),
) -> pd.DataFrame:
    """All limits of the machine on which `ranks` run.

    Args:
        ranks: warm and idle.
        size_bytes: of one copy; by default `SIZE_BYTES` of the fabric.
        samples: of each quantity.
        provenance: of the run (`records.provenance`), kept in `attrs`.

    Returns:
        The fields of `LinkSample` and `fabric`, one row a sample.
    """
    size_bytes = SIZE_BYTES[ranks.fabric] if size_bytes is None else size_bytes
    per_rank = ranks.run(link_samples, size_bytes=size_bytes, samples=samples, timeout_s=LINK_TIMEOUT_S)
    table = pd.DataFrame([asdict(sample) for sample in chain.from_iterable(per_rank)]).assign(fabric=ranks.fabric)
    table.attrs = {"mnnvl_lab": dict(provenance)}
    return table


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


def measured_link(samples: pd.DataFrame, *, gpu: Gpu) -> Link:
    """The link between two GPUs, with the rates of this run.

    Args:
        samples: of `measure_links`.
        gpu: for the nominal rate.

    Raises:
        Refused: the run had no link.
    """
    origin = samples.attrs.get("mnnvl_lab", {})
    device = origin.get("device", gpu.name)
    return Link(
        name=f"{device}, measured",
        stores_gigabytes_per_s=require_limit(samples, "kernel_stores", "both_ways")["gigabytes_per_s"] / 2,
        loads_gigabytes_per_s=require_limit(samples, "kernel_loads", "both_ways")["gigabytes_per_s"] / 2,
        copy_gigabytes_per_s=require_limit(samples, "copy_engine", "one_way")["gigabytes_per_s"],
        nominal_gigabytes_per_s=gpu.nvlink_gigabytes_per_s,
        source=f"measured {origin.get('created_at', 'in this process')} on {device}; nominal: {gpu.source}",
    )


def memory_copy_gigabytes_per_s(samples: pd.DataFrame) -> float:
    """What all ranks of a host copy together, for `bounds.host_bound`: bytes copied, not read plus written."""
    return float(require_limit(samples, "memory_copy", "all_ranks")["gigabytes_per_s"])

"""Limits of the machine, measured in the same run as what they bound: links, memory, launches, flags.

One row per sample, as everywhere; rates are derived. A rate counts bytes that arrive, summed over both directions where
both are busy; a copy within one memory counts what is read and what is written.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass
from itertools import chain
from types import MappingProxyType

import pandas as pd

from mnnvl_lab.link_rates import limits, measured_link, require_limit
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

__all__ = ["QUANTITIES", "LinkSample", "limits", "link_samples", "measure_links", "measured_link", "require_limit"]

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
        from mnnvl_lab.measure.link_bench import host_samples

        return list(host_samples(rank, size_bytes=size_bytes, samples=samples))
    if rank.index:
        return []
    from mnnvl_lab.measure.link_kernels import gpu_samples

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
        The fields of `LinkSample` and `fabric`, one row per sample.
    """
    size_bytes = SIZE_BYTES[ranks.fabric] if size_bytes is None else size_bytes
    per_rank = ranks.run(link_samples, size_bytes=size_bytes, samples=samples, timeout_s=LINK_TIMEOUT_S)
    table = pd.DataFrame([asdict(sample) for sample in chain.from_iterable(per_rank)]).assign(fabric=ranks.fabric)
    table.attrs = {"mnnvl_lab": dict(provenance)}
    return table


def memory_copy_gigabytes_per_s(samples: pd.DataFrame) -> float:
    """What all ranks of a host copy together, for `bounds.host_bound`: bytes copied, not read plus written."""
    return float(require_limit(samples, "memory_copy", "all_ranks")["gigabytes_per_s"])

"""Tidy tables to draw, from what the package computes without measuring."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from mnnvl_lab.planner.modes import one_sided, two_sided
from mnnvl_lab.records.table import ATTRIBUTE

if TYPE_CHECKING:
    from mnnvl_lab.bounds import Bound
    from mnnvl_lab.exchange import ExchangeShape
    from mnnvl_lab.hardware import Gpu
    from mnnvl_lab.workspace import Region


def memory_table(needs: Iterable[ExchangeShape], *, gpu: Gpu) -> pd.DataFrame:
    """One row a need and mode: what its workspace takes of each rank's memory and addresses.

    Args:
        gpu: its multiprocessors fix the two-sided FIFOs.
    """
    table = pd.DataFrame([row for need in needs for row in _memory_rows(need, gpu)])
    table.attrs = {ATTRIBUTE: {"device": f"{gpu.name} with {gpu.multiprocessors} multiprocessors"}}
    return table


def regions_table(regions: Sequence[Region]) -> pd.DataFrame:
    """One row a region that holds anything and lies inside no other: columns `region, offset_bytes, size_bytes`."""
    used = [region for region in regions if region.size_bytes and region.name != "payload_data"]
    return pd.DataFrame(
        {
            "region": [region.name for region in used],
            "offset_bytes": [region.offset_bytes for region in used],
            "size_bytes": [region.size_bytes for region in used],
        }
    )


def traffic_table(matrix_RR: np.ndarray, *, value: str = "rows") -> pd.DataFrame:
    """One row per pair: columns `source, target` and `value`, from a matrix `[source, target]`."""
    source, target = np.indices(matrix_RR.shape)
    return pd.DataFrame({"source": source.ravel(), "target": target.ravel(), value: np.ravel(matrix_RR)})


def bounds_table(
    tokens: Iterable[int], bound: Callable[[int], Bound], *, name: str = "least for the bytes"
) -> pd.DataFrame:
    """One row per token count: columns `tokens, latency_us, bound, basis`, for `plots.latency(bounds=...)`.

    Args:
        bound: gives the bound at a token count.
        name: what limits, as it will stand at the line.
    """
    found = {n: bound(n) for n in tokens}
    rows = [{"tokens": n, "latency_us": b.latency_us, "bound": name, "basis": b.basis} for n, b in found.items()]
    return pd.DataFrame(rows)


def _memory_rows(need: ExchangeShape, gpu: Gpu) -> Iterable[dict[str, object]]:
    shape = {name: getattr(need, name) for name in ("ep_size", "hidden", "experts", "top_k", "format")}
    sizes = ("mode", "workspace_bytes", "prepare_bytes", "allocated_bytes", "mapped_bytes", "reserved_bytes")
    for mode in (one_sided(need), two_sided(need, gpu)):
        yield shape | {"tokens": need.max_tokens} | {name: getattr(mode, name) for name in sizes}

"""Phases that were measured one by one on NVLink of the fifth generation: what each costs.

The forms follow the kernels: a fixed part that grows with the doublings of the ranks (flags), and, overlapping, a row's
way through a thread block, the fullest GPU's link, and thread blocks that follow one another (one-sided has one a
token). Two-sided sends packets of 1,920 bytes through its channels. Where the parts of a phase overlap without one of
them hiding the others wholly, they add up as their cubes do.
"""

from __future__ import annotations

from collections.abc import Mapping
from math import log2
from types import MappingProxyType

import numpy as np

from mnnvl_lab.analysis.latency_model import Parameter, Point
from mnnvl_lab.model import FORMATS
from mnnvl_lab.prediction.parts import COMBINE, DISPATCH, LAUNCHES, LINK, MEMORY, PACKETS, Costs, Counts, Part
from mnnvl_lab.routing import traffic
from mnnvl_lab.workspace.two_sided import PACKET_DATA_BYTES, TwoSidedWorkspace

BYTES_PER_US = 1e3  # of 1 GB/s
OVERLAP = 3
"""Exponent of the sum of parts that overlap: 1 adds them up, infinity takes the longest."""
FP8_WITHOUT_SCALES = "fp8"
"""A format of published tables alone: one byte per value, no scales."""


def counts(point: Point, rows_RR: np.ndarray) -> Counts:
    """Work of each phase; rows are `[source, target]`."""
    wire_RR = traffic.wire(rows_RR)
    fullest_rows = max(wire_RR.sum(axis=0).max(), wire_RR.sum(axis=1).max())
    channels = TwoSidedWorkspace(ep_size=point.ep_size, multiprocessors=point.multiprocessors).channels
    sent, combined = row_bytes(point), point.combine_bytes_per_token
    kept = rows_RR.sum(axis=0).max()
    return {
        "rank_doublings": log2(point.ep_size),
        "tokens": point.tokens,
        "targets": min(point.ep_size, point.top_k),
        "dispatch_link_bytes": fullest_rows * sent,
        "combine_link_bytes": fullest_rows * combined,
        "slot_bytes": point.tokens * point.top_k * combined,
        **_packets("dispatch", sent, channels, rows_RR, kept),
        **_packets("combine", combined, channels, rows_RR, kept),
    }


def row_bytes(point: Point) -> float:
    """Bytes of a token's row in dispatch, with its ids and weights."""
    if point.format == FP8_WITHOUT_SCALES and FP8_WITHOUT_SCALES not in FORMATS:
        return point.hidden + 8 * point.top_k
    return point.dispatch_bytes_per_token


def one_sided_dispatch(p: Mapping[str, float], w: Counts) -> Costs:
    return _one_sided(DISPATCH, p, w)


def one_sided_combine(p: Mapping[str, float], w: Counts) -> Costs:
    return _one_sided(COMBINE, p, w)


def two_sided_prepare(p: Mapping[str, float], w: Counts) -> Costs:
    return {(DISPATCH, LAUNCHES): _fixed_us(p, w), (DISPATCH, MEMORY): w["tokens"] * p["token_us"]}


def two_sided_dispatch(p: Mapping[str, float], w: Counts) -> Costs:
    return _two_sided(DISPATCH, p, w)


def two_sided_combine(p: Mapping[str, float], w: Counts) -> Costs:
    moved = _two_sided(COMBINE, p, w)
    return moved | {(COMBINE, MEMORY): _link_us(w["slot_bytes"], p["memory_gigabytes_per_s"])}


def _one_sided(phase: str, p: Mapping[str, float], w: Counts) -> Costs:
    link_us = _link_us(w[f"{phase}_link_bytes"], p["link_gigabytes_per_s"])
    overlapping = {
        (phase, LAUNCHES): w["targets"] * p["row_us"],
        (phase, LINK): link_us,
        (phase, MEMORY): w["tokens"] * p["token_us"],
    }
    return _overlapped(overlapping, fixed=((phase, LAUNCHES), _fixed_us(p, w)))


def _two_sided(phase: str, p: Mapping[str, float], w: Counts) -> Costs:
    packets_us = w[f"{phase}_rank_packets"] * p["packet_us"] + w[f"{phase}_peer_packets"] * p["stream_us"]
    overlapping = {
        (phase, LAUNCHES): p["fifo_us"] + 0 * packets_us,
        (phase, PACKETS): packets_us,
        (phase, LINK): _link_us(w[f"{phase}_link_bytes"], p["link_gigabytes_per_s"]),
    }
    return _overlapped(overlapping, fixed=((phase, LAUNCHES), _fixed_us(p, w)))


def _overlapped(parts: Costs, *, fixed: tuple[tuple[str, str], float]) -> Costs:
    """Each part's share of the root of the sum of powers, then the fixed part on top."""
    powers = {name: us**OVERLAP for name, us in parts.items()}
    total = sum(powers.values())
    scale = np.where(total > 0, total ** (1 / OVERLAP) / np.maximum(total, 1e-300), 0.0)
    costs = {name: power * scale for name, power in powers.items()}
    return costs | {fixed[0]: costs[fixed[0]] + fixed[1]}


def _fixed_us(p: Mapping[str, float], w: Counts) -> float:
    return p["fixed_us"] + np.maximum(w["rank_doublings"] - 1, 0) * p["fan_us"]


def _link_us(size_bytes: float, gigabytes_per_s: float) -> float:
    return size_bytes / (gigabytes_per_s * BYTES_PER_US)


def _packets(phase: str, size_bytes: float, channels: int, rows_RR: np.ndarray, kept: float) -> Counts:
    """Packets per channel of the fullest rank and of the fullest pair."""
    per_row = np.ceil(size_bytes / PACKET_DATA_BYTES) / channels
    return {f"{phase}_rank_packets": kept * per_row, f"{phase}_peer_packets": rows_RR.max() * per_row}


_FAN = Parameter(name="fan_us", prior=1.0, factor=2.5, meaning="flags, per doubling of the ranks beyond two")
_LINK = Parameter(name="link_gigabytes_per_s", prior=660, factor=1.2, meaning="over a GPU's link, one direction")


def _fixed(prior: float) -> Parameter:
    return Parameter(name="fixed_us", prior=prior, factor=1.5, meaning="launches and two ranks' flags")


_ONE_SIDED = (
    _fixed(12),
    _FAN,
    Parameter(name="row_us", prior=0.5, factor=3, meaning="a row through a thread block"),
    _LINK,
    Parameter(name="token_us", prior=0.01, factor=3, meaning="a thread block after another, one per token"),
)
_TWO_SIDED = (
    _fixed(10),
    _FAN,
    Parameter(name="fifo_us", prior=2, factor=3, meaning="a move of next to nothing"),
    Parameter(name="stream_us", prior=0.3, factor=3, meaning="a packet of one pair through a channel"),
    Parameter(name="packet_us", prior=0.005, factor=5, meaning="a packet's share of a multiprocessor"),
    _LINK,
)
_PREPARE = (
    _fixed(12),
    _FAN,
    Parameter(name="token_us", prior=0.007, factor=2, meaning="a token's ids and weights through prepare"),
)
_SLOTS = Parameter(name="memory_gigabytes_per_s", prior=3600, factor=1.5, meaning="bytes of combine's slots in memory")


def _leave_groups(mode: str, name: str, parameters: tuple[Parameter, ...], costs) -> Part:
    return Part(mode=mode, name=name, parameters=parameters, count=counts, costs=costs)


PHASE_PARTS: Mapping[str, tuple[Part, ...]] = MappingProxyType(
    {
        "one_sided": (
            _leave_groups("one_sided", "dispatch", _ONE_SIDED, one_sided_dispatch),
            _leave_groups("one_sided", "combine", _ONE_SIDED, one_sided_combine),
        ),
        "two_sided": (
            _leave_groups("two_sided", "prepare", _PREPARE, two_sided_prepare),
            _leave_groups("two_sided", "dispatch", _TWO_SIDED, two_sided_dispatch),
            _leave_groups("two_sided", "combine", (*_TWO_SIDED, _SLOTS), two_sided_combine),
        ),
    }
)
"""The phases of each mode, in order."""

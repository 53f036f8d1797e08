"""What work costs: a few physical parameters per mode, what is believed of them beforehand, and the sum of their terms.

Every prior is an expectation with the factor by which it may well be wrong: of link, memory, launch and flags (half a
round trip) from bare kernels on an H100 pair, of more ranks' flags from GB200 (TensorRT-LLM's blog 18: EP8 to EP64), of
NCCL and the FIFOs from a first look at that pair. Where records say nothing of a parameter (flags between eight GPUs,
say, if only two were measured) the prior stays, and its width goes into the interval of the prediction.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import reduce
from types import MappingProxyType

import numpy as np

from mnnvl_lab.analysis.latency_model.work import Work

BYTES_PER_US = 1e3  # of 1 GB/s
ONE_SIDED_KERNELS = 4  # prepare and kernel, for dispatch and for combine (moeAlltoAllKernels.cu)
ONE_SIDED_SYNCS = 2  # one round of flags in each
TWO_SIDED_KERNELS = 8  # counts, prefix sums and indices of prepare; move; zero, move and sum of combine
TWO_SIDED_SYNCS = 3  # prepare, move, combine


@dataclass(frozen=True, kw_only=True)
class Parameter:
    """One cost.

    Attributes:
        name: with its unit.
        prior: what it is believed to be.
        factor: by which the prior may well be wrong (one standard deviation of its logarithm).
        meaning: what it is the cost of.
    """

    name: str
    prior: float
    factor: float
    meaning: str


@dataclass(frozen=True, kw_only=True)
class Terms:
    """A mode's parameters and the latency that they give.

    Attributes:
        parameters: in order.
        latency_us: of a round, from parameter values by name and the work; of several rounds at once for stacked work.
    """

    parameters: tuple[Parameter, ...]
    latency_us: Callable[[Mapping[str, float], Work], float]


_LAUNCH = Parameter(name="launch_us", prior=0.84, factor=1.2, meaning="an empty kernel behind another in a graph")
_FLAG = Parameter(name="flag_us", prior=2.25, factor=2.0, meaning="two ranks' flags and the fences around them")
_FAN = Parameter(name="fan_us", prior=0.8, factor=2.0, meaning="a round of flags, per doubling beyond two ranks")
_SHARING = Parameter(name="sharing_us", prior=3.0, factor=2.0, meaning="a round, per doubling of ranks on a GPU")
_MEMORY = Parameter(
    name="memory_gigabytes_per_s", prior=2600, factor=1.15, meaning="bytes read or written in the GPU's memory"
)
_LINK = Parameter(
    name="link_gigabytes_per_s", prior=345, factor=1.1, meaning="over a GPU's link, one direction, both ways busy"
)


def one_sided(p: Mapping[str, float], w: Work) -> float:
    """Launches and flags, then each phase at its narrowest: a row's way through a block, the link, or memory."""
    rows_us = w.targets * p["row_us"]
    return (
        _fixed_us(p, w, kernels=ONE_SIDED_KERNELS, syncs=ONE_SIDED_SYNCS)
        + _largest(rows_us, _link_us(p, w.dispatch_link_bytes), _memory_us(p, w.dispatch_memory_bytes))
        + _largest(rows_us, _link_us(p, w.combine_link_bytes), _memory_us(p, w.combine_memory_bytes))
        + _memory_us(p, w.staged_bytes)
    )


def two_sided(p: Mapping[str, float], w: Work) -> float:
    """Launches and flags, packets through the FIFOs of every channel, and combine's zeroing and summing of slots.

    A pair's packets go one after the other (`stream_us`), and those of all pairs share a multiprocessor (`packet_us`).
    """
    fixed_us = _fixed_us(p, w, kernels=TWO_SIDED_KERNELS, syncs=TWO_SIDED_SYNCS)
    packets_us = w.peer_packets * p["stream_us"] + w.rank_packets * p["packet_us"]
    link_us = _link_us(p, w.dispatch_link_bytes) + _link_us(p, w.combine_link_bytes)
    return fixed_us + _largest(p["fifo_us"], packets_us, link_us) + _memory_us(p, w.slot_bytes)


def allgather_reducescatter(p: Mapping[str, float], w: Work) -> float:
    """Two collectives, each by the faster of NCCL's protocols."""
    return _nccl_us(p, w, w.gathered_bytes) + _nccl_us(p, w, w.scattered_bytes)


def all_to_all(p: Mapping[str, float], w: Work) -> float:
    """Two exchanges of distinct rows, packed and added up in local memory."""
    exchanged_us = _nccl_us(p, w, w.dispatch_link_bytes) + _nccl_us(p, w, w.combine_link_bytes)
    return exchanged_us + _memory_us(p, w.packed_bytes)


def _nccl_us(p: Mapping[str, float], w: Work, size_bytes: float) -> float:
    """NCCL's choice: a protocol of low latency that sends flags among the data, or one of high bandwidth."""
    eager_us = p["eager_us"] + size_bytes / (p["eager_gigabytes_per_s"] * BYTES_PER_US)
    bulk_us = p["bulk_us"] + size_bytes / (p["bulk_gigabytes_per_s"] * BYTES_PER_US)
    return np.minimum(eager_us, bulk_us) + (w.peers - 1) * p["hop_us"]


def _fixed_us(p: Mapping[str, float], w: Work, *, kernels: int, syncs: int) -> float:
    """What a round takes that moves next to nothing."""
    sync_us = p["flag_us"] + (w.rank_doublings - 1) * p["fan_us"]
    return kernels * p["launch_us"] + syncs * sync_us + w.sharing_doublings * p["sharing_us"]


def _largest(*times_us: float) -> float:
    """Of times of one round, or of each of several rounds."""
    return reduce(np.maximum, times_us)


def _link_us(p: Mapping[str, float], size_bytes: float) -> float:
    return size_bytes / (p["link_gigabytes_per_s"] * BYTES_PER_US)


def _memory_us(p: Mapping[str, float], size_bytes: float) -> float:
    return size_bytes / (p["memory_gigabytes_per_s"] * BYTES_PER_US)


_NCCL = (
    Parameter(name="eager_us", prior=17, factor=1.5, meaning="a collective of next to nothing"),
    Parameter(name="eager_gigabytes_per_s", prior=90, factor=2.0, meaning="NCCL's low-latency protocols"),
    Parameter(name="bulk_us", prior=35, factor=1.5, meaning="start of a collective that pipelines"),
    Parameter(name="bulk_gigabytes_per_s", prior=220, factor=1.5, meaning="NCCL's protocol of high bandwidth"),
    Parameter(name="hop_us", prior=1.0, factor=2.0, meaning="per peer beyond the first"),
)

TERMS: Mapping[str, Terms] = MappingProxyType(
    {
        "one_sided": Terms(
            parameters=(
                _LAUNCH,
                _FLAG,
                _FAN,
                _SHARING,
                Parameter(name="row_us", prior=1.5, factor=1.5, meaning="a row through a thread block, either phase"),
                _LINK,
                _MEMORY,
            ),
            latency_us=one_sided,
        ),
        "two_sided": Terms(
            parameters=(
                _LAUNCH,
                _FLAG,
                _FAN,
                _SHARING,
                Parameter(name="fifo_us", prior=10, factor=1.5, meaning="both moves of next to nothing"),
                Parameter(name="stream_us", prior=0.4, factor=2.0, meaning="a packet of one pair through a channel"),
                Parameter(name="packet_us", prior=0.1, factor=2.0, meaning="a packet's share of a multiprocessor"),
                _LINK,
                _MEMORY,
            ),
            latency_us=two_sided,
        ),
        "allgather_reducescatter": Terms(parameters=_NCCL, latency_us=allgather_reducescatter),
        "all_to_all": Terms(parameters=(*_NCCL, _MEMORY), latency_us=all_to_all),
    }
)

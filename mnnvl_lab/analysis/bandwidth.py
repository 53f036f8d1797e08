"""One latency, many bandwidths: whose bytes the peers count, computed from one record.

A latency is a fact; a bandwidth is a latency and a choice of bytes. The choices differ by the copies that a rank keeps
for itself, by counting a token once a rank or once an expert, and by one rank or all of them. `docs/bandwidth.md`
explains them on one example.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType

import numpy as np
import pandas as pd

from mnnvl_lab.errors import Refused
from mnnvl_lab.routing import Load, traffic


@dataclass(frozen=True, kw_only=True)
class Transfer:
    """One phase of one record: what was moved, and how long it took.

    Attributes:
        rows_RR: `[source, target]` distinct (token, rank) pairs, the diagonal included.
        copies_RR: `[source, target]` (token, expert) pairs, the diagonal included.
        bytes_per_token: payload of one row; ids and weights are left out, as the peers do.
        top_k: K.
        tokens_R: T of each rank.
        latency_us: of the phase, of its slowest rank.

    Raises:
        Refused: no time, or tables of different sizes.
    """

    rows_RR: np.ndarray
    copies_RR: np.ndarray
    bytes_per_token: int
    top_k: int
    tokens_R: tuple[int, ...]
    latency_us: float

    def __post_init__(self):
        if not self.latency_us > 0:
            raise Refused(f"latency is {self.latency_us} us: a bandwidth needs a time above 0; give a measured one")
        size = (len(self.tokens_R),) * 2
        if np.shape(self.rows_RR) != size or np.shape(self.copies_RR) != size:
            raise Refused(
                f"rows are {np.shape(self.rows_RR)} and copies {np.shape(self.copies_RR)} for "
                f"{len(self.tokens_R)} ranks: both must be [R, R]; take them from routing.traffic"
            )

    @classmethod
    def of(
        cls, load: Load, *, experts: int, top_k: int, ep_size: int, bytes_per_token: int, latency_us: float
    ) -> Transfer:
        """The transfer of a load, whose traffic follows from its seed."""
        shape = {"experts": experts, "top_k": top_k, "ep_size": ep_size}
        return cls(
            rows_RR=traffic.rows_RR(load, **shape),
            copies_RR=traffic.copies_RR(load, **shape),
            bytes_per_token=bytes_per_token,
            top_k=top_k,
            tokens_R=load.tokens_R(ep_size),
            latency_us=latency_us,
        )

    @property
    def ep_size(self) -> int:
        return len(self.tokens_R)


def logical(transfer: Transfer) -> float:
    """Bytes per rank, one row per token and target rank, its own included; the mean over ranks.

    DeepEP counts them at the receiver (`tests/legacy/test_intranode.py`: `recv_x.numel() * 2`) and prints the mean over
    ranks (issue #71). CollectiveX calls them rank-deduplicated (`bandwidth.py`: aggregate logical bytes / latency /
    ep_size). The mean over senders equals that over receivers.
    """
    return float(np.sum(transfer.rows_RR)) * transfer.bytes_per_token / transfer.ep_size


def expert_copies(transfer: Transfer) -> float:
    """Bytes per rank, one copy per token and expert: K copies of each token, also to the same rank, also to oneself.

    DeepEP low-latency (`tests/legacy/test_low_latency.py`: bytes times number of selections) and NCCL EP's
    expert-major mode, whose kernels send that much.
    """
    return float(np.sum(transfer.copies_RR)) * transfer.bytes_per_token / transfer.ep_size


def on_the_wire(transfer: Transfer) -> float:
    """Bytes a rank that cross its link in one direction: logical without what it keeps; the mean over ranks.

    The only one to hold against a link's rate. MoRI's guide (`docs/MORI-EP-BENCHMARK.md`) calls such a figure physical.
    """
    return float(traffic.wire(np.asarray(transfer.rows_RR)).sum()) * transfer.bytes_per_token / transfer.ep_size


def nccl_bus(transfer: Transfer) -> float:
    """Bytes per rank, logical times (R - 1) / R, as if every rank kept exactly one R-th.

    nccl-tests (`src/alltoallv.cu`: bytes sent by a rank / time times (n - 1) / n). Equals the wire where traffic is
    even.
    """
    return logical(transfer) * (transfer.ep_size - 1) / transfer.ep_size


def flashinfer_aggregate(transfer: Transfer) -> float:
    """Bytes of all ranks together that go from a rank to another one.

    FlashInfer (`benchmarks/routines/moe_comm.py`), which prints it in TB/s: R times what one link carries.
    """
    return on_the_wire(transfer) * transfer.ep_size


def blog18(transfer: Transfer) -> float:
    """Bytes per rank if each token went to min(R, K) ranks, its own included, whatever the routing did.

    TensorRT-LLM blog 18: batch x min(ep_size, top_k) x bytes. True for its perfect router; with uniform routing it
    counts rows that were never sent.
    """
    targets = min(transfer.ep_size, transfer.top_k)
    return float(np.mean(transfer.tokens_R)) * targets * transfer.bytes_per_token


@dataclass(frozen=True, kw_only=True)
class Convention:
    """A way to count bytes.

    Attributes:
        name: key in `CONVENTIONS`, and `bandwidth_convention` of the published tables.
        counts: what it counts, in a few words.
        includes_self: whether rows that a rank keeps are counted.
        scope: `rank` or `all ranks`.
        counted_bytes: the function.
    """

    name: str
    counts: str
    includes_self: bool
    scope: str
    counted_bytes: Callable[[Transfer], float]

    def gigabytes_per_s(self, transfer: Transfer) -> float:
        return self.counted_bytes(transfer) / transfer.latency_us / 1e3


# fmt: off
CONVENTIONS: Mapping[str, Convention] = MappingProxyType({
    c.name: c for c in (
        Convention(name="wire", counts="rows that cross a link", includes_self=False, scope="rank",
                   counted_bytes=on_the_wire),
        Convention(name="deepep", counts="rows received, one per token and rank", includes_self=True, scope="rank",
                   counted_bytes=logical),
        Convention(name="deepep_low_latency", counts="one copy per token and expert", includes_self=True, scope="rank",
                   counted_bytes=expert_copies),
        Convention(name="collectivex", counts="rows, one per token and rank", includes_self=True, scope="rank",
                   counted_bytes=logical),
        Convention(name="nccl_bus", counts="rows sent times (R - 1) / R", includes_self=False, scope="rank",
                   counted_bytes=nccl_bus),
        Convention(name="flashinfer", counts="rows that cross any link", includes_self=False, scope="all ranks",
                   counted_bytes=flashinfer_aggregate),
        Convention(name="blog18", counts="tokens times min(R, K)", includes_self=True, scope="rank",
                   counted_bytes=blog18),
    )
})
# fmt: on


def table(transfer: Transfer) -> pd.DataFrame:
    """Every convention's answer for one transfer: `convention, counts, includes_self, scope, counted_bytes,
    gigabytes_per_s`."""
    return pd.DataFrame(
        {
            "convention": convention.name,
            "counts": convention.counts,
            "includes_self": convention.includes_self,
            "scope": convention.scope,
            "counted_bytes": convention.counted_bytes(transfer),
            "gigabytes_per_s": convention.gigabytes_per_s(transfer),
        }
        for convention in CONVENTIONS.values()
    )

"""Lower bounds: the least time that the bytes of a round allow, computed and drawn before anything is measured.

All ranks send and receive at once, each over its own link, so the fullest sender or the fullest receiver counts. What a
rank sends to itself crosses no link. No latency is in it: the bound of no bytes is 0. `link_rates` gives the rates.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from mnnvl_lab.errors import Refused
from mnnvl_lab.hardware import Gpu

RATES = ("kernel", "copy", "nominal")


@dataclass(frozen=True, kw_only=True)
class Link:
    """Rates of one GPU's link, in GB/s for one direction.

    Attributes:
        name: which link.
        stores_gigabytes_per_s: by a kernel that stores to its peer, both directions busy: what dispatch can reach.
        loads_gigabytes_per_s: by a kernel that loads from its peer, both directions busy: what combine can reach.
        copy_gigabytes_per_s: by the copy engine, the other direction idle.
        nominal_gigabytes_per_s: on paper.
        source: where the rates come from.
    """

    name: str
    stores_gigabytes_per_s: float
    loads_gigabytes_per_s: float
    copy_gigabytes_per_s: float
    nominal_gigabytes_per_s: float
    source: str

    @classmethod
    def on_paper(cls, gpu: Gpu) -> Link:
        """The link of a GPU of which nothing is measured: its nominal rate for everything."""
        rate = gpu.nvlink_gigabytes_per_s
        return cls(
            name=f"{gpu.name}, nominal",
            stores_gigabytes_per_s=rate,
            loads_gigabytes_per_s=rate,
            copy_gigabytes_per_s=rate,
            nominal_gigabytes_per_s=rate,
            source=gpu.source,
        )

    def gigabytes_per_s(self, phase: str, rate: str) -> float:
        """The rate of a phase: `kernel` (stores in dispatch, loads in combine), `copy` or `nominal`.

        Raises:
            Refused: another rate.
        """
        if rate not in RATES:
            raise Refused(f"rate is {rate!r}: a link has the rates {', '.join(RATES)}; name one of these")
        by_kernel = {"dispatch": "stores", "combine": "loads"}[phase]
        return getattr(self, f"{by_kernel if rate == 'kernel' else rate}_gigabytes_per_s")


@dataclass(frozen=True, kw_only=True)
class Bound:
    """The least time of a phase.

    Attributes:
        phase: `dispatch`, `combine` or `round`.
        fullest_bytes: that the fullest sender or receiver moves, in one direction.
        latency_us: the time that they take.
        basis: at which rate, in words.
    """

    phase: str
    fullest_bytes: int
    latency_us: float
    basis: str

    def __str__(self) -> str:
        return f"{self.phase}: at least {self.latency_us:.1f} µs for {self.fullest_bytes / 1e6:.1f} MB ({self.basis})"


def fullest_bytes(bytes_RR: np.ndarray) -> int:
    """Bytes over the fullest link in one direction.

    Args:
        bytes_RR: `[source, target]`; the diagonal is not counted.

    Raises:
        Refused: no square of counts.
    """
    wire_RR = _square(bytes_RR).copy()
    np.fill_diagonal(wire_RR, 0)
    return int(max(wire_RR.sum(axis=0).max(), wire_RR.sum(axis=1).max()))


def dispatch_bound(bytes_RR: np.ndarray, *, link: Link, rate: str = "kernel") -> Bound:
    """Least time to store each token's row at its targets; `bytes_RR` is `[source, target]`."""
    return _link_bound("dispatch", bytes_RR, link, rate)


def combine_bound(bytes_RR: np.ndarray, *, link: Link, rate: str = "kernel") -> Bound:
    """Least time to load the rows back; `bytes_RR` is `[source, target]` of the dispatch that they answer."""
    return _link_bound("combine", bytes_RR, link, rate)


def round_bound(dispatch_RR: np.ndarray, combine_RR: np.ndarray, *, link: Link, rate: str = "kernel") -> Bound:
    """Least time of a dispatch and then its combine, both `[source, target]` of the dispatch."""
    phases = dispatch_bound(dispatch_RR, link=link, rate=rate), combine_bound(combine_RR, link=link, rate=rate)
    there, back = (link.gigabytes_per_s(phase, rate) for phase in ("dispatch", "combine"))
    both = f"{there:.0f} GB/s" if there == back else f"{there:.0f} GB/s in dispatch, {back:.0f} in combine"
    return Bound(
        phase="round",
        fullest_bytes=sum(bound.fullest_bytes for bound in phases),
        latency_us=sum(bound.latency_us for bound in phases),
        basis=f"{link.name}: {both}",
    )


def host_bound(bytes_RR: np.ndarray, *, phase: str, memory_copy_gigabytes_per_s: float) -> Bound:
    """Least time to copy the rows once between processes of one machine.

    They share one memory: all bytes count together, also what a rank sends to itself.

    Args:
        bytes_RR: `[source, target]`, the diagonal included.
        phase: `dispatch` or `combine`.
        memory_copy_gigabytes_per_s: bytes copied (not read plus written) a second by all cores together.
    """
    total = int(_square(bytes_RR).sum())
    return Bound(
        phase=phase,
        fullest_bytes=total,
        latency_us=_microseconds(total, memory_copy_gigabytes_per_s),
        basis=f"memory of the host, {memory_copy_gigabytes_per_s:.1f} GB/s copied",
    )


def _link_bound(phase: str, bytes_RR: np.ndarray, link: Link, rate: str) -> Bound:
    size, gigabytes_per_s = fullest_bytes(bytes_RR), link.gigabytes_per_s(phase, rate)
    return Bound(
        phase=phase,
        fullest_bytes=size,
        latency_us=_microseconds(size, gigabytes_per_s),
        basis=f"{link.name}: {gigabytes_per_s:.0f} GB/s",
    )


def _microseconds(size_bytes: int, gigabytes_per_s: float) -> float:
    if gigabytes_per_s <= 0:
        raise Refused(f"a rate is {gigabytes_per_s} GB/s: it must be above 0; measure it first")
    return size_bytes / gigabytes_per_s / 1e3


def _square(bytes_RR: np.ndarray) -> np.ndarray:
    table = np.asarray(bytes_RR)
    if table.ndim != 2 or table.shape[0] != table.shape[1] or table.size == 0 or (table < 0).any():
        raise Refused(
            f"traffic is of shape {table.shape}: it must be [R, R] of bytes, none negative; use routing.traffic"
        )
    return table

"""What a round has to do, counted from its load: launches, signals, rows, packets, and bytes over link and memory.

Counts only; what each costs is in `terms`. Per GPU where a resource belongs to the GPU (link, memory), per rank where
it belongs to a rank's kernels (rows, packets).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields
from math import log2

import numpy as np

from mnnvl_lab.errors import Refused
from mnnvl_lab.model import require_format
from mnnvl_lab.routing import Load, parse, traffic
from mnnvl_lab.workspace.two_sided import PACKET_DATA_BYTES, TwoSidedWorkspace

COMBINE_VALUE_BYTES = 2  # bf16; combine's rows are not quantised by default


@dataclass(frozen=True, kw_only=True)
class Point:
    """What is predicted: one round of a mode. The fields are the record columns of the same name.

    Attributes:
        ranks_per_gpu: ranks that share a GPU, its link, its memory and its multiprocessors.
        multiprocessors: of one GPU.
    """

    mode: str
    ep_size: int
    tokens: int
    hidden: int
    experts: int
    top_k: int
    format: str = "bf16"
    routing: str = "uniform"
    seed: int = 0
    fabric: str = "nvlink"
    payload_in_workspace: bool = False
    low_precision_combine: bool = False
    ranks_per_gpu: int = 1
    multiprocessors: int = 132

    def __post_init__(self):
        if self.fabric == "host":
            raise Refused("fabric is host: the latency model is one of GPUs and links; use nvlink or shared_gpu")
        if self.fabric == "nvlink" and self.ranks_per_gpu != 1:
            raise Refused(
                f"ranks_per_gpu is {self.ranks_per_gpu} on nvlink: there a rank has a GPU of its own; use shared_gpu"
            )

    @property
    def dispatch_bytes_per_token(self) -> int:
        """Rows, scales, int32 ids and float32 weights."""
        return require_format(self.format).bytes_per_token(self.hidden) + 8 * self.top_k

    @property
    def combine_bytes_per_token(self) -> int:
        return self.hidden * (1 if self.low_precision_combine else COMBINE_VALUE_BYTES)

    @property
    def rank_multiprocessors(self) -> int:
        return self.multiprocessors // self.ranks_per_gpu


@dataclass(frozen=True, kw_only=True)
class Work:
    """Counts of one round, or arrays with one entry per round (`stacked`).

    Attributes:
        peers: R - 1.
        rank_doublings: log2 R: flags travel side by side, one lane per peer, and the wait is for the slowest of them.
        sharing_doublings: log2 of the ranks on a GPU.
        targets: ranks that a token goes to, on average: rows that its thread block handles.
        dispatch_link_bytes, combine_link_bytes: over the fullest GPU's link, one direction.
        dispatch_memory_bytes, combine_memory_bytes: read or written in the fullest GPU's memory.
        staged_bytes: read and written to bring partial sums into the workspace; 0 where they are written in place.
        peer_packets, rank_packets: two-sided packets of both moves, per channel: of the fullest pair, of the fullest
            rank.
        slot_bytes: that two-sided combine zeroes and sums, `[T, K, H]`, on all ranks of a GPU.
        gathered_bytes, scattered_bytes: that a rank receives in an all-gather, or in a reduce-scatter.
        packed_bytes: that an all-to-all of distinct rows reads and writes locally, to pack and to add up.
    """

    peers: int
    rank_doublings: float
    sharing_doublings: float
    targets: float
    dispatch_link_bytes: float
    combine_link_bytes: float
    dispatch_memory_bytes: float
    combine_memory_bytes: float
    staged_bytes: float
    peer_packets: float
    rank_packets: float
    slot_bytes: float
    gathered_bytes: float
    scattered_bytes: float
    packed_bytes: float


def work_of(point: Point) -> Work:
    """Count the work of a round.

    Raises:
        Refused: the load is impossible.
    """
    load = Load(routing=parse(point.routing), tokens=point.tokens, seed=point.seed)
    return work_from(point, traffic.rows_RR(load, experts=point.experts, top_k=point.top_k, ep_size=point.ep_size))


def work_from(point: Point, rows_RR: np.ndarray) -> Work:
    """Count the work of a round whose rows `[source, target]` are known, or estimated."""
    return Work(
        peers=point.ep_size - 1,
        rank_doublings=log2(point.ep_size),
        sharing_doublings=log2(point.ranks_per_gpu),
        targets=float(rows_RR.sum() / max(1, point.tokens * point.ep_size)),
        **_gpu_bytes(point, rows_RR),
        **_packets(point, rows_RR),
        **_collective_bytes(point, rows_RR),
    )


def stacked(works: Sequence[Work]) -> Work:
    """The counts of several rounds as arrays, so that their latencies are computed together."""
    return Work(**{f.name: np.array([getattr(work, f.name) for work in works], dtype=float) for f in fields(Work)})


def _gpu_bytes(point: Point, rows_RR: np.ndarray) -> dict[str, float]:
    rows_GG = per_gpu(rows_RR, point.ranks_per_gpu)
    sent, kept, combined = point.dispatch_bytes_per_token, rows_GG.sum(axis=0), point.combine_bytes_per_token
    own_tokens = point.tokens * point.ranks_per_gpu
    wire_GG = traffic.wire(rows_GG)
    fullest_rows = max(wire_GG.sum(axis=0).max(), wire_GG.sum(axis=1).max())
    staged = 0 if point.payload_in_workspace else 2 * kept.max() * combined
    return {
        "dispatch_link_bytes": float(fullest_rows * sent),
        "combine_link_bytes": float(fullest_rows * combined),
        "dispatch_memory_bytes": float((own_tokens + kept.max()) * sent),
        "combine_memory_bytes": float((own_tokens + kept.max()) * combined),
        "staged_bytes": float(staged),
        "slot_bytes": float(2 * own_tokens * point.top_k * combined),
    }


def _packets(point: Point, rows_RR: np.ndarray) -> dict[str, float]:
    channels = TwoSidedWorkspace(ep_size=point.ep_size, multiprocessors=point.rank_multiprocessors).channels
    parts = require_format(point.format).parts(point.hidden)
    row_bytes = [*(part.row_bytes for part in parts), point.hidden * COMBINE_VALUE_BYTES]
    packets = sum(-(-size // PACKET_DATA_BYTES) for size in row_bytes)
    fullest_rank = max(rows_RR.sum(axis=0).max(), rows_RR.sum(axis=1).max())
    return {
        "peer_packets": float(rows_RR.max() * packets / channels),
        "rank_packets": float(fullest_rank * packets / channels),
    }


def _collective_bytes(point: Point, rows_RR: np.ndarray) -> dict[str, float]:
    others = (point.ep_size - 1) * point.tokens
    sent, combined = point.dispatch_bytes_per_token, point.combine_bytes_per_token
    return {
        "gathered_bytes": float(others * sent),
        "scattered_bytes": float(others * combined),
        "packed_bytes": float(2 * rows_RR.sum(axis=1).max() * (sent + combined)),
    }


def per_gpu(matrix_RR: np.ndarray, ranks_per_gpu: int) -> np.ndarray:
    """`[R, R]` between ranks summed to `[G, G]` between GPUs that hold consecutive ranks."""
    starts = np.arange(0, len(matrix_RR), ranks_per_gpu)
    return np.add.reduceat(np.add.reduceat(matrix_RR, starts, axis=0), starts, axis=1)

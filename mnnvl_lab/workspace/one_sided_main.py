"""The one-sided workspace of FlashInfer's main branch after 0.7.2, in which every region keeps its place.

`calculateWorkspaceLayout` of the binding of `moe_ep`'s NVLink one-sided kernels and `moeAlltoAllMeta.h`, read at
FlashInfer commit 6578829f. Against 0.7.2: receive counters of two rounds, routing tables of the router's own top_k,
256-byte alignment, a combine region that does not move with the size of a round, and room for counted writes (CFT).
All sizes are those of one rank.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np

from mnnvl_lab.workspace.mnnvl import Region, align_up, require_at_least

if TYPE_CHECKING:
    from mnnvl_lab.exchange import ExchangeShape

CACHE_LINE_BYTES = 128  # kCachelineAlignment
ALIGNMENT_BYTES = 256  # kWorkspaceAlignment
COUNTER_STRIDE_BYTES = 256  # kCftCounterStride: counters of counted writes lie so far apart
MAX_PAYLOADS = 6  # kMaxPayloads: each payload may start at the next multiple of the alignment
INT32_BYTES, INT64_BYTES = 4, 8


@dataclass(frozen=True, kw_only=True)
class MainOneSidedWorkspace:
    """What one rank reserves so that R ranks may put and pull M tokens per round.

    Attributes:
        ep_size: R.
        max_tokens: the most tokens that any one rank may send in a round.
        top_k: K, columns of the routing tables.
        dispatch_bytes_per_token: rows, scales, expert ids and weights of one token.
        combine_bytes_per_token: one token's row on its way back.
        eplb_stats_experts: experts whose load statistics are gathered; 0 for none.
        cft: room for counted writes: counters, and an inbox into which combine pushes.

    Raises:
        Refused: a size below 1 (below 0 for bytes and statistics).
    """

    ep_size: int
    max_tokens: int
    top_k: int
    dispatch_bytes_per_token: int
    combine_bytes_per_token: int
    eplb_stats_experts: int = 0
    cft: bool = False

    def __post_init__(self):
        require_at_least(1, ep_size=self.ep_size, max_tokens=self.max_tokens, top_k=self.top_k)
        require_at_least(
            0,
            dispatch_bytes_per_token=self.dispatch_bytes_per_token,
            combine_bytes_per_token=self.combine_bytes_per_token,
            eplb_stats_experts=self.eplb_stats_experts,
        )

    @classmethod
    def of(cls, shape: ExchangeShape, *, cft: bool = False) -> MainOneSidedWorkspace:
        """The workspace for anything that has this class's attributes, such as an `Exchange`."""
        names = set(cls.__dataclass_fields__) - {"cft"}
        return cls(**{name: getattr(shape, name) for name in names}, cft=cft)

    @property
    def slots(self) -> int:
        """Rows that may arrive in a round: R * M."""
        return self.ep_size * self.max_tokens

    @property
    def dispatch_bytes(self) -> int:
        return align_up(self.slots * self.dispatch_bytes_per_token + MAX_PAYLOADS * ALIGNMENT_BYTES, ALIGNMENT_BYTES)

    @property
    def combine_bytes(self) -> int:
        return align_up(self.slots * self.combine_bytes_per_token, ALIGNMENT_BYTES)

    @property
    def inbox_bytes(self) -> int:
        """Rows that combine pushes with counted writes, as many as it would pull; 0 without."""
        return self.combine_bytes if self.cft else 0

    @property
    def workspace_bytes(self) -> int:
        return self.regions[-1].end_bytes

    @property
    def aux_bytes(self) -> int:
        """Counters, flags, routing tables and gaps: everything that holds no row."""
        return self.workspace_bytes - self.dispatch_bytes - self.combine_bytes - self.inbox_bytes

    @cached_property
    def regions(self) -> tuple[Region, ...]:
        """Disjoint regions under the names of FlashInfer's metainfo; rows under `dispatch`, `combine` and `inbox`."""
        regions, end = [], 0
        for name, size_bytes, alignment_bytes in self._fields():
            begin = align_up(end, alignment_bytes)
            end = begin + size_bytes
            dtype = "uint8" if name in ("dispatch", "combine", "inbox") else _dtype(name)
            shape = (size_bytes // np.dtype(dtype).itemsize,)
            regions.append(Region(name=name, offset_bytes=begin, size_bytes=size_bytes, dtype=dtype, shape=shape))
        return tuple(regions)

    def _fields(self):
        """Name, bytes and alignment of each region, in order."""
        ranks, table = self.ep_size * INT32_BYTES, self.max_tokens * self.top_k * INT32_BYTES
        yield "flag_val", INT32_BYTES, INT32_BYTES
        yield "local_token_counter", INT32_BYTES, INT32_BYTES
        yield "send_counters", ranks, INT32_BYTES
        yield "recv_counters", 2 * ranks, INT32_BYTES
        yield "dispatch_completion_flags", ranks, CACHE_LINE_BYTES
        if self.cft:
            yield "dispatch_counted_write_counters", self.ep_size * COUNTER_STRIDE_BYTES, COUNTER_STRIDE_BYTES
            yield "dispatch_counter_baseline", self.ep_size * INT64_BYTES, CACHE_LINE_BYTES
        yield "topk_target_ranks", table, CACHE_LINE_BYTES
        yield "topk_target_indices", table, CACHE_LINE_BYTES
        yield "eplb_gathered_stats", self.eplb_stats_experts * ranks, CACHE_LINE_BYTES
        yield "dispatch", self.dispatch_bytes, ALIGNMENT_BYTES
        yield "combine_completion_flags", ranks, CACHE_LINE_BYTES
        if self.cft:
            yield "combine_counted_write_counters", self.slots * COUNTER_STRIDE_BYTES, COUNTER_STRIDE_BYTES
            yield "combine_counter_baseline", self.slots * INT64_BYTES, CACHE_LINE_BYTES
        yield "combine", self.combine_bytes, ALIGNMENT_BYTES
        if self.cft:
            yield "inbox", self.inbox_bytes, ALIGNMENT_BYTES

    @property
    def tiles(self) -> tuple[Region, ...]:
        """The regions: here no two overlap."""
        return self.regions

    @property
    def metainfo(self) -> np.ndarray:
        """int64 `[25]`: offsets and sizes as `moe_a2a_get_workspace_layout` writes them; 0 for what is not in use."""
        at = {region.name: region.offset_bytes for region in self.regions}
        values = (
            *(at[name] for name in ("flag_val", "local_token_counter", "send_counters", "recv_counters")),
            at["dispatch_completion_flags"],
            at.get("dispatch_counted_write_counters", 0),
            at.get("dispatch_counter_baseline", 0),
            *(at[name] for name in ("topk_target_ranks", "topk_target_indices", "eplb_gathered_stats")),
            *(at["dispatch"], self.dispatch_bytes, at["combine_completion_flags"]),
            at.get("combine_counted_write_counters", 0),
            at.get("combine_counter_baseline", 0),
            *(at["combine"], self.combine_bytes, at.get("inbox", 0), self.inbox_bytes),
            *(self.max_tokens, self.top_k, self.ep_size, self.eplb_stats_experts, self.cft, self.workspace_bytes),
        )
        return np.array(values, dtype=np.int64)


def _dtype(name: str) -> str:
    return "uint64" if "counted_write" in name or "baseline" in name else "int32"

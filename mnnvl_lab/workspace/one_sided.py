"""The one-sided workspace: counters and flags, then the rows that dispatch brings, then the rows that combine pulls.

Equal to FlashInfer 0.7.2 to the byte: `calculateOffsets` and `moeA2ADispatchOp` of `trtllm_moe_alltoall.cu`,
`moe_a2a_get_workspace_size_per_rank` of `comm/trtllm_moe_alltoall.py`. All sizes are those of one rank.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import accumulate
from typing import TYPE_CHECKING

import numpy as np

from mnnvl_lab.errors import Refused
from mnnvl_lab.workspace.mnnvl import Region, align_up, require_at_least

if TYPE_CHECKING:
    from mnnvl_lab.exchange import ExchangeShape

ALIGNMENT_BYTES = 128  # kCachelineAlignment
TOP_K_SLOTS = 22  # kMaxTopK: routing tables are reserved for it, whatever the router's top_k
INT32_BYTES = 4


@dataclass(frozen=True, kw_only=True)
class OneSidedWorkspace:
    """What one rank reserves so that R ranks may put and pull M tokens per round.

    Attributes:
        ep_size: R.
        max_tokens: the most tokens that any one rank may send in a round.
        dispatch_bytes_per_token: rows, scales, expert ids and weights of one token.
        combine_bytes_per_token: one token's row on its way back.
        eplb_stats_experts: experts whose load statistics are gathered; 0 for none.

    Raises:
        Refused: a size below 1 (below 0 for bytes and statistics).
    """

    ep_size: int
    max_tokens: int
    dispatch_bytes_per_token: int
    combine_bytes_per_token: int
    eplb_stats_experts: int = 0

    def __post_init__(self):
        require_at_least(1, ep_size=self.ep_size, max_tokens=self.max_tokens)
        require_at_least(
            0,
            dispatch_bytes_per_token=self.dispatch_bytes_per_token,
            combine_bytes_per_token=self.combine_bytes_per_token,
            eplb_stats_experts=self.eplb_stats_experts,
        )

    @classmethod
    def of(cls, shape: ExchangeShape) -> OneSidedWorkspace:
        """The workspace for anything that has this class's attributes, such as an `Exchange`."""
        return cls(**{name: getattr(shape, name) for name in cls.__dataclass_fields__})

    @property
    def aux_bytes(self) -> int:
        """Counters, flags and routing tables: everything before the first row."""
        return self._aux_regions[-1].offset_bytes

    @property
    def dispatch_bytes(self) -> int:
        return align_up(self.ep_size * self.max_tokens * self.dispatch_bytes_per_token, ALIGNMENT_BYTES)

    @property
    def combine_bytes(self) -> int:
        return align_up(self.ep_size * self.max_tokens * self.combine_bytes_per_token, ALIGNMENT_BYTES)

    @property
    def workspace_bytes(self) -> int:
        return self.aux_bytes + self.dispatch_bytes + self.combine_bytes

    @cached_property
    def _aux_regions(self) -> tuple[Region, ...]:
        """The ten fields of FlashInfer's metainfo, in its order; the last spans all the rows."""
        tables = self.max_tokens * TOP_K_SLOTS
        fields = (
            ("flag_val", 1, INT32_BYTES),
            ("local_token_counter", 1, INT32_BYTES),
            ("send_counters", self.ep_size, INT32_BYTES),
            ("recv_counters", self.ep_size, INT32_BYTES),
            ("dispatch_completion_flags", self.ep_size, ALIGNMENT_BYTES),
            ("combine_completion_flags", self.ep_size, ALIGNMENT_BYTES),
            ("topk_target_ranks", tables, ALIGNMENT_BYTES),
            ("topk_send_indices", tables, ALIGNMENT_BYTES),
            ("eplb_gathered_stats", self.ep_size * self.eplb_stats_experts, ALIGNMENT_BYTES),
        )
        regions, end = [], 0
        for name, count, alignment in fields:
            begin = align_up(end, alignment)
            end = begin + count * INT32_BYTES
            regions.append(_region(name, begin, count * INT32_BYTES, "int32"))
        begin = align_up(end, ALIGNMENT_BYTES)
        return (*regions, _region("payload_data", begin, self.dispatch_bytes + self.combine_bytes))

    @cached_property
    def regions(self) -> tuple[Region, ...]:
        """The ten metainfo fields under FlashInfer's names, then `dispatch` and `combine` as they lie in a full round.

        `payload_data` spans `dispatch` and `combine`. The two top-k tables are flat: the kernels index them with the
        router's own top_k as stride. In a round of fewer tokens the rows are packed closer: `payload_offsets`.
        """
        dispatch = _region("dispatch", self.aux_bytes, self.dispatch_bytes)
        return (*self._aux_regions, dispatch, _region("combine", dispatch.end_bytes, self.combine_bytes))

    @property
    def tiles(self) -> tuple[Region, ...]:
        """The regions without `payload_data`: no two overlap, so they can be drawn and added up."""
        return tuple(region for region in self.regions if region.name != "payload_data")

    @property
    def metainfo(self) -> np.ndarray:
        """int64 `[10]`, the offsets that `moe_a2a_initialize` returns."""
        return np.array([region.offset_bytes for region in self._aux_regions], dtype=np.int64)

    def payload_offsets(self, row_bytes: Sequence[int], *, runtime_max_tokens: int) -> tuple[int, ...]:
        """First byte of each payload's `[R, M, row]` region in a round, packed without padding.

        Args:
            row_bytes: bytes per token of every payload in the order sent, ids and weights among them.
            runtime_max_tokens: M of this round, equal on all ranks.

        Raises:
            Refused: more tokens than `max_tokens`, or more bytes than the workspace has.
        """
        return self._packed(row_bytes, runtime_max_tokens)[:-1]

    def combine_offset(self, row_bytes: Sequence[int], *, runtime_max_tokens: int) -> int:
        """First byte of the rows that combine pulls in a round: behind the payloads of its dispatch.

        Raises:
            Refused: as `payload_offsets`, or the rows of combine reach beyond the workspace.
        """
        begin = align_up(self._packed(row_bytes, runtime_max_tokens)[-1], ALIGNMENT_BYTES)
        self._require_room(begin + self.ep_size * runtime_max_tokens * self.combine_bytes_per_token, runtime_max_tokens)
        return begin

    def _packed(self, row_bytes: Sequence[int], runtime_max_tokens: int) -> tuple[int, ...]:
        """First byte of each payload, and the end of the last."""
        if not 0 < runtime_max_tokens <= self.max_tokens:
            raise Refused(
                f"runtime_max_tokens is {runtime_max_tokens}: it must lie in [1, max_tokens = {self.max_tokens}]; "
                "open the workspace with a larger max_tokens"
            )
        sizes = (self.ep_size * runtime_max_tokens * row for row in row_bytes)
        offsets = tuple(accumulate(sizes, initial=self.aux_bytes))
        self._require_room(offsets[-1], runtime_max_tokens)
        return offsets

    def _require_room(self, end_bytes: int, runtime_max_tokens: int) -> None:
        if end_bytes > self.workspace_bytes:
            raise Refused(
                f"a round of {runtime_max_tokens} tokens needs {end_bytes} bytes but the workspace has "
                f"{self.workspace_bytes}: rows must stay inside it; open it with more bytes per token"
            )


def _region(name: str, offset_bytes: int, size_bytes: int, dtype: str = "uint8") -> Region:
    shape = (size_bytes // np.dtype(dtype).itemsize,)
    return Region(name=name, offset_bytes=offset_bytes, size_bytes=size_bytes, dtype=dtype, shape=shape)

"""What both fabrics of `pico` share: the workspace, how a round is launched, and the kernels' arguments."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from math import gcd
from typing import TYPE_CHECKING

import numpy as np

from mnnvl_lab.errors import Refused
from mnnvl_lab.exchange import Batch, Handle, Received
from mnnvl_lab.workspace import OneSidedWorkspace
from mnnvl_lab.workspace.mnnvl import align_up

if TYPE_CHECKING:
    import torch

COUNTED_TOKENS = 64  # rounds of up to so many tokens per rank may count their slots
FLAGGED_TOKENS = 192  # between two ranks, rounds of up to so many have a flag per program
SMALL_PULLED_TOKENS = 1024  # between two ranks, larger rounds put with more warps
PULLED_TOKENS = 3072  # rounds of up to so many tokens per rank pull; larger ones push between two ranks
MOST_SPLIT = 8
TREE_TOP_K = (1, 2, 4, 6, 8, 10, 16, 22)  # FlashInfer's combine adds up the slots of other top_k from the left
WORD_BYTES = 4  # rows move in words of this size where they can
LOAD_BYTES = 16
EMPTY = 1 << 40  # stands for the address of a tensor without rows: never read, but typed and aligned like others
KERNEL_MESSAGE = "pico: workspace spans {spans} ranks but ep_size is {ep_size}"
DTYPES = {"bf16": "bfloat16", "fp16": "float16", "fp32": "float32"}


@dataclass(frozen=True, kw_only=True)
class Tuning:
    """How one round is launched.

    Attributes:
        atomics: slots come from atomic counters; else each program counts the tokens before its own.
        one_flag: the last program raises one flag for all (needs `atomics`); else each raises its own.
        pushers: programs that push rows in combine; 0 to pull.
        chunk: pushed rows per flag.
        dispatch_split, combine_split: programs per row.
        dispatch_warps, combine_warps: of one program.
    """

    atomics: bool = False
    one_flag: bool = False
    pushers: int = 0
    chunk: int = 1
    dispatch_split: int = 1
    combine_split: int = 1
    dispatch_warps: int = 8
    combine_warps: int = 8

    def __post_init__(self):
        if self.one_flag and not self.atomics:
            raise Refused("one_flag is set and atomics is not: counted slots have a flag per program; set both")

    @classmethod
    def of(cls, runtime_max_tokens: int, ep_size: int = 2) -> Tuning:
        """What was fastest, or within a hundredth of it, on a pair of H100 (`data/pico/ladder_h100_c.csv`).

        With four ranks pushing was slower than FlashInfer's pull (`data/h100x4_nvlink_ep4_bf16.parquet`, 4096 tokens
        and more), so larger groups pull at any size; slots by atomics with a flag per program were not measured there.
        """
        pair = ep_size <= 2
        if runtime_max_tokens <= COUNTED_TOKENS // (4 if pair else 2):
            return cls(dispatch_split=4, combine_split=4, dispatch_warps=4, combine_warps=4)
        if runtime_max_tokens <= FLAGGED_TOKENS and pair:
            return cls(atomics=True, dispatch_warps=4, combine_split=7, combine_warps=2)
        if runtime_max_tokens <= COUNTED_TOKENS:
            return cls(dispatch_split=2, combine_split=2)
        if runtime_max_tokens <= FLAGGED_TOKENS:
            return cls(atomics=True, one_flag=True, combine_split=2)
        if runtime_max_tokens <= SMALL_PULLED_TOKENS or not pair:
            return cls(atomics=True, one_flag=True, combine_warps=4)
        if runtime_max_tokens <= PULLED_TOKENS:
            return cls(atomics=True, one_flag=True, dispatch_warps=16)
        return cls(atomics=True, one_flag=True, pushers=512, dispatch_warps=16)

    @classmethod
    def interpreted(cls, runtime_max_tokens: int) -> Tuning:
        """For the interpreter, where programs run in turn and each wait costs a switch of processes: mostly one flag.

        Every way of each kernel is taken at some size.
        """
        if runtime_max_tokens <= 8:
            return cls(atomics=runtime_max_tokens % 2 == 0)
        large = cls(atomics=True, one_flag=True)
        return large if runtime_max_tokens <= 32 else replace(large, pushers=2, chunk=16)


@dataclass(frozen=True, kw_only=True)
class PicoWorkspace(OneSidedWorkspace):
    """FlashInfer's one-sided workspace and a tail with pico's own flags and words."""

    @property
    def blocks(self) -> int:
        """Flags of one source and phase: one per program of dispatch, or per chunk that is pushed."""
        return max(self.max_tokens, MOST_SPLIT * COUNTED_TOKENS) + 1

    @property
    def total_bytes(self) -> int:
        return self.places[10] + 4 * self.ep_size

    @property
    def places(self) -> tuple[int, ...]:
        """The kernels' `AT`: byte offsets of words and flags in a rank's row."""
        offsets = {region.name: region.offset_bytes for region in self.regions}
        tail = align_up(self.workspace_bytes, 128)
        flag_bytes = 4 * self.ep_size * self.blocks
        words = align_up(tail + 2 * flag_bytes, 128)
        named = ("flag_val", "local_token_counter", "send_counters", "recv_counters")
        flags = ("dispatch_completion_flags", "combine_completion_flags")
        return (
            *(offsets[name] for name in (*named, *flags)),
            *(tail, tail + flag_bytes),
            *(words, words + 4, words + 128, words + 64),
            *(offsets["topk_target_ranks"], offsets["topk_send_indices"]),
        )


class PicoLaunch:
    """Expects `exchange`, `workspace`, `ep_rank`, `ep_size`, `_base` and `_stride` (bytes) of the mapped rows."""

    tuning: Callable[[int], Tuning] = Tuning.of
    pdl = False

    def launch_dispatch(self, kernels, batch: Batch) -> Handle:
        x, M, tuning = self.exchange, batch.runtime_max_tokens, self.tuning(batch.runtime_max_tokens)
        rows, row_bytes = payloads(batch), widths(batch)
        begins = self.workspace.payload_offsets(row_bytes, runtime_max_tokens=M)
        width = gcd(WORD_BYTES, *row_bytes[:-2], *begins[:-2], *map(address, batch.payloads))
        words = tuple(size // width for size in row_bytes[:-2])
        programs = max(1, batch.tokens) if tuning.one_flag else M
        counting = 0 if tuning.one_flag else 1  # a program without a token counts all rows
        kernels.dispatch[(programs * tuning.dispatch_split + counting,)](
            address(rows[0]),
            tuple(address(tensor) for tensor in rows[1:-2]),
            address(rows[-2]),
            address(rows[-1]),
            begins,
            *(self._base, self._stride, self.ep_rank, batch.tokens, M, self.workspace.blocks),
            E=x.experts,
            K2=power_of_two(x.top_k),
            WORD=getattr(kernels.tl, f"int{8 * width}"),
            WORDS=words,
            WORDS2=(power_of_two(-(-words[0] // tuning.dispatch_split)), *(power_of_two(n) for n in words[1:])),
            ALIGN=gcd(LOAD_BYTES, row_bytes[0], begins[0], address(rows[0])),
            COUNT2=0 if tuning.one_flag else power_of_two(max(16, M)),
            ATOMICS=tuning.atomics,
            SPLIT=tuning.dispatch_split,
            num_warps=tuning.dispatch_warps,
            **self._common(),
        )
        return Handle(batch=batch, rows=self.ep_size * M)

    def launch_combine(self, kernels, partials: torch.Tensor, handle: Handle, output: torch.Tensor) -> torch.Tensor:
        x, batch = self.exchange, handle.batch
        M, tuning = batch.runtime_max_tokens, self.tuning(batch.runtime_max_tokens)
        if not tuning.pushers and partials.data_ptr() != self._combine_region(handle).data_ptr():
            self._combine_region(handle).copy_(partials)
        tokens = M if tuning.pushers else max(1, batch.tokens)
        kernels.combine[(tuning.pushers + tokens * tuning.combine_split,)](
            *(address(output), address(partials), self._combine_offset(batch)),
            *(self._base, self._stride, self.ep_rank, batch.tokens, M, self.workspace.blocks, tuning.pushers),
            KR2=power_of_two(x.top_k + x.ep_size),
            TREE=x.top_k in TREE_TOP_K,
            TYPE=getattr(kernels.tl, DTYPES[x.combine_dtype]),
            H=x.hidden,
            H2=power_of_two(-(-x.hidden // tuning.combine_split)),
            CHUNK=tuning.chunk if tuning.pushers else 0,
            SPLIT=tuning.combine_split,
            num_warps=tuning.combine_warps,
            **self._common(),
        )
        return output

    def partials_buffer(self, handle: Handle) -> torch.Tensor:
        """In the workspace if this round's combine pulls."""
        pushes = self.tuning(handle.batch.runtime_max_tokens).pushers
        return super().partials_buffer(handle) if pushes else self._combine_region(handle)

    def _misplaced(self, partials: torch.Tensor, handle: Handle) -> str | None:
        if address(partials) % LOAD_BYTES == 0:
            return None
        return f"partials begin at {partials.data_ptr():#x}: pico loads {LOAD_BYTES} bytes at a time; clone() them"

    def _common(self) -> dict[str, object]:
        """Constants of both kernels."""
        R, K = self.ep_size, self.exchange.top_k
        launch = {"launch_pdl": True} if self.pdl else {}
        return {"R": R, "R2": power_of_two(R), "K": K, "AT": self.workspace.places, "PDL": self.pdl, **launch}

    def _combine_offset(self, batch: Batch) -> int:
        return self.workspace.combine_offset(widths(batch), runtime_max_tokens=batch.runtime_max_tokens)

    def _combine_region(self, handle: Handle) -> torch.Tensor:
        """`[R * M, H]` of this rank's row."""
        begin, H = self._combine_offset(handle.batch), self.exchange.hidden
        row = self._own_row()[begin : begin + handle.rows * H * self.combine_dtype.itemsize]
        return row.view(self.combine_dtype).view(handle.rows, H)

    def _received_views(self, handle: Handle) -> list[torch.Tensor]:
        """What the sources put into this rank's row, `M` rows each, payload by payload."""
        batch, sizes, rows = handle.batch, widths(handle.batch), handle.rows
        offsets = self.workspace.payload_offsets(sizes, runtime_max_tokens=batch.runtime_max_tokens)
        return [
            self._own_row()[begin : begin + rows * size].view(tensor.dtype).view(rows, tensor.shape[1])
            for tensor, size, begin in zip(payloads(batch), sizes, offsets, strict=True)
        ]

    def _describe(self, handle: Handle, counts: np.ndarray) -> Received:
        M, (*parts, experts, weights) = handle.batch.runtime_max_tokens, self._received_views(handle)
        return Received(
            payloads=tuple(parts),
            experts=experts,
            weights=weights,
            counts_R=tuple(int(n) for n in counts),
            starts_R=tuple(range(0, self.ep_size * M, M)),
            handle=handle,
        )

    def _output(self, batch: Batch) -> torch.Tensor:
        import torch

        return torch.empty(batch.tokens, self.exchange.hidden, dtype=self.combine_dtype, device=self.rank.device)


def payloads(batch: Batch) -> tuple[torch.Tensor, ...]:
    """All that travels: the batch's payloads, ids, weights."""
    return *batch.payloads, batch.experts_TK, batch.weights_TK


def widths(batch: Batch) -> list[int]:
    """Bytes per token of each of `payloads`."""
    return [tensor.shape[1] * tensor.element_size() for tensor in payloads(batch)]


def power_of_two(count: int) -> int:
    """The least power of two that is not below `count`."""
    return 1 << max(0, count - 1).bit_length()


def address(tensor: torch.Tensor) -> int:
    """Where a tensor begins."""
    return tensor.data_ptr() or EMPTY

"""Combine's sum: adds up a token's rows in the kernel's own order, without adding the slots that are empty.

A token has K slots, most of them empty: only the first choice that names a rank has a row. The kernel adds up all K in
float32, an empty one as +0.0 (vectorized_combine_impl of moeAlltoAllKernels.cu). Leaving a zero out of a sum changes no
bit of it, but for -0.0 + 0.0 = +0.0, which one +0.0 at the end makes good. What remains is a tree over the rows that
are there; tokens with the same tree are added up together.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache, reduce
from operator import add

import numpy as np
import torch

TREE_TOP_K = (1, 2, 4, 6, 8, 10, 16, 22)  # the kernel adds up the slots of other top_k in a plain loop
SCRATCH_BYTES = 5 << 17  # of float32 rows: with the rows they come from they should stay in a core's own cache


@dataclass(frozen=True, kw_only=True, eq=False)
class Trees:
    """A binary tree for each of T tokens, in Polish notation: bit 1 opens a sum, bit 0 is a row; none has no bits.

    `a + b` is the sum of two trees, or the one of them that exists, so `kernel_sum` computes the tree of its order.
    """

    bits_T: np.ndarray
    length_T: np.ndarray

    def __add__(self, other: Trees) -> Trees:
        both_T = (self.length_T > 0) & (other.length_T > 0)
        below_T = self.length_T + other.length_T
        bits_T = (both_T.astype(np.int64) << below_T) | (self.bits_T << other.length_T) | other.bits_T
        return Trees(bits_T=bits_T, length_T=below_T + both_T)


def kernel_sum(slots: Sequence[Trees]) -> Trees:
    """The sum of K slots as the kernel groups it.

    A tree splits its slots behind the largest power of two that leaves some on the right. Other K are summed from the
    left (two-sided takes any K and leaves the order to `torch.sum`).
    """
    return _tree(slots) if len(slots) in TREE_TOP_K else reduce(add, slots)


def _tree(slots: Sequence[Trees]) -> Trees:
    if len(slots) == 1:
        return slots[0]
    left = 1 << ((len(slots) - 1).bit_length() - 1)
    return _tree(slots[:left]) + _tree(slots[left:])


@lru_cache(maxsize=4096)
def additions(bits: int, length: int) -> tuple[tuple[int, int], ...]:
    """The tree's sums in their order, as (row, row added to it); rows are counted from the left."""
    steps, rows, digits = [], 0, iter(f"{bits:0{length}b}")

    def parse() -> int:
        nonlocal rows
        if next(digits) == "0":
            rows += 1
            return rows - 1
        left, right = parse(), parse()
        steps.append((left, right))
        return left

    parse()
    return tuple(steps)


def groups(filled_TK: np.ndarray) -> Iterator[tuple[tuple[tuple[int, int], ...], int, np.ndarray]]:
    """Tokens with the same tree: its additions, the number of its rows, the tokens ascending."""
    nothing_T = np.zeros(len(filled_TK), np.int64)
    slots = [Trees(bits_T=nothing_T, length_T=filled_T.astype(np.int64)) for filled_T in filled_TK.T]
    trees = kernel_sum(slots)
    key_T = trees.bits_T << 1 | (trees.length_T > 0)
    order = np.argsort(key_T, kind="stable")
    for tokens in np.split(order, np.flatnonzero(np.diff(key_T[order])) + 1):
        if len(tokens):
            length = int(trees.length_T[tokens[0]])
            yield additions(int(trees.bits_T[tokens[0]]), length) if length else (), (length + 1) // 2, tokens


class RowTable:
    """Rows anywhere in a stretch of memory, each an index.

    Args:
        memory: uint8 `[bytes]`.
        row_bytes: of one row.
        grain_bytes: divides the offset of every row.
    """

    def __init__(self, memory: torch.Tensor, *, row_bytes: int, grain_bytes: int):
        windows = max(0, (memory.numel() - row_bytes) // grain_bytes + 1)
        self.grain_bytes = grain_bytes
        self.rows = memory.as_strided((windows, row_bytes), (grain_bytes, 1))


class CombineSum:
    """Sums of up to K rows per token, in float32, rounded once.

    Args:
        top_k: K.
        hidden: H.
        dtype: of the rows that are added.
        sum_dtype: of the result.
    """

    def __init__(self, *, top_k: int, hidden: int, dtype: torch.dtype, sum_dtype: torch.dtype):
        self.top_k, self.hidden, self.dtype, self.sum_dtype = top_k, hidden, dtype, sum_dtype
        self._capacity = max(top_k, SCRATCH_BYTES // (4 * hidden))
        self._raw = torch.empty(self._capacity, hidden, dtype=dtype)
        self._rows = self._raw if dtype == torch.float32 else torch.empty(self._capacity, hidden)
        self._sorted = torch.empty(0, hidden, dtype=sum_dtype)

    def __call__(self, table: RowTable, offsets_TK: np.ndarray) -> torch.Tensor:
        """`[T, H]` of `sum_dtype`.

        Args:
            table: where the rows are.
            offsets_TK: int64 `[T, K]`, first byte of each slot's row in the table; -1 for an empty slot.
        """
        tokens = len(offsets_TK)
        if len(self._sorted) < tokens:
            self._sorted = torch.empty(tokens, self.hidden, dtype=self.sum_dtype)
        filled_TK = offsets_TK >= 0
        place_T, done = np.empty(tokens, np.int64), 0
        for steps, rows, members in groups(filled_TK):
            place_T[members] = np.arange(done, done + len(members))
            index_TN = offsets_TK[members][filled_TK[members]].reshape(len(members), rows) // table.grain_bytes
            self._add(table, index_TN, steps, self._sorted[done : done + len(members)])
            done += len(members)
        return self._sorted.index_select(0, torch.from_numpy(place_T))

    def _add(
        self, table: RowTable, index_TN: np.ndarray, steps: tuple[tuple[int, int], ...], out: torch.Tensor
    ) -> None:
        """One tree, for as many tokens at a time as fit the scratch."""
        rows = index_TN.shape[1]
        if not rows:
            out.zero_()
            return
        step, scratch = self._capacity // rows, None
        for index, sums in zip(torch.from_numpy(index_TN).split(step), out.split(step), strict=True):
            if scratch is None or len(index) < step:
                scratch = self._scratch(index.numel(), rows)
            raw_bytes, raw, loaded, slots = scratch
            torch.index_select(table.rows, 0, index.view(-1), out=raw_bytes)
            if loaded is not raw:
                loaded.copy_(raw)
            for into, addend in steps:
                slots[into].add_(slots[addend])
            if rows < self.top_k:
                slots[0].add_(0.0)
            sums.copy_(slots[0])

    def _scratch(self, count: int, rows: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, list[torch.Tensor]]:
        """Room for `count` rows: their bytes, the same as they come, in float32, and that by slot, `[t, H]` each."""
        raw = self._raw[:count]
        loaded = raw if self._rows is self._raw else self._rows[:count]
        return raw.view(torch.uint8), raw, loaded, loaded.view(-1, rows, self.hidden).unbind(1)

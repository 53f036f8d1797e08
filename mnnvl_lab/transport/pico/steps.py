"""Pico in steps, for notebook 12: memory of two ranks in one process, and a Triton kernel that grows step by step.

The kernel runs in Triton's interpreter, on the processor.
"""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd

ROWS = 7

FLAGGED = r"atomics, flag per program of (\d+) warps, pull in (\d+) parts of (\d+) warps"  # too long for a table


class TwoRanks:
    """Memory of two ranks, and what rank 0 puts into it.

    Attributes:
        memory: int32 `[2, 16]`: seven rows of two numbers, then the count of rows, then the flag.
    """

    def __init__(self):
        import torch

        self.memory = torch.zeros(2, 16, dtype=torch.int32)

    def put(
        self, targets_TK: Sequence[Sequence[int]], *, epoch: int = 1, count: bool = True, distinct: bool = True,
        flag: bool = True,
    ) -> TwoRanks:  # fmt: skip
        """One round of rank 0: token t's row is `[10 * epoch + t, t]`, and goes to the ranks that it names.

        Args:
            targets_TK: ranks, 0 or 1, that own the experts of each token.
            epoch: value of the flag.
            count: each row gets a slot of its own; else all use slot 0.
            distinct: a rank that a token names twice gets one row.
            flag: counts and flags follow the rows.
        """
        import torch

        from mnnvl_lab.transport.pico.host import interpreter

        targets = torch.tensor(targets_TK, dtype=torch.int32)
        T, K = targets.shape
        rows = torch.tensor([[10 * epoch + t, t] for t in range(T)], dtype=torch.int32)
        counters = torch.zeros(2, dtype=torch.int32)
        switches = {"COUNT": count, "DISTINCT": distinct, "FLAG": flag}
        with interpreter():
            from mnnvl_lab.transport.pico import step_kernels

            step_kernels.put[(T,)](self.memory, rows, targets, counters, epoch, T, K=K, **switches)
        return self

    def table(self) -> pd.DataFrame:
        """One line per rank: its slots, its count, its flag."""
        values = self.memory.numpy()
        rows = [[str(values[rank, 2 * slot : 2 * slot + 2].tolist()) for slot in range(ROWS)] for rank in range(2)]
        slots = pd.DataFrame(rows, columns=[f"slot {slot}" for slot in range(ROWS)])
        return slots.assign(count=values[:, 14], flag=values[:, 15]).rename_axis("rank")


def trace(result) -> pd.DataFrame:
    """The steps of a search that led to something wrong, one line each."""
    lines = [{"process": event.process, "step": event.label} for event in result.trace]
    return pd.DataFrame(lines).rename_axis("step no.")


def source_of(name: str) -> str:
    """A function of the kernels' file, as text."""
    from mnnvl_lab.transport.pico.host import interpreter

    with interpreter():
        from mnnvl_lab.transport.pico import kernels
    function = getattr(kernels, name)
    return inspect.getsource(getattr(function, "fn", function))


def ladder(path: Path | None = None) -> pd.DataFrame:
    """Recorded times of each step beside FlashInfer, `data/pico/ladder_h100_c.csv`: medians in microseconds.

    Rows are steps in the order in which they were climbed, columns are tokens per rank.
    """
    from mnnvl_lab.datasets import DATA

    samples = pd.read_csv(path or DATA / "pico" / "ladder_h100_c.csv")
    samples["step"] = samples["step"].str.replace(
        FLAGGED, r"flag per program: \1 warps, then \2 parts of \3", regex=True
    )
    right = samples[samples.checked]
    return right.pivot_table(index="step", columns="tokens", values="latency_us", aggfunc="median", sort=False).round(1)


def fastest(table: pd.DataFrame) -> pd.DataFrame:
    """The fastest step at each number of tokens, beside FlashInfer (mean of before and after)."""
    theirs = table[table.index.str.startswith("FlashInfer")].mean().round(1)
    ours = table[~table.index.str.startswith("FlashInfer")]
    best = ours.min()
    share = (100 * (1 - best / theirs)).round().astype(np.int64)
    return pd.DataFrame({"FlashInfer": theirs, "pico": best, "less, %": share, "step": ours.idxmin()})

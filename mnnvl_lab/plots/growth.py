"""A workspace that grows: memory of the library that keeps what it outgrew, beside this package's."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from mnnvl_lab.plots.look import BLUE, INK, VERMILLION, caption, head, new_axes, style
from mnnvl_lab.plots.memory_ledger import read_where
from mnnvl_lab.plots.scales import binary_steps, number_words, size_words

if TYPE_CHECKING:
    from matplotlib.axes import Axes

WIDTH = 0.36
SIDES = {
    "upstream": ("FlashInfer's MoeAlltoAll", VERMILLION, -WIDTH / 2),
    "own": ("this package's transport", BLUE, WIDTH / 2),
}


def growth(table: pd.DataFrame, *, x: str = "tokens", hue: str = "rank", ax: Axes | None = None) -> Axes:
    """Memory taken at each size in turn and after the last is given back, with what was predicted as a line on top.

    Args:
        table: one row a rank, the fields of `measure.waste.Growth`; the first rank's row is drawn.
        x, hue: columns of the sizes and of whose memory it is.
    """
    row = table.sort_values(hue).iloc[0]
    sizes = list(row[x])
    sums = np.asarray(row["predicted_bytes"])
    predicted = {"upstream": [*sums, 0], "own": [*np.diff(sums, prepend=0), 0]}
    with style():
        ax = new_axes(ax, width=8.4)
        for side, (label, color, shift) in SIDES.items():
            measured = np.array([*row[f"{side}_bytes"], row[f"{side}_left_bytes"]])
            places = np.arange(len(measured)) + shift
            ax.bar(places, measured, width=WIDTH, color=color, label=label, gid=side)
            _write(ax, places, measured)
            ends = (places - WIDTH / 2, places + WIDTH / 2)
            words = "predicted" if side == "own" else None
            ax.hlines(predicted[side], *ends, color=INK, linewidth=1.6, label=words, gid=f"predicted {side}")
        ax.set_xticks(range(len(sizes) + 1), [f"{number_words(n)} tokens" for n in sizes] + ["given back"])
        ax.grid(visible=False, axis="x")
        ax.set_ylabel("Memory taken on the GPU")
        binary_steps(ax.yaxis, sums)
        ax.set_ylim(0, 1.15 * max(sums[-1], *row["upstream_bytes"]))
        ax.legend(frameon=False, ncols=3, loc="upper center", bbox_to_anchor=(0.5, -0.09), fontsize=9)
        head(ax, "A workspace that grows", f"{hue} {row[hue]} · max tokens in turn, one-sided")
        caption(ax, read_where(table), below_points=52)
    return ax


def _write(ax: Axes, places: np.ndarray, sizes: np.ndarray) -> None:
    for place, size in zip(places, sizes, strict=True):
        words = ax.annotate(size_words(size), (place, max(size, 0)), (0, 4), textcoords="offset points", gid="taken")
        words.set(ha="center", va="bottom", fontsize=8.5, color=INK)

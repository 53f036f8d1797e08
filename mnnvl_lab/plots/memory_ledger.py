"""The memory ledger as a waterfall: from step to step, predicted and not."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from mnnvl_lab.errors import Refused
from mnnvl_lab.plots.style import (
    BLUE,
    GREEN,
    INK,
    ORANGE,
    QUIET,
    VERMILLION,
    binary_steps,
    caption,
    format_bytes,
    format_load,
    format_number,
    head,
    new_axes,
    style,
)
from mnnvl_lab.records import provenance_of

if TYPE_CHECKING:
    from matplotlib.axes import Axes

PARTS = {
    "predicted_bytes": ("predicted: the workspace", BLUE),
    "torch_bytes": ("torch's allocator", GREEN),
    "rest_bytes": ("not predicted", ORANGE),
}


def memory_ledger(table: pd.DataFrame, *, x: str = "step", hue: str = "rank", ax: Axes | None = None) -> Axes:
    """What each step took, parted into what was predicted and what was not, floating on the level before it.

    Args:
        table: of `measure.memory.measure_ledger`, of one point and rank; the first rank's where there are several.
        x, hue: columns of the steps, in order, and of whose ledger it is.

    Raises:
        Refused: no rows, or a step that occurs twice.
    """
    rows = table[table[hue] == table[hue].min()].reset_index(drop=True)
    if rows.empty or rows[x].duplicated().any():
        raise Refused(f"{len(rows)} rows for {rows[x].nunique()} steps: pass the ledger of one point, one row per step")
    with style():
        ax = new_axes(ax, width=8.4)
        places = np.arange(len(rows))
        level = (rows["used_bytes"] - rows["change_bytes"]).to_numpy(float)
        for part, (label, color) in PARTS.items():
            height = rows[part].fillna(0).to_numpy(float)
            ax.bar(places, height, bottom=level, width=0.62, color=color, label=label, gid=part)
            level = level + height
        _connect(ax, places, rows["used_bytes"].to_numpy(float))
        _annotate(ax, rows)
        ax.set_xticks(places, list(rows[x]))
        ax.grid(visible=False, axis="x")
        ax.set_ylabel(_what(rows))
        _binary_scale(ax, rows)
        ax.legend(frameon=False, ncols=len(PARTS), loc="upper center", bbox_to_anchor=(0.5, -0.1))
        head(ax, "Memory, step by step", f"{hue} {rows[hue].iloc[0]} · {format_load(rows)}")
        caption(ax, read_where(table), below_points=52)
    return ax


def _binary_scale(ax: Axes, rows: pd.DataFrame) -> None:
    """Binary ticks, and room for the words above the highest level."""
    binary_steps(ax.yaxis, rows["used_bytes"].to_numpy())
    ax.set_ylim(0, 1.14 * max(rows["used_bytes"].max(), 1))


def _connect(ax: Axes, places: np.ndarray, used: np.ndarray) -> None:
    """A thin line from each level to the next step's bar."""
    for place, level in zip(places[:-1], used[:-1], strict=True):
        ax.plot([place + 0.31, place + 0.69], [level, level], color=QUIET, linewidth=0.8)


def _annotate(ax: Axes, rows: pd.DataFrame) -> None:
    for place, row in rows.iterrows():
        top = max(row["used_bytes"], row["used_bytes"] - row["change_bytes"])
        words = ax.annotate(_change(row["change_bytes"]), (place, top), (0, 3), textcoords="offset points")
        words.set(ha="center", va="bottom", fontsize=8.5, color=INK, gid="change")


def _change(size_bytes: int) -> str:
    sign = "+" if size_bytes > 0 else "-" if size_bytes < 0 else ""
    return f"{sign}{format_bytes(abs(size_bytes))}"


def _what(rows: pd.DataFrame) -> str:
    host = "fabric" in rows.columns and (rows["fabric"] == "host").all()
    return "Shared segments that the process maps" if host else "Memory in use on the GPU"


def read_where(table: pd.DataFrame) -> str:
    """For a caption: fabric and device of readings of memory."""
    fabrics = ", ".join(table["fabric"].unique()) if "fabric" in table.columns else "unknown fabric"
    return f"{fabrics} · {provenance_of(table).get('device', 'unknown device')} · read between barriers"


WIDTH = 0.36
SIDES = {
    "upstream": ("FlashInfer's MoeAlltoAll", VERMILLION, -WIDTH / 2),
    "own": ("this package's transport", BLUE, WIDTH / 2),
}


def growth(table: pd.DataFrame, *, x: str = "tokens", hue: str = "rank", ax: Axes | None = None) -> Axes:
    """Memory taken at each size in turn and after the last is given back, with what was predicted as a line on top.

    Args:
        table: one row per rank, the fields of `measure.waste.Growth`; the first rank's row is drawn.
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
        ax.set_xticks(range(len(sizes) + 1), [f"{format_number(n)} tokens" for n in sizes] + ["given back"])
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
        words = ax.annotate(format_bytes(size), (place, max(size, 0)), (0, 4), textcoords="offset points", gid="taken")
        words.set(ha="center", va="bottom", fontsize=8.5, color=INK)

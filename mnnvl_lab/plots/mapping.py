"""Whose memory a rank's kernel finds in each row of a workspace: where it looks for it, and where it does not."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pandas as pd

from mnnvl_lab.plots.style import BLUE, INK, QUIET, VERMILLION, caption, contrast_color, head, new_axes, style

if TYPE_CHECKING:
    from matplotlib.axes import Axes

NONE = -1
CELL_INCHES = (1.15, 0.62)
CELL = (0.94, 0.88)  # of the distance between two cells


def mapped_rows(
    table: pd.DataFrame, *, x: str = "row", y: str = "rank", hue: str = "found", ax: Axes | None = None
) -> Axes:
    """A line per rank, a cell per row that its kernel addresses, coloured by whether it is the rank's that is wanted.

    Args:
        table: as `WrongGroup.mapped_rows` makes it, with `wanted` beside `hue`.
        x: column of the workspace's rows.
        y: column of the rank whose kernel looks.
        hue: column of the rank whose memory it is, -1 for none.
    """
    rows, ranks = table[x].max() + 1, table[y].max() + 1
    with style():
        ax = new_axes(ax, width=1.6 + CELL_INCHES[0] * max(rows, 4.4), height=1.5 + CELL_INCHES[1] * ranks)
        for each in table.itertuples():
            _cell(ax, getattr(each, x), -getattr(each, y), wanted=each.wanted, found=getattr(each, hue))
        _name_axes(ax, table, x, y)
        ax.set_xlim(-1.5, max(rows, 4.4) - 0.4)
        ax.set_ylim(-ranks + 0.45, 0.95)
        ax.set_axis_off()
        head(ax, "Whose memory a kernel finds in each row of its workspace", _counts(table, hue), above_points=4)
        caption(
            ax,
            "blue: the rank that is meant; orange: another rank; grey: behind the end of the mapping",
            "computed from the layout",
            below_points=6,
        )
    return ax


def _cell(ax: Axes, column: int, line: int, *, wanted: int, found: int) -> None:
    from matplotlib.patches import Rectangle

    missing, right = found == NONE, found == wanted
    fill = "#f0f0f0" if missing else BLUE if right else VERMILLION
    corner = (column - CELL[0] / 2, line - CELL[1] / 2)
    hatch = {"hatch": "///", "edgecolor": "#c8c8c8"} if missing else {"edgecolor": "none"}
    ax.add_patch(Rectangle(corner, *CELL, facecolor=fill, linewidth=0, gid=f"cell {-line} {column}", **hatch))
    words = "nothing" if missing else f"rank {found}" if right else f"rank {found},\nnot {wanted}"
    color = QUIET if missing else contrast_color(fill)
    ax.text(column, line, words, ha="center", va="center", size=8.5, color=color, linespacing=1.15)


def _name_axes(ax: Axes, table: pd.DataFrame, x: str, y: str) -> None:
    for row in sorted(table[x].unique()):
        ax.text(row, 0.58, f"row {row}", ha="center", va="bottom", color=INK, size=9)
    for rank in sorted(table[y].unique()):
        ax.text(-0.6, -rank, f"kernel of rank {rank}", ha="right", va="center", color=INK, size=9)


def _counts(table: pd.DataFrame, hue: str) -> str:
    right, missing = (table[hue] == table["wanted"]).sum(), (table[hue] == NONE).sum()
    if right == len(table):
        return f"all {right} rows are where the kernels look for them"
    wrong = len(table) - right - missing
    return f"of {len(table)} rows {right} are right, {wrong} another rank's, {missing} not there at all"

"""Figures of a layout: one cell per rank, and the wait-for graph of a hang."""

from __future__ import annotations

from textwrap import shorten
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from mnnvl_lab.errors import Refused
from mnnvl_lab.plots.style import BLUE, CYCLE, INK, QUIET, VERMILLION, caption, contrast_color, head, new_axes, style

if TYPE_CHECKING:
    from matplotlib.axes import Axes

EXPLAINED = {
    "ep_group": "same colour = same EP group: they exchange tokens through one workspace",
    "dp_group": "same colour = same DP group: the same slice of the model, for different requests",
    "tp_group": "same colour = same TP group: they share the work on the same tokens",
    "node": "same colour = same node: these GPUs are in one machine",
}
NAMES = {"ep_group": "EP group", "dp_group": "DP group", "tp_group": "TP group", "node": "node"}
CELL = 0.9  # of the distance between two cells
INCHES = (1.0, 0.68)  # a cell's width and height
LEAST_WIDTH = 6.4  # for the title, in cells
SPACIOUS = 14
"""Up to so many rows a cell has room for more than its rank."""
LISTED = 10
"""Up to so many groups are listed beside the grid."""


def rank_grid(table: pd.DataFrame, *, x: str = "tp", hue: str = "ep_group", ax: Axes | None = None) -> Axes:
    """The rank grid: a column for each TP rank, a row for each DP rank, pipeline stages side by side.

    Args:
        table: one row per rank, as `Layout.to_frame` makes it.
        x: column along which ranks are drawn side by side.
        hue: `ep_group`, `dp_group`, `tp_group` or `node`: which ranks share a colour.

    Raises:
        Refused: another hue.
    """
    if hue not in EXPLAINED:
        raise Refused(f"hue is {hue!r}: ranks are coloured by one of {', '.join(EXPLAINED)}; name one of these")
    placed = _placed(table, x)
    columns, rows = placed["column"].max() + 1, placed["row"].max() + 1
    left, top = 1.75 if placed["pcp"].max() else 1.25, 1.1 if placed["pp"].max() else 0.8
    right = max(2.7, LEAST_WIDTH - left - columns)
    with style():
        height = min(1.1 + INCHES[1] * (rows + top), 11)
        ax = new_axes(ax, width=INCHES[0] * (left + columns + right), height=height)
        for row in placed.itertuples():
            _cell(ax, row, getattr(row, hue), spacious=rows <= SPACIOUS)
        _name_axes(ax, placed, x)
        _list_groups(ax, placed, hue, columns)
        ax.set_xlim(-left, columns + right - 0.5)
        ax.set_ylim(-rows + 0.5, top)
        ax.set_axis_off()
        head(ax, _title(table), EXPLAINED[hue], above_points=4)
        caption(ax, "a cell is a process with its GPU; computed, in vLLM's rank order", below_points=6)
    return ax


def _placed(table: pd.DataFrame, x: str) -> pd.DataFrame:
    """The table with the column and row of each rank's cell; a gap between pipeline stages."""
    wide, pcp = table[x].max() + 1, table["pcp"].max() + 1
    return table.assign(
        tp_group=table.groupby(["dp", "pp", "pcp"]).ngroup(),
        column=table[x] + table["pp"] * (wide + 0.35),
        row=table["dp"] * pcp + table["pcp"],
    )


def _color(group: int) -> str:
    return CYCLE[group % len(CYCLE)]


def _cell(ax: Axes, rank, group: int, *, spacious: bool) -> None:
    from matplotlib.patches import FancyBboxPatch

    fill = _color(group)
    ax.add_patch(
        FancyBboxPatch(
            (rank.column - CELL / 2, -rank.row - CELL / 2),
            CELL,
            CELL,
            boxstyle="round,pad=0,rounding_size=0.1",
            facecolor=fill,
            edgecolor="none",
            gid=f"rank {rank.rank}",
        )
    )
    words = {"ha": "center", "va": "center", "color": contrast_color(fill)}
    ax.text(rank.column, -rank.row + (0.2 if spacious else 0), f"rank {rank.rank}", weight="bold", size=10, **words)
    if spacious:
        place = f"EP rank {rank.ep_rank}\nnode {rank.node} · GPU {rank.gpu}"
        ax.text(rank.column, -rank.row - 0.16, place, size=7, linespacing=1.25, **words)


def _name_axes(ax: Axes, placed: pd.DataFrame, x: str) -> None:
    """Names of rows, columns and stages, outside the cells."""
    for row in placed.drop_duplicates("row").itertuples():
        words = f"DP {row.dp}" + (f" · PCP {row.pcp}" if placed["pcp"].max() else "")
        ax.text(-0.6, -row.row, words, ha="right", va="center", color=INK, size=9.5)
    for row in placed.drop_duplicates("column").itertuples():
        ax.text(row.column, 0.52, f"{x.upper()} {getattr(row, x)}", ha="center", va="bottom", color=INK, size=9.5)
    if placed["pp"].max():
        for stage, cells in placed.groupby("pp"):
            middle = (cells["column"].min() + cells["column"].max()) / 2
            ax.text(middle, 0.86, f"pipeline stage {stage}", ha="center", va="bottom", color=QUIET, size=9.5)


def _list_groups(ax: Axes, placed: pd.DataFrame, hue: str, columns: float) -> None:
    """The groups in words beside the grid, each in its colour."""
    groups = placed.groupby(hue)["rank"].apply(list)
    for i, (group, ranks) in enumerate(groups.iloc[:LISTED].items()):
        place = (columns - 0.1, 0.2 - 0.62 * i)
        ax.text(*place, f"{NAMES[hue]} {group}", ha="left", va="center", color=_color(group), weight="bold", size=9.5)
        words = (
            f"{len(ranks)} ranks: {shorten(_listed(ranks), 30, placeholder=' …')}"
            if len(ranks) > 1
            else f"rank {ranks[0]} alone"
        )
        ax.text(place[0], place[1] - 0.26, words, ha="left", va="center", color=QUIET, size=8)


def _listed(ranks: list[int]) -> str:
    """Ranks as runs, `0–3, 8–11`."""
    runs: list[list[int]] = []
    for rank in ranks:
        if runs and rank == runs[-1][-1] + 1:
            runs[-1].append(rank)
        else:
            runs.append([rank])
    return ", ".join(f"{run[0]}–{run[-1]}" if len(run) > 2 else ", ".join(map(str, run)) for run in runs)


def _title(table: pd.DataFrame) -> str:
    sizes = " × ".join(f"{name.upper()} {table[name].max() + 1}" for name in ("dp", "pp", "pcp", "tp"))
    return f"{sizes} = {len(table)} ranks"


NODE_POINTS = 15  # radius, also where arrows end
WAITING, MISSING, FREE = BLUE, VERMILLION, "#BBBBBB"


def waits(table: pd.DataFrame, *, ax: Axes | None = None) -> Axes:
    """Wait-for graph of a hang.

    Args:
        table: one row per rank, as `HangReport.to_frame` makes it.
    """
    x_R, y_R = _circle(len(table))
    place = {row.rank: (x_R[i], y_R[i]) for i, row in enumerate(table.itertuples())}
    with style():
        ax = new_axes(ax, width=6.4, height=5.2)
        for row in table.itertuples():
            for awaited in row.waits_for:
                _arrow(ax, place[row.rank], place[awaited], gid=f"{row.rank} waits for {awaited}")
        for row in table.itertuples():
            _node(ax, row, place[row.rank])
        ax.set_xlim(-1.9, 1.9)
        ax.set_ylim(-1.45, 1.45)
        ax.set_aspect("equal")
        ax.set_axis_off()
        head(
            ax, _wait_title(table), "an arrow leads from a rank that waits to the one that it waits for", above_points=2
        )
        caption(ax, "read from flags, counters and collective calls while the ranks were stuck", below_points=4)
    return ax


def _circle(count: int) -> tuple[np.ndarray, np.ndarray]:
    """Places on the unit circle, the first at the top, then clockwise."""
    angle_R = np.pi / 2 - 2 * np.pi * np.arange(count) / count
    return np.cos(angle_R), np.sin(angle_R)


def _arrow(ax: Axes, start: tuple[float, float], end: tuple[float, float], *, gid: str) -> None:
    shape = {"arrowstyle": "-|>", "color": QUIET, "lw": 1.2, "connectionstyle": "arc3,rad=0.12"}
    ends = {"shrinkA": NODE_POINTS, "shrinkB": NODE_POINTS}
    ax.annotate("", xy=end, xytext=start, arrowprops=shape | ends, gid=gid)


def _node(ax: Axes, row, place: tuple[float, float]) -> None:
    fill = MISSING if row.never_arrived else WAITING if row.waits_for else FREE
    ax.plot(*place, "o", markersize=2 * NODE_POINTS, color=fill, gid=f"rank {row.rank}")
    ax.text(*place, str(row.rank), ha="center", va="center", color=contrast_color(fill), weight="bold", size=11)
    x, y = 1.24 * place[0], 1.22 * place[1]
    side = "center" if abs(x) < 0.2 else "left" if x > 0 else "right"
    words = f"{row.phase or row.state}\nDP {row.dp} · TP {row.tp}"
    ax.text(x, y, words, ha=side, va="center", color=MISSING if row.never_arrived else QUIET, size=8)


def _wait_title(table: pd.DataFrame) -> str:
    missing = table.loc[table["never_arrived"], "rank"].tolist()
    if missing:
        return f"rank {', '.join(map(str, missing))} never arrived"
    return "ranks wait for each other" if table["waits_for"].map(len).any() else "no rank waits for another"

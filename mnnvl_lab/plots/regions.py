"""Figure of a workspace to scale, magnified step by step until its smallest regions are visible."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pandas as pd

from mnnvl_lab.plots.lines import spread
from mnnvl_lab.plots.style import (
    BLUE,
    FAINT,
    GREEN,
    INK,
    ORANGE,
    PURPLE,
    QUIET,
    SKY,
    VERMILLION,
    YELLOW,
    caption,
    contrast_color,
    format_bytes,
    head,
    new_axes,
    style,
)

if TYPE_CHECKING:
    from matplotlib.axes import Axes

SMALL = 0.02
"""A region below this share of a bar is magnified in the next."""
LEVELS = 3
BAR, PITCH = 0.34, 1.2  # height of a bar, distance of two, in units of the y axis
INCHES_A_UNIT = 1.15
ROOMY = 0.14
"""From this share of a bar on, a region holds its own name."""
FILLS = {
    "dispatch": BLUE,
    "dispatch_completion_flags": BLUE,
    "combine": VERMILLION,
    "combine_completion_flags": VERMILLION,
    "fifos": BLUE,
    "connections": GREEN,
}
FURTHER_FILLS = (GREEN, ORANGE, PURPLE, SKY, YELLOW)


def region_map(table: pd.DataFrame, *, x: str = "offset_bytes", hue: str = "region", ax: Axes | None = None) -> Axes:
    """Bars to scale: the whole workspace, then what was too small to see in it, magnified.

    Args:
        table: one row a region, none over another, as `tables.regions_table` makes it.
        x, hue: columns of the first byte and of the name; `size_bytes` gives the length.
    """
    ordered = table.sort_values(x).reset_index(drop=True)
    levels = _levels(ordered, x)
    fills = {n: FILLS.get(n, FURTHER_FILLS[i % len(FURTHER_FILLS)]) for i, n in enumerate(ordered[hue])}
    with style():
        ax = new_axes(ax, width=9.2, height=0.9 + INCHES_A_UNIT * PITCH * len(levels))
        for depth, level in enumerate(levels):
            following = levels[depth + 1] if depth + 1 < len(levels) else None
            _bar(ax, level, -depth * PITCH, x, hue, fills, following)
        _frame(ax, len(levels))
        total = int((ordered[x] + ordered["size_bytes"]).max())
        head(ax, "The workspace of one rank, to scale", f"{total:,} bytes = {format_bytes(total)}")
        gaps = "; pale: gaps of alignment" if any(_has_gaps(level, x) for level in levels) else ""
        caption(ax, f"computed, byte for byte as the kernels lay it out{gaps}", below_points=10)
    return ax


def _levels(table: pd.DataFrame, x: str) -> list[pd.DataFrame]:
    """The table, then its longest run of small regions, and so on while there are any."""
    levels = [table]
    while len(levels) < LEVELS:
        run = _small_run(levels[-1], x)
        if len(run) < 1 or len(run) == len(levels[-1]):
            break
        levels.append(run)
    return levels


def _small_run(level: pd.DataFrame, x: str) -> pd.DataFrame:
    small = level["size_bytes"] < SMALL * _span(level, x)[1]
    runs = (small != small.shift()).cumsum()[small]
    return level.loc[runs.index[runs == runs.value_counts().idxmax()]] if len(runs) else level.iloc[:0]


def _span(level: pd.DataFrame, x: str) -> tuple[int, int]:
    """First byte and length, gaps of alignment included."""
    begin = int(level[x].iloc[0])
    return begin, int((level[x] + level["size_bytes"]).max()) - begin


def _has_gaps(level: pd.DataFrame, x: str) -> bool:
    return int(level["size_bytes"].sum()) < _span(level, x)[1]


def _bar(ax: Axes, level: pd.DataFrame, bottom: float, x: str, hue: str, fills: dict, following) -> None:
    begin, length = _span(level, x)
    style = {"height": BAR, "align": "edge"}
    ax.barh(bottom, 1, left=0, color="#F3F3F3", edgecolor=FAINT, linewidth=0.8, zorder=1, **style)
    deeper = set() if following is None else set(following.index)
    labels = []
    for row in level.itertuples():
        name, left, width = getattr(row, hue), (getattr(row, x) - begin) / length, row.size_bytes / length
        fill = QUIET if row.Index in deeper else fills[name]
        ax.barh(bottom, width, left=left, color=fill, edgecolor="white", linewidth=0.6, zorder=2, label=name, **style)
        if row.Index not in deeper:
            labels.append((left + width / 2, width, name, row.size_bytes, fill))
    _label_inside(ax, [label for label in labels if label[1] >= ROOMY], bottom)
    _label_above(ax, [label for label in labels if label[1] < ROOMY], bottom)
    _ends(ax, begin, begin + length, bottom)
    if deeper:
        first, extent = _span(following, x)
        _magnify(ax, (first - begin) / length, extent / length, bottom)


def _label_inside(ax: Axes, labels: list[tuple], bottom: float) -> None:
    for centre, _, name, size_bytes, fill in labels:
        words = f"{name.replace('_', ' ')}\n{format_bytes(size_bytes)}"
        ax.text(
            centre,
            bottom + BAR / 2,
            words,
            ha="center",
            va="center",
            fontsize=8.5,
            color=contrast_color(fill),
            zorder=4,
        )


def _label_above(ax: Axes, labels: list[tuple], bottom: float) -> None:
    """On a thin line, side by side, where a region is too narrow for its name."""
    places = spread([centre for centre, *_ in labels], gap=0.1, low=0.03, high=0.97)
    for place, (centre, _, name, size_bytes, _) in zip(places, labels, strict=True):
        ax.annotate(
            "\n".join([*name.split("_"), format_bytes(size_bytes)]),
            xy=(centre, bottom + BAR),
            xytext=(place, bottom + BAR + 0.14),
            ha="center",
            va="bottom",
            fontsize=7.5,
            linespacing=1.05,
            color=INK,
            arrowprops={"arrowstyle": "-", "color": QUIET, "linewidth": 0.7, "shrinkA": 1, "shrinkB": 0},
        )


def _ends(ax: Axes, begin: int, end: int, bottom: float) -> None:
    """Offsets of a bar's two ends, which give the magnified bars their place."""
    for place, offset, side in ((0, begin, "left"), (1, end, "right")):
        words = f"byte {offset:,}"
        ax.text(place, bottom - 0.03, words, ha=side, va="top", fontsize=7, color=QUIET, zorder=4)


def _magnify(ax: Axes, left: float, share: float, bottom: float) -> None:
    """The cone from a stretch of one bar to the bar below, and how many times longer it is there."""
    below, right = bottom - PITCH + BAR, left + share
    ax.fill([left, right, 1, 0], [bottom, bottom, below, below], color=FAINT, alpha=0.4, linewidth=0, zorder=0)
    near_left = left + right < 1
    place = (right + 0.16, "left") if near_left else (left - 0.16, "right")
    ax.text(
        place[0], bottom - 0.09, f"magnified {1 / share:,.0f} times", ha=place[1], va="center", fontsize=8, color=QUIET
    )


def _frame(ax: Axes, levels: int) -> None:
    ax.set_xlim(-0.005, 1.005)
    ax.set_ylim(-(levels - 1) * PITCH - 0.12, BAR + 0.04)
    ax.set_axis_off()

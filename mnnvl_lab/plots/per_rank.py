"""Bars per rank: what a batch is made of, and how evenly placements share work."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from mnnvl_lab.errors import Refused
from mnnvl_lab.plots.style import CYCLE, QUIET, caption, format_load, format_tick, head, new_axes, note, style
from mnnvl_lab.records import require_column

if TYPE_CHECKING:
    from matplotlib.axes import Axes

WIDTH = 0.76
"""Of all bars of a rank together; the rest is the gap to the next rank."""
LEGEND_WIDTH = 60
"""Characters of all names that stand beside each other below the figure."""
HATCHES = ("", "", "...", "///")
"""So that parts differ in print without colour; rows that carry no token look unlike the others."""


def parts(
    table: pd.DataFrame, *, x: str = "rank", y: str = "tokens", hue: str = "part", ax: Axes | None = None
) -> Axes:
    """One bar per rank, its parts on top of each other.

    Args:
        table: one row per rank and part, such as `Step.to_frame` makes.
        x, y, hue: columns of the rank, of the amount, and of the part, drawn in the order of the table.

    Raises:
        Refused: a rank and part that comes twice, or an empty table.
    """
    amounts = _matrix(table, x, y, hue)
    used = [name for name in amounts.columns if amounts[name].any()]
    with style():
        ax, level = new_axes(ax, width=7.2, height=3.6), np.zeros(len(amounts))
        for i, name in enumerate(amounts.columns):
            if name in used:
                look = {"color": CYCLE[i % len(CYCLE)], "hatch": HATCHES[i % len(HATCHES)], "edgecolor": "white"}
                ax.bar(range(len(amounts)), amounts[name], bottom=level, width=WIDTH, label=str(name), gid=name, **look)
                level = level + amounts[name].to_numpy(float)
        _frame(ax, amounts.index, x, y, title=f"{require_column(y).label.split(' per ')[0]} of each rank's batch")
    return ax


def per_rank(
    table: pd.DataFrame, *, x: str = "rank", y: str = "copies", hue: str = "placement", ax: Axes | None = None
) -> Axes:
    """A group of bars per rank, one for each value of `hue`, and the mean as a line.

    Args:
        table: one row per rank and value of `hue`, such as `placement.per_rank` makes.
        x, y, hue: columns of the rank, of the amount, and of what is compared.

    Raises:
        Refused: a rank and value that comes twice, or an empty table.
    """
    amounts = _matrix(table, x, y, hue)
    with style():
        ax, width = new_axes(ax, width=7.2, height=3.6), WIDTH / len(amounts.columns)
        for i, name in enumerate(amounts.columns):
            places = np.arange(len(amounts)) + (i - (len(amounts.columns) - 1) / 2) * width
            label = f"{name}: fullest {amounts[name].max() / amounts[name].mean():.2f} x mean"
            look = {"color": CYCLE[i % len(CYCLE)], "hatch": HATCHES[i % 2 * 3], "edgecolor": "white"}
            ax.bar(places, amounts[name], width=width, label=label, gid=str(name), **look)
        mean = float(amounts.iloc[:, 0].mean())
        ax.axhline(mean, color=QUIET, linewidth=1, linestyle=(0, (5, 2)), gid="mean", zorder=3)
        note(ax, "mean", xy=(1, mean / ax.get_ylim()[1]), offset=(4, 0), ha="left", va="center", size=8, gid="label")
        title = f"{require_column(y).label} that each rank receives"
        _frame(ax, amounts.index, x, y, title=title, subtitle=format_load(table, (x, hue)))
    return ax


def _matrix(table: pd.DataFrame, x: str, y: str, hue: str) -> pd.DataFrame:
    """Amounts with a row per rank and a column per value of `hue`, in the order of the table."""
    if table.empty or table.duplicated([x, hue]).any():
        raise Refused(f"{len(table)} rows for {table[x].nunique()} ranks: pass one row per {x} and {hue}")
    return table.pivot_table(index=x, columns=hue, values=y, sort=False, fill_value=0).sort_index()


def _frame(ax: Axes, ranks: Sequence[int], x: str, y: str, *, title: str, subtitle: str = "") -> None:
    step = max(1, len(ranks) // 16)
    ax.set_xticks(range(0, len(ranks), step), list(ranks[::step]))
    ax.set_xlabel(require_column(x).axis_label)
    ax.set_ylabel(require_column(y).axis_label)
    ax.yaxis.set_major_formatter(lambda value, _: format_tick(ax.yaxis, value))
    ax.grid(visible=False, axis="x")
    names = ax.get_legend_handles_labels()[1]
    columns = len(names) if sum(map(len, names)) < LEGEND_WIDTH else 2
    ax.legend(frameon=False, ncols=columns, loc="upper center", bbox_to_anchor=(0.5, -0.18))
    head(ax, title, subtitle)
    lines = -(-len(names) // columns)
    caption(ax, "computed, not measured", below_points=52 + 16 * lines)

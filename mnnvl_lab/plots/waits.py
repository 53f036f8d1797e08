"""Who waits for whom: ranks in a circle, an arrow from each that waits to the one it waits for."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from mnnvl_lab.plots.look import BLUE, QUIET, VERMILLION, caption, head, ink_on, new_axes, style

if TYPE_CHECKING:
    from matplotlib.axes import Axes

NODE_POINTS = 15  # radius, also where arrows end
WAITING, MISSING, FREE = BLUE, VERMILLION, "#BBBBBB"


def waits(table: pd.DataFrame, *, ax: Axes | None = None) -> Axes:
    """The post-mortem of a hang as a graph.

    Args:
        table: one row a rank, as `Verdict.to_frame` makes it.
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
        head(ax, _title(table), "an arrow leads from a rank that waits to the one that it waits for", above_points=2)
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
    ax.text(*place, str(row.rank), ha="center", va="center", color=ink_on(fill), weight="bold", size=11)
    x, y = 1.24 * place[0], 1.22 * place[1]
    side = "center" if abs(x) < 0.2 else "left" if x > 0 else "right"
    words = f"{row.phase or row.state}\nDP {row.dp} · TP {row.tp}"
    ax.text(x, y, words, ha=side, va="center", color=MISSING if row.never_arrived else QUIET, size=8)


def _title(table: pd.DataFrame) -> str:
    missing = table.loc[table["never_arrived"], "rank"].tolist()
    if missing:
        return f"rank {', '.join(map(str, missing))} never arrived"
    return "ranks wait for each other" if table["waits_for"].map(len).any() else "no rank waits for another"

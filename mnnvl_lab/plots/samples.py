"""Every sample of a few points side by side: what a median stands for, and what it hides."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from mnnvl_lab import crossover
from mnnvl_lab.errors import Refused
from mnnvl_lab.plots.look import CYCLE, FAINT, INK, QUIET, caption, head, load_words, new_axes, origin, style
from mnnvl_lab.plots.scales import dress
from mnnvl_lab.records import slowest_rank

if TYPE_CHECKING:
    from matplotlib.axes import Axes

HEIGHT = 0.22
"""Half height of a row's cloud of dots; they are shifted for the eye alone, in the order of the iterations."""


def draw(table: pd.DataFrame, *, by: tuple[str, ...] = ("clock", "phase"), ax: Axes | None = None) -> Axes:
    """A row a clock and phase: a dot an iteration, at its slowest rank; the other ranks' samples pale behind.

    Args:
        table: samples of all ranks, one point for each value of `by`.
        by: columns that tell the rows apart, in the order of the table.

    Raises:
        Refused: samples of several points in one row.
    """
    groups = [(" · ".join(map(str, key)), rows) for key, rows in table.groupby(list(by), sort=False)]
    with style():
        ax = new_axes(ax, height=1.5 + 0.72 * len(groups))
        for row, (_, samples) in enumerate(groups):
            _row(ax, row, samples, CYCLE[row % len(CYCLE)])
        ax.set_yticks(range(len(groups)), [name for name, _ in groups])
        ax.invert_yaxis()
        dress(ax.xaxis, "latency_us", table["latency_us"].to_numpy())
        ax.grid(visible=False, axis="y")
        head(ax, "Every sample, and the median that stands for them", load_words(table))
        others = "; pale: other ranks" if table["rank"].nunique() > 1 else ""
        caption(ax, origin(table), f"dot: slowest rank of an iteration{others}; line: median, in its 95 % band")
    return ax


def _row(ax: Axes, row: int, samples: pd.DataFrame, color: str) -> None:
    slowest = slowest_rank(samples)
    if slowest["iteration"].duplicated().any():
        raise Refused("samples of several points in one row: their dots would mix; select one, or name more in `by`")
    ax.plot(samples["latency_us"], _places(row, samples["iteration"]), ".", color=FAINT, markersize=4, zorder=1)
    ax.plot(slowest["latency_us"], _places(row, slowest["iteration"]), ".", color=color, markersize=5, zorder=2)
    point = slowest.iloc[0]
    median = crossover.medians(samples, clock=point["clock"], phase=point["phase"]).iloc[0]
    ax.fill_betweenx([row - 0.28, row + 0.28], median["low_us"], median["high_us"], color=QUIET, alpha=0.3, linewidth=0)
    ax.plot([median["p50_us"]] * 2, [row - 0.28, row + 0.28], color=INK, linewidth=1.4, gid="median")
    ax.annotate(
        f"{median['p50_us']:.1f}", (median["p50_us"], row - 0.31), ha="center", va="bottom", fontsize=8.5, color=INK
    )


def _places(row: int, iterations: pd.Series) -> np.ndarray:
    """From top to bottom of a row in the order of time, so that a drift is seen."""
    return row + HEIGHT * (2 * iterations.to_numpy() / max(1, iterations.max()) - 1)

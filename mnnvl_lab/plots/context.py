"""Published figures in grey behind measured ones: context, with who published them below."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from itertools import cycle
from typing import TYPE_CHECKING

import pandas as pd

from mnnvl_lab.errors import Refused
from mnnvl_lab.plots.look import QUIET

if TYPE_CHECKING:
    from matplotlib.axes import Axes

DASHES = ((0, (1, 1.5)), (0, (4, 1.5)), (0, (5, 1.5, 1, 1.5)), "solid")
ROOM = 4
"""Times the upper end of a logarithmic axis, for the names of the published lines."""


def context(
    ax: Axes, figures: pd.DataFrame, *, x: str = "tokens", by: Sequence[str] = ("library", "device", "devices")
) -> Axes:
    """Add published figures to a figure that is already drawn.

    Args:
        ax: of `plots.latency` or another function of this package, which has a caption.
        figures: rows of `published.load`, of one quantity and unit.
        x: column along the axis.
        by: columns that tell the lines apart, and name them.

    Raises:
        Refused: figures of several quantities, units, phases or clocks, which one line of an axis cannot mean; or
            none that has a place along `x`.
    """
    for name in ("quantity", "unit", "phase", "clock"):
        if figures[name].nunique() != 1:
            raise Refused(f"{name} has the values {', '.join(figures[name].unique())}: draw one; select it first")
    figures, before = figures.dropna(subset=[x, "value"]), ax.get_ylim()
    if figures.empty:
        raise Refused(f"no published figure has both {x} and a value: there is nothing to draw; select other rows")
    lines = []
    for (names, line), dashes in zip(figures.groupby(list(by), sort=False), cycle(DASHES), strict=False):
        rows = line.sort_values(x)
        label = " · ".join(str(name) for name in names if name != "")
        xs, ys = rows[x].to_numpy(float), rows["value"].to_numpy(float)
        lines += ax.plot(xs, ys, color=QUIET, alpha=0.75, linestyle=dashes, linewidth=1.2, marker=".", label=label)
    low, high = ax.get_ylim()
    ax.set_ylim(low, high * ROOM if ax.get_yscale() == "log" else high)
    _move_labels(ax, before)
    legend = ax.legend(
        handles=lines, title=_title(figures), loc="upper left", frameon=False, fontsize=8, title_fontsize=8
    )
    legend.set_alignment("left")
    legend.set_gid("published")
    sources = "; ".join(figures["source"].unique())
    _extend_caption(ax, f"grey, for context: {sources}")
    return ax


def _title(figures: pd.DataFrame) -> str:
    """Their devices and EP sizes, which are seldom those of the figure."""
    devices = ", ".join(figures["device"].unique())
    sizes = ", ".join(str(size) for size in sorted(figures["ep_size"].dropna().unique()))
    return f"published elsewhere: {devices}" + (f", EP {sizes}" if sizes else "")


def _move_labels(ax: Axes, before: tuple[float, float]) -> None:
    """The names at the ends of the measured lines stand at a share of the height, which has changed."""
    heights = ax.yaxis.get_transform()
    (old_low, old_high), (low, high) = heights.transform(before), heights.transform(ax.get_ylim())
    for text in ax.texts:
        if text.get_gid() == "label":
            x, share = text.xy
            text.xy = (x, (old_low + share * (old_high - old_low) - low) / (high - low))


def _extend_caption(ax: Axes, words: str) -> None:
    for text in ax.texts:
        if text.get_gid() == "caption":
            text.set_text(f"{text.get_text()}\n{textwrap.fill(words, 88)}")

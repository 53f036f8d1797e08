"""How far a latency model misses: its predictions of points that its fit had not seen, against their records."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pandas as pd

from mnnvl_lab.plots.look import FAINT, QUIET, Stroke, caption, head, new_axes, strokes, style
from mnnvl_lab.plots.scales import dress

if TYPE_CHECKING:
    from matplotlib.axes import Axes

BANDS_PERCENT = (10, 25)
"""Shaded about 0: what a median and what a single point is to stay within."""


def prediction_errors(table: pd.DataFrame, *, device: str, ax: Axes | None = None) -> Axes:
    """Error of each point over its recorded latency; filled where each rank has a GPU of its own.

    Args:
        table: as `latency_model.leave_one_out` and `held_against` return it.
        device: of the records.
    """
    with style():
        ax = new_axes(ax)
        for percent in BANDS_PERCENT:
            ax.axhspan(-percent, percent, color=FAINT, alpha=0.35, linewidth=0, zorder=0)
        for mode, stroke in strokes(list(table["mode"].unique())).items():
            of_mode = table[table["mode"] == mode]
            for place, (fabric, points) in enumerate(of_mode.groupby("fabric", sort=False)):
                _points(ax, points, stroke, alone=fabric == "nvlink", label=None if place else stroke.label)
        ax.axhline(0, color=QUIET, linewidth=0.8, zorder=1)
        dress(ax.xaxis, "latency_us", table["latency_us"].to_numpy())
        ax.set_xlabel("Recorded latency of a round (µs)")
        ax.set_ylabel("Predicted, above or below the record (%)")
        ax.legend(frameon=False, ncols=2, loc="upper right")
        head(ax, "How far predictions of points left out of the fit miss", _words(table))
        bands = " and ".join(map(str, BANDS_PERCENT))
        caption(ax, f"{device} · graph clock", f"{_markers(table)} · bands: {bands} %")
    return ax


def _points(ax: Axes, points: pd.DataFrame, stroke: Stroke, *, alone: bool, label: str | None) -> None:
    ax.scatter(
        points["latency_us"],
        points["error_percent"],
        marker=stroke.marker,
        s=26,
        facecolor=stroke.color if alone else "none",
        edgecolor=stroke.color,
        label=label,
        gid="filled" if alone else "hollow",
        zorder=3 if alone else 2,
    )


def _markers(table: pd.DataFrame) -> str:
    """What the markers that are drawn mean."""
    alone = table["fabric"] == "nvlink"
    words = {"filled: one GPU per rank": alone.any(), "hollow: ranks share GPUs": (~alone).any()}
    return "; ".join(text for text, drawn in words.items() if drawn)


def _words(table: pd.DataFrame) -> str:
    sizes = ", ".join(map(str, sorted(table["ep_size"].unique())))
    return f"EP {sizes} · {', '.join(table['format'].unique())} · {', '.join(table['routing'].unique())} routing"

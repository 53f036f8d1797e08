"""Predictions, their errors and simulations as figures: dashed and named as such, never drawn like a measurement."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from mnnvl_lab.errors import Refused
from mnnvl_lab.plots.style import (
    BLUE,
    FAINT,
    GREEN,
    ORANGE,
    QUIET,
    caption,
    format_axis,
    head,
    line_styles,
    new_axes,
    style,
)

if TYPE_CHECKING:
    from matplotlib.axes import Axes

WITHIN_PERCENT = 10
"""What a median error is to stay within: shaded."""
EXTRAPOLATED = " extrapolated"
PHASE_COLORS = {"dispatch": BLUE, "experts": ORANGE, "combine": GREEN}


def predictions(table: pd.DataFrame, *, x: str = "tokens", hue: str = "mode", ax: Axes | None = None) -> Axes:
    """Predicted rounds, dashed with their 95 % interval as a band, and their lower bounds dotted.

    Args:
        table: of `Forecast.to_frame()`.
        x, hue: columns along the axis and told by colour.

    Raises:
        Refused: the table holds something else than predictions.
    """
    if set(table["kind"]) != {"prediction"}:
        raise Refused("the table holds rows that are no predictions: pass Forecast.to_frame()")
    drawn = table[table["latency_us"].notna()].sort_values(x)
    with style():
        ax = new_axes(ax)
        for value, stroke in line_styles(list(drawn[hue].unique())).items():
            line = drawn[drawn[hue] == value]
            ax.fill_between(line[x], line["low_us"], line["high_us"], color=stroke.color, alpha=0.15, linewidth=0)
            ax.plot(line[x], line["latency_us"], "--", color=stroke.color, label=f"{stroke.label}, predicted")
            ax.plot(line[x], line["bound_us"], ":", color=stroke.color, linewidth=1)
        format_axis(ax.xaxis, x, drawn[x].to_numpy())
        format_axis(ax.yaxis, "latency_us", drawn[["low_us", "high_us"]].to_numpy().ravel())
        ax.set_ylim(drawn["low_us"].min() / 2, drawn["high_us"].max() * 1.5)
        ax.legend(frameon=False, loc="upper left")
        head(ax, "Predicted latency of a round", "dashed: prediction, band: 95 %, dotted: lower bound")
        caption(ax, *_bases(drawn["basis"].unique()), "predicted, not measured")
    return ax


def _bases(texts: Sequence[str]) -> list[str]:
    """Where the numbers come from, each source once, with all that was extrapolated from it."""
    beyond: dict[str, dict[str, None]] = {}
    for text in texts:
        source, mark, rest = text.rpartition("; ") if text.endswith(EXTRAPOLATED) else (text, "", "")
        names = rest.removesuffix(EXTRAPOLATED).split(", ") if mark else []
        beyond.setdefault(source, {}).update(dict.fromkeys(names))
    return [f"{source}; {', '.join(names)}{EXTRAPOLATED}" if names else source for source, names in beyond.items()]


def left_out_errors(table: pd.DataFrame, *, x: str = "tokens", hue: str = "ep_size", ax: Axes | None = None) -> Axes:
    """Error of each figure predicted by a fit that had not seen its EP size.

    Args:
        table: of `prediction.left_out_errors`: `phase, ep_size, tokens, error_percent`.
        x, hue: columns along the axis and told by colour and marker.
    """
    sizes = table["error_percent"].abs()
    with style():
        ax = new_axes(ax)
        ax.axhspan(-WITHIN_PERCENT, WITHIN_PERCENT, color=FAINT, alpha=0.4, linewidth=0, zorder=0)
        for value, stroke in line_styles(sorted(table[hue].unique()), hue).items():
            of_value = table[table[hue] == value]
            ax.scatter(
                of_value[x],
                of_value["error_percent"],
                marker=stroke.marker,
                s=16,
                facecolor="none",
                edgecolor=stroke.color,
                label=stroke.label,
            )
        ax.axhline(0, color=QUIET, linewidth=0.8, zorder=1)
        format_axis(ax.xaxis, x, table[x].to_numpy())
        ax.set_ylabel("Predicted, above or below the figure (%)")
        ax.legend(frameon=False, ncols=3)
        head(ax, "Errors of EP sizes left out of the fit", f"median {sizes.median():.1f} %, worst {sizes.max():.0f} %")
        caption(ax, f"{', '.join(table['phase'].unique())} · published figures, balanced routing")
    return ax


def simulated_round(table: pd.DataFrame, *, x: str = "begin_us", hue: str = "phase", ax: Axes | None = None) -> Axes:
    """A simulated round: one line per rank, coloured while it works, pale while it waits.

    Args:
        table: of `simulate_round(...).table`.
        x, hue: columns of the beginning and of what is told by colour.

    Raises:
        Refused: the table is no simulation.
    """
    if set(table["kind"]) != {"simulation"}:
        raise Refused("the table is no simulation: pass the table of simulate_round")
    with style():
        ax = new_axes(ax, height=5.2)
        for value, rows in table.groupby(hue, sort=False):
            color = PHASE_COLORS.get(value, QUIET)
            width = rows["end_us"] - rows[x]
            ax.barh(rows["rank"], width, left=rows[x], color=color, height=0.8, label=value)
            ax.barh(rows["rank"], rows["idle_us"], left=rows["end_us"], color=color, alpha=0.2, height=0.8)
        ax.set_xlabel("Time in the round (µs), simulated")
        ax.set_ylabel("EP rank")
        ax.grid(visible=False, axis="y")
        ax.invert_yaxis()
        ax.legend(frameon=False, ncols=3, loc="upper center", bbox_to_anchor=(0.5, -0.12))
        waits = float(np.median(table.groupby("rank")["idle_us"].sum()) / table["end_us"].max())
        head(ax, "One round, rank by rank", f"a median rank waits {waits:.0%} of the round; pale: waiting")
        caption(ax, "simulated, not measured", below_points=64)
    return ax

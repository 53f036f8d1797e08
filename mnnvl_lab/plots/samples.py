"""Who waits for whom in one operation, and what a straggler costs the others."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from mnnvl_lab.analysis import crossover
from mnnvl_lab.analysis.skew import entries
from mnnvl_lab.errors import Refused
from mnnvl_lab.plots.style import (
    BLUE,
    CYCLE,
    FAINT,
    INK,
    QUIET,
    caption,
    format_axis,
    format_load,
    head,
    line_styles,
    new_axes,
    origin,
    style,
)
from mnnvl_lab.records import require_column, slowest_rank

if TYPE_CHECKING:
    from matplotlib.axes import Axes


def timeline(
    table: pd.DataFrame,
    *,
    iteration: int | None = None,
    phase: str = "dispatch",
    hue: str = "delay_us",
    ax: Axes | None = None,
) -> Axes:
    """One operation: one bar per rank, from its entry to its end, light while it waits for the last rank to enter.

    Args:
        table: samples of all ranks of one point, of clock `eager`.
        iteration: which; by default the one whose slowest rank is the median.
        phase: which operation.
        hue: point column that is named below the title.

    Raises:
        Refused: no such samples, or samples of several points.
    """
    split = entries(table[table["phase"] == phase])
    chosen = _median_iteration(split) if iteration is None else iteration
    bars = split[split["iteration"] == chosen].sort_values("rank")
    if bars.empty or bars["rank"].duplicated().any():
        raise Refused(
            f"{len(bars)} samples of {phase}, iteration {chosen}: a timeline shows one sample per rank; "
            "pass the samples of one point and an iteration that it has"
        )
    with style():
        ax = new_axes(ax, height=1.4 + 0.45 * len(bars))
        rows = np.arange(len(bars))
        ax.barh(rows, bars["wait_us"], left=bars["entered_us"], color=FAINT, label="waits for the last rank")
        moving_from = bars["entered_us"] + bars["wait_us"]
        ax.barh(rows, bars["moving_us"], left=moving_from, color=BLUE, label="moves its rows")
        ax.axvline(bars["entered_us"].max(), color=INK, linewidth=1, linestyle=":", gid="last entry")
        ax.set_yticks(rows, [f"rank {rank}" for rank in bars["rank"]])
        ax.invert_yaxis()
        ax.grid(visible=False, axis="y")
        ax.set_xlabel("Time since the first rank entered (µs)")
        ax.legend(loc="upper center", bbox_to_anchor=(0.5, 0), borderaxespad=3.6, ncols=2, frameon=False)
        head(ax, f"Who waits for whom in {phase}", _subtitle(bars, hue, chosen))
        caption(ax, origin(table), "entries by the host's clock", below_points=72)
    return ax


def others_wait(
    effect: pd.DataFrame, *, x: str = "delay_us", hue: str = "mode", words: str = "", ax: Axes | None = None
) -> Axes:
    """Growth of the others' latency over the delay of one rank, with the line on which both are equal.

    Args:
        effect: of `measure.skew.straggler_effect`.
        x, hue: columns of the delay and of what colour tells.
        words: for the caption, such as `look.origin` of the samples.
    """
    with style():
        ax = new_axes(ax, height=4.8)
        ends = [0.0, float(effect[x].max())]
        ax.plot(ends, ends, color=QUIET, linestyle="--", linewidth=1, label="growth = delay", gid="identity")
        for value, stroke in line_styles(list(effect[hue].unique())).items():
            line = effect[effect[hue] == value].sort_values(x)
            marks = {"color": stroke.color, "marker": stroke.marker, "label": stroke.label}
            ax.plot(line[x], line["growth_us"], **marks, gid=f"growth {value}")
            ax.plot(line[x], line["delayed_p50_us"], **marks | {"label": None}, linestyle=":", gid=f"delayed {value}")
        ax.set_xlabel("Delay of one rank (µs)")
        ax.set_ylabel("Growth of the others' latency (µs)")
        ax.legend(frameon=False)
        head(ax, "What a late rank costs the others", format_load(effect, (hue,)))
        caption(ax, *filter(None, [words]), "medians over iterations; dotted: latency of the late rank itself")
    return ax


def _median_iteration(split: pd.DataFrame) -> int:
    slowest = split.groupby("iteration")["latency_us"].max()
    return int((slowest - slowest.median()).abs().idxmin()) if len(slowest) else 0


def _subtitle(bars: pd.DataFrame, hue: str, iteration: int) -> str:
    column = require_column(hue)
    values = (
        [f"{column.label.lower()} {_shown(bars[hue].iloc[0])} {column.unit}".strip()] if hue in bars.columns else []
    )
    return " · ".join([*values, f"iteration {iteration}", format_load(bars)])


def _shown(value: object) -> str:
    return f"{value:g}" if isinstance(value, float) else str(value)


HEIGHT = 0.22
"""Half height of a row's cloud of dots; they are shifted for the eye alone, in the order of the iterations."""


def every_sample(table: pd.DataFrame, *, by: tuple[str, ...] = ("clock", "phase"), ax: Axes | None = None) -> Axes:
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
        format_axis(ax.xaxis, "latency_us", table["latency_us"].to_numpy())
        ax.grid(visible=False, axis="y")
        head(ax, "Every sample, and the median that stands for them", format_load(table))
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

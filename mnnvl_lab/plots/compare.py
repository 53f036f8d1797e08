"""Two records beside each other: by how much the second's points are slower or faster, and which surely are."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import cycle
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from mnnvl_lab.analysis import crossover
from mnnvl_lab.errors import Refused
from mnnvl_lab.plots.lines import require_unmixed
from mnnvl_lab.plots.style import (
    FAINT,
    QUIET,
    LineStyle,
    caption,
    fold,
    format_axis,
    format_load,
    head,
    line_styles,
    new_axes,
    note,
    origin,
    style,
)
from mnnvl_lab.records.compare import VERDICTS
from mnnvl_lab.records.schema import OPTIONS, SIZES
from mnnvl_lab.records.table import parts_of

if TYPE_CHECKING:
    from matplotlib.axes import Axes

LEAST_REACH_PERCENT = 1.0
"""The axis reaches so far at least: a tenth of a per cent is to look like one."""
ROOM_FOR_WORDS = 0.06
"""Share of the axis kept free at its ends, where it is said which side is the faster."""
SIDES = (("first", "origin_a"), ("second", "origin_b"))
LEGEND_ROOM = 1.2
"""Factor of the axis above 1, so that the legend covers no line."""
APART = 1.05
"""Factor along the axis between neighbouring lines, so that no interval hides another."""


def comparison(table: pd.DataFrame, *, x: str = "tokens", hue: str = "mode", ax: Axes | None = None) -> Axes:
    """Median of the second record over the first's, per cent, with the interval that the samples leave open.

    Markers are filled where the verdict is that the samples differ, hollow where they could be of one distribution.

    Args:
        table: as `records.compare` returns it, of one clock and phase.
        x, hue: point columns: one along the axis, one told by colour and marker.

    Raises:
        Refused: a further point column has several values, so that a line would mix what does not compare.
    """
    require_unmixed(table, x, hue)
    ordered = table.sort_values(x)
    drawn = line_styles(list(ordered[hue].drop_duplicates().sort_values()))
    with style():
        ax = new_axes(ax)
        ax.axhline(0, color=QUIET, linewidth=1.0, zorder=1)
        for place, (value, stroke) in enumerate(drawn.items()):
            _line(ax, ordered[ordered[hue] == value], x, stroke, APART ** (place - (len(drawn) - 1) / 2))
        format_axis(ax.xaxis, x, ordered[x].to_numpy())
        ax.grid(visible=False, axis="x")
        _format_changes(ax)
        ax.legend(
            frameon=False, ncols=len(drawn), loc="lower left", bbox_to_anchor=(0, 1), borderaxespad=0.2, fontsize=8.5
        )
        phase, clock, fabric = (table[name].iloc[0] for name in ("phase", "clock", "fabric"))
        title = f"{phase.capitalize()}, second record over first: {_counted(table)}"
        head(ax, title, format_load(table, (x, hue)), above_points=24)
        caption(
            ax,
            f"{fabric} · {clock} clock · medians over iterations of the slowest rank",
            *(f"{name}: {_origin(table.attrs.get(key, {}))}" for name, key in SIDES),
            *_markers(ordered),
        )
    return ax


def _markers(table: pd.DataFrame) -> list[str]:
    """What the markers and bars that are drawn mean."""
    differ = table["verdict"].isin(("faster", "slower"))
    markers = {
        "filled: samples differ": differ.any(),
        "hollow: they could be of one distribution, or are too few to tell": (~differ).any(),
    }
    lines = ["; ".join(text for text, drawn in markers.items() if drawn)]
    if np.isfinite(table["high_percent"]).any():
        lines.append("bar: changes that the samples of the point leave open")
    return lines


def _line(ax: Axes, line: pd.DataFrame, x: str, stroke: LineStyle, shift: float) -> None:
    xs = line[x] * shift
    known = np.isfinite(line["high_percent"])  # too few samples leave every change open
    bars = line.loc[known, ["low_percent", "high_percent"]]
    ax.vlines(xs[known], *bars.to_numpy().T, color=stroke.color, alpha=0.6, linewidth=1.4, zorder=2)
    ax.plot(xs, line["change_percent"], color=stroke.color, alpha=0.35, linewidth=1.0, zorder=2)
    for verdict, fill in (("different", stroke.color), ("same", "white")):
        chosen = line["verdict"].isin(("faster", "slower")) == (verdict == "different")
        ax.plot(
            xs[chosen],
            line.loc[chosen, "change_percent"],
            linestyle="none",
            marker=stroke.marker,
            markerfacecolor=fill,
            markeredgecolor=stroke.color,
            color=stroke.color,
            gid=verdict,
            zorder=3,
        )
    ax.plot([], [], color=stroke.color, marker=stroke.marker, label=stroke.label)


def _format_changes(ax: Axes) -> None:
    low, high = ax.get_ylim()
    low, high = min(low, -LEAST_REACH_PERCENT), max(high, LEAST_REACH_PERCENT)
    room = ROOM_FOR_WORDS * (high - low)
    ax.set_ylim(low - room, high + room)
    ax.yaxis.set_major_formatter(lambda percent, _: f"{percent:+.3g}" if abs(percent) > 1e-9 else "0")
    ax.set_ylabel("Latency, second over first (%)")
    for height, direction, va in ((1, "slower", "top"), (0, "faster", "bottom")):
        sign = -4 if height else 4
        note(ax, f"second is {direction}", xy=(0, height), offset=(4, sign), ha="left", va=va, size=8, gid="side")


def _counted(table: pd.DataFrame) -> str:
    counts = table["verdict"].value_counts()
    return ", ".join(f"{counts[verdict]} {verdict}" for verdict in VERDICTS if verdict in counts)


def _origin(provenance: Mapping[str, object]) -> str:
    """Device, day and commit of one side."""
    parts = parts_of(provenance)
    devices, days, commits = (
        dict.fromkeys(str(part.get(name, "unknown"))[:length] for part in parts)
        for name, length in (("device", None), ("created_at", 10), ("commit", 9))
    )
    return f"{', '.join(devices)} · {', '.join(days)} · commit {', '.join(commits)}"


def fastest(table: pd.DataFrame, *, clock: str | None = None, phase: str = "round", ax: Axes | None = None) -> Axes:
    """Latency relative to the fastest contender, with the medians' confidence intervals and the places of change.

    Args:
        table: samples of all ranks, of one load at several token counts.
        clock, phase: which samples; by default of the table's only clock, or of `graph` if it has several.

    Raises:
        Refused: the samples are of several loads.
    """
    clock = clock or crossover.usual_clock(table)
    medians = crossover.medians(table, clock=clock, phase=phase)
    medians = medians[medians["tokens"] > 0].sort_values("tokens")
    _require_one_load(medians)
    fastest = medians.groupby("tokens")["p50_us"].transform("min")
    relative = medians.assign(**{name: medians[name] / fastest for name in ("p50_us", "low_us", "high_us")})
    with style():
        ax = new_axes(ax)
        last = relative.groupby("contender")["p50_us"].last()  # the legend in the order of the lines' ends
        for name, stroke in sorted(_line_styles(relative).items(), key=lambda item: -last[item[0]]):
            line = relative[relative["contender"] == name]
            ax.plot(line["tokens"], line["p50_us"], color=stroke.color, marker=stroke.marker, label=stroke.label)
            ax.fill_between(
                line["tokens"], line["low_us"], line["high_us"], color=stroke.color, alpha=0.16, linewidth=0
            )
        changes = crossover.crossings(table, clock=clock, phase=phase)
        for change in changes.itertuples():
            ax.axvspan(change.tokens_low, change.tokens_high, color=QUIET, alpha=0.25, linewidth=0, gid="crossing")
        ax.axhline(1, color=QUIET, linewidth=0.8, zorder=1)
        format_axis(ax.xaxis, "tokens", relative["tokens"].to_numpy())
        ax.set_ylabel("Median latency over the fastest's")
        ax.set_ylim(top=1 + LEGEND_ROOM * (ax.get_ylim()[1] - 1))
        ax.legend(frameon=False, ncols=2, loc="upper left")
        head(ax, f"Who is ahead at a {phase}, by tokens per rank", format_load(table, ("tokens",)))
        shown = table[(table["clock"] == clock) & (table["phase"] == phase)]
        words = "bands: 95 % of the median" + ("; grey: where two change places" if len(changes) else "")
        caption(ax, f"{origin(shown)} · {words}")
    return ax


def _line_styles(relative: pd.DataFrame) -> dict:
    """A mode's own stroke where it is used in one way only."""
    names = relative.groupby("contender")["mode"].first()
    modes = names if names.is_unique else pd.Series(names.index, index=names.index)
    found = line_styles(list(modes))
    return {name: found[mode] for name, mode in modes.items()}


def _require_one_load(medians: pd.DataFrame) -> None:
    apart = ("tokens", "mode", *SIZES, *OPTIONS)
    for name in crossover.WITHIN:
        if name in medians.columns and name not in apart and medians[name].nunique() > 1:
            values = ", ".join(map(str, medians[name].unique()))
            raise Refused(f"{name} has the values {values}: who is ahead is asked of one load; select one of these")


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
            text.set_text(f"{text.get_text()}\n{fold(words)}")


BANDS_PERCENT = (10, 25)
"""Shaded about 0: what a median and what a single point is to stay within."""


def prediction_errors(table: pd.DataFrame, *, device: str, ax: Axes | None = None) -> Axes:
    """Error of each point over its recorded latency; filled where each rank has a GPU of its own.

    Args:
        table: as `latency_model.leave_one_out` and `holdout_errors` return it.
        device: of the records.
    """
    with style():
        ax = new_axes(ax)
        for percent in BANDS_PERCENT:
            ax.axhspan(-percent, percent, color=FAINT, alpha=0.35, linewidth=0, zorder=0)
        for mode, stroke in line_styles(list(table["mode"].unique())).items():
            of_mode = table[table["mode"] == mode]
            for place, (fabric, points) in enumerate(of_mode.groupby("fabric", sort=False)):
                _points(ax, points, stroke, alone=fabric == "nvlink", label=None if place else stroke.label)
        ax.axhline(0, color=QUIET, linewidth=0.8, zorder=1)
        format_axis(ax.xaxis, "latency_us", table["latency_us"].to_numpy())
        ax.set_xlabel("Recorded latency of a round (µs)")
        ax.set_ylabel("Predicted, above or below the record (%)")
        ax.legend(frameon=False, ncols=2, loc="upper right")
        head(ax, "How far predictions of points left out of the fit miss", _words(table))
        bands = " and ".join(map(str, BANDS_PERCENT))
        caption(ax, f"{device} · graph clock", f"{_error_markers(table)} · bands: {bands} %")
    return ax


def _points(ax: Axes, points: pd.DataFrame, stroke: LineStyle, *, alone: bool, label: str | None) -> None:
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


def _error_markers(table: pd.DataFrame) -> str:
    """What the markers that are drawn mean."""
    alone = table["fabric"] == "nvlink"
    words = {"filled: one GPU per rank": alone.any(), "hollow: ranks share GPUs": (~alone).any()}
    return "; ".join(text for text, drawn in words.items() if drawn)


def _words(table: pd.DataFrame) -> str:
    sizes = ", ".join(map(str, sorted(table["ep_size"].unique())))
    return f"EP {sizes} · {', '.join(table['format'].unique())} · {', '.join(table['routing'].unique())} routing"

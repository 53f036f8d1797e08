"""Two records beside each other: by how much the second's points are slower or faster, and which surely are."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from mnnvl_lab.plots.lines import require_unmixed
from mnnvl_lab.plots.look import QUIET, Stroke, caption, head, load_words, new_axes, note, strokes, style
from mnnvl_lab.plots.scales import dress
from mnnvl_lab.records.compare import VERDICTS
from mnnvl_lab.records.tables import parts_of

if TYPE_CHECKING:
    from matplotlib.axes import Axes

LEAST_REACH_PERCENT = 1.0
"""The axis reaches so far at least: a tenth of a per cent is to look like one."""
ROOM_FOR_WORDS = 0.06
"""Share of the axis kept free at its ends, where it is said which side is the faster."""
SIDES = (("first", "origin_a"), ("second", "origin_b"))
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
    drawn = strokes(list(ordered[hue].drop_duplicates().sort_values()))
    with style():
        ax = new_axes(ax)
        ax.axhline(0, color=QUIET, linewidth=1.0, zorder=1)
        for place, (value, stroke) in enumerate(drawn.items()):
            _line(ax, ordered[ordered[hue] == value], x, stroke, APART ** (place - (len(drawn) - 1) / 2))
        dress(ax.xaxis, x, ordered[x].to_numpy())
        ax.grid(visible=False, axis="x")
        _dress_changes(ax)
        ax.legend(
            frameon=False, ncols=len(drawn), loc="lower left", bbox_to_anchor=(0, 1), borderaxespad=0.2, fontsize=8.5
        )
        phase, clock, fabric = (table[name].iloc[0] for name in ("phase", "clock", "fabric"))
        title = f"{phase.capitalize()}, second record over first: {_counted(table)}"
        head(ax, title, load_words(table, (x, hue)), above_points=24)
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


def _line(ax: Axes, line: pd.DataFrame, x: str, stroke: Stroke, shift: float) -> None:
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


def _dress_changes(ax: Axes) -> None:
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

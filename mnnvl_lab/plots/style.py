"""Style of every figure: colours, titles, axes, and the caption that says what was measured where."""

from __future__ import annotations

import re
import textwrap
from collections.abc import Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from numbers import Real
from types import MappingProxyType
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from mnnvl_lab.plots.shown import describe_figures
from mnnvl_lab.records import provenance_of, require_column
from mnnvl_lab.records.schema import LOAD_WORDS
from mnnvl_lab.records.table import parts_of

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.axis import Axis

# Okabe and Ito, "Color Universal Design" (2008): told apart by readers with any colour vision.
BLUE, VERMILLION, GREEN, PURPLE = "#0072B2", "#D55E00", "#009E73", "#CC79A7"
ORANGE, SKY, YELLOW, BLACK = "#E69F00", "#56B4E9", "#F0E442", "#000000"
INK, QUIET, FAINT = "#222222", "#6B6B6B", "#D9D9D9"
CYCLE = (BLUE, VERMILLION, GREEN, PURPLE, ORANGE, SKY, BLACK)
MARKERS = "os^DvPX"

RC: Mapping[str, object] = MappingProxyType(
    {
        "font.size": 10,
        "axes.titlesize": 11,
        "axes.titleweight": "bold",
        "axes.titlelocation": "left",
        "axes.spines.top": False,
        "axes.spines.right": False,
        "axes.edgecolor": QUIET,
        "axes.labelcolor": INK,
        "xtick.color": QUIET,
        "ytick.color": QUIET,
        "xtick.labelcolor": INK,
        "ytick.labelcolor": INK,
        "axes.grid": True,
        "axes.axisbelow": True,
        "grid.color": "#EBEBEB",
        "grid.linewidth": 0.8,
        "lines.linewidth": 1.8,
        "lines.markersize": 5.5,
        "figure.dpi": 110,
        "savefig.dpi": 150,
    }
)


@dataclass(frozen=True, kw_only=True)
class LineStyle:
    """How one value of a hue is drawn, in every figure alike."""

    label: str
    color: str
    marker: str


LINE_STYLES: Mapping[str, LineStyle] = MappingProxyType(
    {
        "one_sided": LineStyle(label="one-sided", color=BLUE, marker="o"),
        "two_sided": LineStyle(label="two-sided", color=VERMILLION, marker="s"),
        "pico": LineStyle(label="pico", color=ORANGE, marker="P"),
        "allgather_reducescatter": LineStyle(label="all-gather / reduce-scatter", color=GREEN, marker="^"),
        "all_to_all": LineStyle(label="all-to-all", color=PURPLE, marker="D"),
    }
)


def line_styles(values: Sequence[object], hue: str = "") -> dict[object, LineStyle]:
    """A stroke for each value of the column `hue`: a mode's own, else the next of the palette."""
    free = {
        value: LineStyle(label=_named(hue, value), color=CYCLE[i % len(CYCLE)], marker=MARKERS[i % len(MARKERS)])
        for i, value in enumerate(values)
    }
    return {value: LINE_STYLES.get(value, free[value]) for value in values}


def _named(column: str, value: object) -> str:
    """A value in words: a number says nothing without its column."""
    return LOAD_WORDS.get(column, "{}").format(value) if isinstance(value, Real) else str(value)


@contextmanager
def style():
    """Context in which other figures look like these: `with plots.style(): ...`.

    Only its own settings are put back: a notebook's backend, which the first figure loads, sets some for good.
    """
    from matplotlib import rcParams

    before = {name: rcParams[name] for name in RC}
    rcParams.update(RC)
    try:
        yield
    finally:
        rcParams.update(before)


def new_axes(ax: Axes | None, *, width: float = 7.2, height: float = 4.4) -> Axes:
    """`ax`, or the Axes of a new figure of so many inches."""
    if ax is not None:
        return ax
    from matplotlib import pyplot

    describe_figures()
    return pyplot.subplots(figsize=(width, height), layout="constrained")[1]


def head(ax: Axes, title: str, subtitle: str = "", *, above_points: float = 7) -> None:
    """Title and, smaller below it, what holds for the whole figure."""
    ax.set_title(title, loc="left", pad=above_points + 15 if subtitle else above_points, color=INK)
    if subtitle:
        note(ax, subtitle, xy=(0, 1), offset=(0, above_points), ha="left", va="bottom", size=8.5, gid="subtitle")


def caption(ax: Axes, *lines: str, below_points: float = 40, width: int = 88) -> None:
    """Small words to the lower right, outside: what was measured where, or what was computed for what."""
    text = "\n".join(fold(line, width) for line in lines)
    note(ax, text, xy=(1, 0), offset=(0, -below_points), ha="right", va="top", size=7.5, gid="caption")


def fold(line: str, width: int = 88) -> str:
    """A long line as several, none of which parts a number from its unit."""
    return textwrap.fill(joined(line), width, break_on_hyphens=False).replace(JOINT, " ")


def joined(line: str) -> str:
    """The line with an unbreakable space between each number and its unit."""
    return re.sub(r"(\d) (?=(?:[KMGT]i?)?B\b|µs\b|%)", rf"\1{JOINT}", line)


def note(ax: Axes, text: str, *, xy, offset, ha: str, va: str, size: float, gid: str, color: str = QUIET):
    """Words at a place of the Axes (0 to 1 each way), moved by points."""
    return ax.annotate(
        text,
        xy=xy,
        xycoords="axes fraction",
        xytext=offset,
        textcoords="offset points",
        ha=ha,
        va=va,
        fontsize=size,
        color=color,
        gid=gid,
        annotation_clip=False,
    )


def contrast_color(fill: str) -> str:
    """The colour of words that stand out on `fill`: white or ink, by relative luminance (WCAG 2)."""
    from matplotlib.colors import to_rgb

    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in to_rgb(fill)]
    luminance = 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]
    return "white" if luminance < 0.28 else INK


def origin(table: pd.DataFrame) -> str:
    """Fabric, processes, device and clock of a table of samples."""
    fabrics, clocks, sizes = (sorted(map(str, table[name].unique())) for name in ("fabric", "clock", "ep_size"))
    devices = dict.fromkeys(str(part.get("device", "unknown device")) for part in parts_of(provenance_of(table)))
    words = [
        ", ".join(fabrics),
        f"{', '.join(sorted(sizes, key=int))} {'process' if sizes == ['1'] else 'processes'}",
        ", ".join(devices),
        f"{', '.join(clocks)} clock",
    ]
    return " · ".join(words) + (" · NOT CHECKED" if _unchecked(table) else "")


def format_load(table: pd.DataFrame, leave_out: Sequence[str] = ()) -> str:
    """The columns of the load that are the same all through, in words."""
    names = [
        name for name in LOAD_WORDS if name in table.columns and name not in leave_out and table[name].nunique() == 1
    ]
    return " · ".join(LOAD_WORDS[name].format(table[name].iloc[0]) for name in names)


def _unchecked(table: pd.DataFrame) -> bool:
    return "checked" in table.columns and not table["checked"].isin(["exact", "bounded", "True"]).all()


BINARY_UNITS = ("B", "KiB", "MiB", "GiB", "TiB")
WIDE = 4
"""From this ratio of largest to least on, an axis is logarithmic."""


def format_bytes(size_bytes: float) -> str:
    """Bytes in the largest binary unit that leaves at least one, with up to three digits."""
    power = 0 if size_bytes < 1 else min(int(np.log2(size_bytes) // 10), len(BINARY_UNITS) - 1)
    number = size_bytes / 1024**power
    shown = f"{number:.0f}" if number >= 100 or number == int(number) else f"{number:.3g}"
    return f"{shown} {BINARY_UNITS[power]}"


JOINT = "\N{NO-BREAK SPACE}"
GROUPED = 1e4
"""From this number on, thousands are separated, as SI writes them: 4096, but 65,536."""


def format_number(number: float, largest: float = 0) -> str:
    """A count or a measured value: 0.5, 16, 4096, 65,536.

    Args:
        largest: the largest of the numbers beside it, which are written alike: 4,096 beside 65,536.
    """
    if max(abs(number), largest) < GROUPED or abs(number) < 1e3:
        return f"{number:g}"
    return f"{number:,.0f}"


def format_axis(axis: Axis, name: str, values: np.ndarray) -> None:
    """Label, scale and ticks of an axis for a column of the registry with these values."""
    column = require_column(name)
    is_bytes = column.unit == "B"
    axis.set_label_text(column.label if is_bytes else column.axis_label)
    if _is_wide(values):
        _logarithmic(axis, values, binary=is_bytes or not column.unit)
    elif is_bytes:
        binary_steps(axis, values)
    axis.set_major_formatter(lambda value, _: format_bytes(value) if is_bytes else format_tick(axis, value))


def format_tick(axis: Axis, value: float) -> str:
    """The number at a tick, written like the others that are visible on its axis."""
    low, high = sorted(axis.get_view_interval())
    return format_number(value, max((abs(tick) for tick in axis.get_majorticklocs() if low <= tick <= high), default=0))


def _is_wide(values: np.ndarray) -> bool:
    positive = values[values > 0]
    return len(positive) > 0 and positive.max() >= WIDE * positive.min()


def _logarithmic(axis: Axis, values: np.ndarray, *, binary: bool) -> None:
    from matplotlib.ticker import FixedLocator, LogLocator, NullLocator

    scale = "log" if values.min() > 0 else "symlog"
    set_scale = getattr(axis.axes, f"set_{axis.axis_name}scale")
    set_scale(scale, base=2 if binary else 10, **({} if scale == "log" else {"linthresh": 1}))
    if binary:
        axis.set_major_locator(FixedLocator(_octaves(values)))
    else:
        decades = np.log10(values.max() / values[values > 0].min())
        axis.set_major_locator(LogLocator(base=10, subs=(1, 2, 5) if decades < 2.5 else (1,)))
    axis.set_minor_locator(NullLocator())


def _octaves(values: np.ndarray, at_most: int = 12) -> list[float]:
    """Powers of two over the range of the values, thinned to a readable number, with 0 where there is one."""
    positive = values[values > 0]
    low, high = int(np.floor(np.log2(positive.min()))), int(np.ceil(np.log2(positive.max())))
    step = max(1, -(-(high - low + 1) // at_most))
    zero = [0.0] if values.min() <= 0 else []
    return zero + [2.0**power for power in range(low, high + 1, step)]


def binary_steps(axis: Axis, values: np.ndarray) -> None:
    """Ticks at multiples of a power of two, named as sizes."""
    from matplotlib.ticker import MultipleLocator

    top = max(float(values.max()), 1)
    axis.set_major_locator(MultipleLocator(2.0 ** (np.floor(np.log2(top)) - 2)))
    axis.set_major_formatter(lambda size_bytes, _: format_bytes(size_bytes))

"""How every figure looks: colours, titles, and the caption that says what was measured where."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from types import MappingProxyType
from typing import TYPE_CHECKING

import pandas as pd

from mnnvl_lab.records import provenance_of
from mnnvl_lab.records.tables import parts_of

if TYPE_CHECKING:
    from matplotlib.axes import Axes

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
class Stroke:
    """How one value of a hue is drawn, in every figure alike."""

    label: str
    color: str
    marker: str


STROKES: Mapping[str, Stroke] = MappingProxyType(
    {
        "one_sided": Stroke(label="one-sided", color=BLUE, marker="o"),
        "two_sided": Stroke(label="two-sided", color=VERMILLION, marker="s"),
        "allgather_reducescatter": Stroke(label="all-gather / reduce-scatter", color=GREEN, marker="^"),
        "all_to_all": Stroke(label="all-to-all", color=PURPLE, marker="D"),
    }
)


def strokes(values: Sequence[object]) -> dict[object, Stroke]:
    """A stroke for each value: a mode's own, else the next of the palette."""
    free = {
        value: Stroke(label=str(value), color=CYCLE[i % len(CYCLE)], marker=MARKERS[i % len(MARKERS)])
        for i, value in enumerate(values)
    }
    return {value: STROKES.get(value, free[value]) for value in values}


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

    return pyplot.subplots(figsize=(width, height), layout="constrained")[1]


def head(ax: Axes, title: str, subtitle: str = "", *, above_points: float = 7) -> None:
    """Title and, smaller below it, what holds for the whole figure."""
    ax.set_title(title, loc="left", pad=above_points + 15 if subtitle else above_points, color=INK)
    if subtitle:
        note(ax, subtitle, xy=(0, 1), offset=(0, above_points), ha="left", va="bottom", size=8.5, gid="subtitle")


def caption(ax: Axes, *lines: str, below_points: float = 40, width: int = 88) -> None:
    """Small words to the lower right, outside: what was measured where, or what was computed for what."""
    text = "\n".join(textwrap.fill(line, width, break_on_hyphens=False) for line in lines)
    note(ax, text, xy=(1, 0), offset=(0, -below_points), ha="right", va="top", size=7.5, gid="caption")


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


def ink_on(fill: str) -> str:
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


def load_words(table: pd.DataFrame, leave_out: Sequence[str] = ()) -> str:
    """The columns of the load that are the same all through, in words."""
    forms = {
        "ep_size": "EP {}",
        "hidden": "hidden {}",
        "experts": "{} experts",
        "top_k": "top-{}",
        "format": "{}",
        "routing": "{} routing",
        "tokens": "{} tokens a rank",
    }
    names = [name for name in forms if name in table.columns and name not in leave_out and table[name].nunique() == 1]
    return " · ".join(forms[name].format(table[name].iloc[0]) for name in names)


def _unchecked(table: pd.DataFrame) -> bool:
    return "checked" in table.columns and not table["checked"].isin(["exact", "bounded", "True"]).all()

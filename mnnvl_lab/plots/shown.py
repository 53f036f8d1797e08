"""Read a figure back from its artists: as a table, and as text for readers who do not see it."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

MOST_SERIES = 8
"""A description names so many series; a figure has seldom more."""
MOST_NOTES = 12
"""And so many of the words inside a figure."""


def shown(ax: Axes) -> pd.DataFrame:
    """The table that a figure shows: `print(plots.shown(ax))`.

    Returns:
        One row per point of each labelled line (`series`, and columns named by the axes), bar (`series`, the category's
        label, the value) or cell of a heat map (row, column, value); empty for a figure that has none of these.
    """
    rows = [*_points(ax), *_bars(ax), *_cells(ax)]
    return pd.DataFrame(rows)


def words_of(ax: Axes, gid: str) -> str:
    """The words that the functions of this package put beside a figure: its `subtitle` or its `caption`."""
    return " ".join(text.get_text() for text in ax.texts if text.get_gid() == gid)


def title_of(ax: Axes) -> str:
    return ax.get_title(loc="left") or ax.get_title()


def alt_text(ax: Axes) -> str:
    """The figure in words: title, what holds throughout, axes, where each series begins and ends, and notes inside."""
    parts = [title_of(ax), words_of(ax, "subtitle"), _axes_words(ax)]
    series = [_series_words(line) for line in labelled_lines(ax)]
    more = [f"and {len(series) - MOST_SERIES} more series"] if len(series) > MOST_SERIES else []
    caption = words_of(ax, "caption").replace("\n", " ")
    told = [*parts, *series[:MOST_SERIES], *more, "; ".join(_notes(ax)[:MOST_NOTES]), caption]
    return ". ".join(part.rstrip(".") for part in told if part) + "."


def _notes(ax: Axes) -> list[str]:
    """Words in the figure beside its title, its caption and the names of lines; without bare numbers."""
    names = {line.get_label() for line in ax.lines}
    texts = [" ".join(text.get_text().split()) for text in ax.texts if text.get_gid() not in ("subtitle", "caption")]
    return [text for text in dict.fromkeys(texts) if text not in names and any(map(str.isalpha, text))]


def describe_figures() -> None:
    """In a notebook, give each figure's picture its description: `alt` in the metadata of the output."""
    shell = sys.modules["IPython"].get_ipython() if "IPython" in sys.modules else None
    if shell is not None:
        from matplotlib.figure import Figure

        shell.display_formatter.mimebundle_formatter.for_type(Figure, _description)


def _description(figure: Figure, include=None, exclude=None) -> tuple[dict, dict]:
    """No data, which other formatters bring, and the metadata of `image/png`."""
    parts = [alt_text(ax) for ax in figure.axes if title_of(ax) or words_of(ax, "subtitle")]
    return {}, {"image/png": {"alt": " ".join(parts)}} if parts else {}


def labelled_lines(ax: Axes) -> list:
    """Lines with a name of their own and at least one point."""
    return [line for line in ax.lines if not line.get_label().startswith("_") and len(line.get_xdata(orig=False))]


def _axes_words(ax: Axes) -> str:
    x, y = ax.get_xlabel(), ax.get_ylabel()
    return f"{y} over {x}" if x and y else y or x


def _series_words(line) -> str:
    xs, ys = np.asarray(line.get_xdata(), float), np.asarray(line.get_ydata(), float)
    first, last = (f"{ys[i]:.4g} at {xs[i]:g}" for i in (0, -1))
    return f"{line.get_label()}: {first}" + (f", {last}" if len(xs) > 1 else "")


def _points(ax: Axes) -> Iterator[dict[str, object]]:
    names = (ax.get_xlabel() or "x", ax.get_ylabel() or "y")
    for line in labelled_lines(ax):
        for x, y in zip(line.get_xdata(), line.get_ydata(), strict=True):
            yield {"series": line.get_label()} | dict(zip(names, (x, y), strict=True))


def _bars(ax: Axes) -> Iterator[dict[str, object]]:
    for container in ax.containers:
        upright = getattr(container, "orientation", "vertical") == "vertical"
        along, across = (ax.xaxis, ax.yaxis) if upright else (ax.yaxis, ax.xaxis)
        places = dict(zip(map(float, along.get_ticklocs()), _labels(along), strict=False))
        for bar in container:
            middle = bar.get_x() + bar.get_width() / 2 if upright else bar.get_y() + bar.get_height() / 2
            value = bar.get_height() if upright else bar.get_width()
            name = places.get(round(float(middle), 6)) or f"{middle:g}"
            series = container.get_label()
            yield {"series": series, "category": name, across.get_label_text() or "value": value}


def _labels(axis) -> list[str]:
    return [label.get_text() for label in axis.get_ticklabels()]


def _cells(ax: Axes) -> Iterator[dict[str, object]]:
    names = (ax.get_ylabel() or "row", ax.get_xlabel() or "column")
    for image in ax.images:
        for (row, column), value in np.ndenumerate(np.ma.getdata(image.get_array())):
            yield dict(zip((*names, "value"), (row, column, value), strict=True))

"""Temporary size and colour scheme of a drawn figure while it is written to a file."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from types import MappingProxyType
from typing import TYPE_CHECKING

from mnnvl_lab.plots.shown import labelled_lines
from mnnvl_lab.plots.style import BLUE, FAINT, GREEN, INK, ORANGE, PURPLE, QUIET, SKY, VERMILLION, fold, joined

if TYPE_CHECKING:
    from matplotlib.figure import Figure

CAPTION_WIDTH = 88
"""Characters at which `style.caption` breaks its lines."""
DASHES = ("solid", (0, (5, 1.5)), (0, (1.5, 1.2)), (0, (6, 1.5, 1.5, 1.5)), (0, (3, 1, 1, 1, 1, 1)))


@dataclass(frozen=True, kw_only=True)
class Size:
    """Where a figure will stand.

    Attributes:
        width_in, height_in: inches; 0 leaves the figure's own.
        type_scale: factor on type, lines and markers.
        caption_width: characters of a caption's line.
        narrow: the width is short: names stand in a legend, not at the ends of the lines, and what stands below the
            title goes into the caption.
    """

    width_in: float = 0
    height_in: float = 0
    type_scale: float = 1.0
    caption_width: int = CAPTION_WIDTH
    narrow: bool = False


SIZES: Mapping[str, Size] = MappingProxyType(
    {
        "own": Size(),
        "column": Size(width_in=3.4, height_in=3.1, type_scale=0.72, caption_width=66, narrow=True),
        "two_columns": Size(width_in=7.0, height_in=4.3),
        "slide": Size(width_in=6.67, height_in=3.75, narrow=True),
    }
)
"""`column` and `two_columns` are those of two-column papers (IEEE, ACM). `slide` is 16:9 and half as wide as a slide of
13.33 inches: enlarged to it, type is twice as large."""

DARK: Mapping[str, str] = MappingProxyType(
    {
        INK: "#ECECEC",
        QUIET: "#A8A8A8",
        FAINT: "#4A4A4A",
        BLUE: "#6CB6EE",
        VERMILLION: "#FF8A4C",
        GREEN: "#3DCFA0",
        PURPLE: "#E39BC2",
        ORANGE: ORANGE,
        SKY: SKY,
        "#000000": "#ECECEC",
        "#FFFFFF": "#17191D",
        "#EBEBEB": "#2C2F36",
    }
)
BACKGROUND = "#17191D"
PRINTED = {BLUE: "#000000", VERMILLION: "#4D4D4D", GREEN: "#7A7A7A", PURPLE: "#2B2B2B"}


@contextmanager
def restyled(figure: Figure, *, size: str, theme: str) -> Iterator[None]:
    """Within the block the figure has that size and theme; afterwards it is as before."""
    with ExitStack() as undo:
        if theme == "print":
            _dash(figure, undo)  # before a legend copies the lines
        _resize(figure, SIZES[size], undo)
        if theme != "light":
            figure.draw_without_rendering()  # ticks exist from here on
            THEMES[theme](figure, undo)
        yield


def _change(undo: ExitStack, artist, name: str, value: object) -> None:
    undo.callback(getattr(artist, f"set_{name}"), getattr(artist, f"get_{name}")())
    getattr(artist, f"set_{name}")(value)


def _resize(figure: Figure, size: Size, undo: ExitStack) -> None:
    from matplotlib.text import Text

    if size.width_in:
        _change(undo, figure, "size_inches", (size.width_in, size.height_in))
    if size.narrow:
        _move_subtitle(figure, undo)
    for text in figure.findobj(Text):
        if text.get_gid() == "caption":
            _change(undo, text, "text", rewrapped(text.get_text(), size.caption_width))
        if size.type_scale != 1:
            _change(undo, text, "fontsize", max(5.0, text.get_fontsize() * size.type_scale))
    for ax in figure.axes if size.type_scale != 1 else ():
        for line in ax.lines:
            _change(undo, line, "linewidth", line.get_linewidth() * size.type_scale)
            _change(undo, line, "markersize", line.get_markersize() * size.type_scale)
    for ax in figure.axes if size.narrow else ():
        _name_in_legend(ax, size, undo)


def rewrapped(caption: str, width: int) -> str:
    """A caption broken at another width: lines that `style.caption` broke are put together first."""
    whole: list[str] = []
    before = ""
    for line in caption.split("\n"):
        if whole and len(before) + 1 + len(joined(line).partition(" ")[0]) > CAPTION_WIDTH:
            whole[-1] += f" {line}"
        else:
            whole.append(line)
        before = line
    return "\n".join(fold(line, width) for line in whole)


def _move_subtitle(figure: Figure, undo: ExitStack) -> None:
    """Below a title in a narrow figure there is no room for one more line as long as this."""
    for ax in figure.axes:
        words = {text.get_gid(): text for text in ax.texts}
        if {"subtitle", "caption"} <= set(words):
            below = words["caption"].get_text()
            _change(undo, words["caption"], "text", f"{words['subtitle'].get_text()}\n{below}")
            _hide(words["subtitle"], undo)


def _hide(text, undo: ExitStack) -> None:
    _change(undo, text, "visible", False)
    _change(undo, text, "in_layout", False)


def _name_in_legend(ax, size: Size, undo: ExitStack) -> None:
    ends = [text for text in ax.texts if text.get_gid() == "label"]
    if ends and ax.get_legend() is None:
        for text in ends:
            _hide(text, undo)
        legend = ax.legend(handles=labelled_lines(ax), fontsize=9 * size.type_scale, frameon=False, loc="best")
        undo.callback(legend.remove)


def _recolour(figure: Figure, undo: ExitStack, to: Callable[[object], object], background: str) -> None:
    from matplotlib.collections import Collection
    from matplotlib.lines import Line2D
    from matplotlib.patches import Patch
    from matplotlib.text import Text

    kept = {id(text) for ax in figure.axes if ax.images or ax.patches for text in _on_fills(ax)}
    grounds = {id(figure.patch), *(id(ax.patch) for ax in figure.axes)}
    for artist in figure.findobj():
        if isinstance(artist, Text) and id(artist) not in kept:
            _change(undo, artist, "color", to(artist.get_color()))
        elif isinstance(artist, Line2D):
            parts = ("color", "markerfacecolor", "markeredgecolor")
            for name, colour in [(name, getattr(artist, f"get_{name}")()) for name in parts]:
                undo.callback(getattr(artist, f"set_{name}"), colour)  # read first: a marker follows its line's colour
                getattr(artist, f"set_{name}")(to(colour))
        elif isinstance(artist, Patch):
            ground = id(artist) in grounds
            _change(undo, artist, "facecolor", background if ground else to(artist.get_facecolor()))
            if not ground:
                _change(undo, artist, "edgecolor", to(artist.get_edgecolor()))
        elif isinstance(artist, Collection) and artist.get_array() is None:
            _change(undo, artist, "facecolor", [to(colour) for colour in artist.get_facecolor()])
            _change(undo, artist, "edgecolor", [to(colour) for colour in artist.get_edgecolor()])


def _on_fills(ax) -> list:
    """Words that stand at a place of the data, on a cell or bar whose colour they were chosen for."""
    return [text for text in ax.texts if text.get_transform() == ax.transData]


def _dark(figure: Figure, undo: ExitStack) -> None:
    _recolour(figure, undo, lambda colour: _mapped(colour, DARK, lambda c: c), BACKGROUND)


def _dash(figure: Figure, undo: ExitStack) -> None:
    """A dash of its own for each series."""
    for ax in figure.axes:
        solid = [line for line in labelled_lines(ax) if line.get_linestyle() == "-"]
        for place, line in enumerate(solid):
            _change(undo, line, "linestyle", DASHES[place % len(DASHES)])


def _print(figure: Figure, undo: ExitStack) -> None:
    """Black and greys: nothing is told by colour."""
    for ax in figure.axes:
        for image in ax.images:
            _change(undo, image, "cmap", "Greys")
    _recolour(figure, undo, lambda colour: _mapped(colour, PRINTED, _grey), "white")


def _mapped(colour: object, to: Mapping[str, str], otherwise: Callable[[tuple], tuple]) -> object:
    """Another colour for the same thing, as opaque as it was."""
    from matplotlib.colors import to_hex, to_rgb, to_rgba

    if isinstance(colour, str) and colour in ("none", "auto"):
        return colour
    *rgb, alpha = to_rgba(colour)
    known = to.get(to_hex(rgb).upper())
    return (*(to_rgb(known) if known else otherwise(tuple(rgb))), alpha)


def _grey(rgb: tuple[float, float, float]) -> tuple[float, float, float]:
    """The grey of the same luma (ITU-R BT.601)."""
    return (0.299 * rgb[0] + 0.587 * rgb[1] + 0.114 * rgb[2],) * 3


THEMES: Mapping[str, Callable[[Figure, ExitStack], None]] = MappingProxyType(
    {"light": lambda figure, undo: None, "dark": _dark, "print": _print}
)

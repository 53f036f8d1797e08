"""Save figures for print: text stays text, fonts and provenance are embedded, sized for columns or slides."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Callable, Mapping, Sequence
from html import escape
from io import BytesIO
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING

import pandas as pd

from mnnvl_lab.errors import choose
from mnnvl_lab.plots.fonts import font_faces, letters_of
from mnnvl_lab.plots.shown import alt_text, title_of, words_of
from mnnvl_lab.plots.variants import SIZES, THEMES, restyled
from mnnvl_lab.records.files import replacing
from mnnvl_lab.records.table import provenance_of

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

FORMATS = ("svg", "pdf", "png")
DPI = 300
KEPT = ("device", "topology", "driver", "flashinfer", "torch", "nccl", "created_at", "commit", "command", "joined")
"""Fields of the provenance that go into a file's metadata."""
RC = MappingProxyType({"svg.fonttype": "none", "svg.hashsalt": "mnnvl_lab", "pdf.fonttype": 42, "path.simplify": False})


def save(
    ax: Axes,
    name: str | os.PathLike,
    formats: Sequence[str] = FORMATS,
    *,
    source: pd.DataFrame | Mapping[str, object] | None = None,
    size: str = "own",
    theme: str = "light",
    alt: str | None = None,
) -> list[Path]:
    """Write a figure to `name.svg`, `name.pdf` and `name.png`.

    The text of SVG and PDF stays text: it can be searched and selected; the SVG carries the letters that it uses, the
    PDF its fonts. The metadata hold a description for readers who do not see the figure, and where its data come from.
    The figure itself is left as it was; the same figure gives the same bytes.

    Args:
        ax: what a function of `plots` returned.
        name: path without ending; its folder is made.
        formats: of `svg`, `pdf`, `png`.
        source: the table that was drawn, or its provenance.
        size: `own`, `column`, `two_columns` or `slide`, see `variants.SIZES`.
        theme: `light`, `dark`, or `print`, which tells nothing by colour.
        alt: description in place of `shown.alt_text`.

    Returns:
        The files.

    Raises:
        Refused: no such format, size or theme.
    """
    kinds = [choose(kind, FORMATS, "format") for kind in formats]
    size, theme = choose(size, SIZES, "size"), choose(theme, THEMES, "theme")
    words = {
        "Title": title_of(ax) or Path(name).name,
        "Description": alt or alt_text(ax),
        "Source": source_words(ax, source),
    }
    with restyled(ax.figure, size=size, theme=theme):
        return [_write(ax, Path(f"{os.fspath(name)}.{kind}"), kind, words) for kind in kinds]


def svg_of(ax: Axes, *, size: str = "own", theme: str = "light", embed_fonts: bool = True) -> str:
    """The figure as SVG, without metadata; for a page that brings the letters, without these too."""
    with restyled(ax.figure, size=size, theme=theme):
        svg = _rendered(ax, "svg", {"Date": None}).decode()
    return _with_fonts(svg) if embed_fonts else svg


def source_words(ax: Axes, source: pd.DataFrame | Mapping[str, object] | None) -> str:
    """Where the data come from: the caption and the provenance, as JSON."""
    provenance = provenance_of(source) if isinstance(source, pd.DataFrame) else source or {}
    kept = {name: provenance[name] for name in KEPT if provenance.get(name)}
    return json.dumps({"caption": words_of(ax, "caption").replace("\n", " ")} | kept, ensure_ascii=False)


def _write(ax: Axes, path: Path, kind: str, words: Mapping[str, str]) -> Path:
    content = WRITERS[kind](ax, words)
    with replacing(path) as file:
        file.write(content)
    return path


def _rendered(ax: Axes, kind: str, metadata: Mapping[str, object]) -> bytes:
    import matplotlib as mpl

    content = BytesIO()
    with mpl.rc_context(dict(RC)):
        _restart_layout(ax.figure)
        ax.figure.savefig(
            content, format=kind, metadata=dict(metadata), dpi=DPI if kind == "png" else "figure", facecolor="auto"
        )
    return content.getvalue()


def _restart_layout(figure: Figure) -> None:
    """Axes where they were before any layout: a layout depends on the one before in the last digits of its places."""
    for ax in figure.axes:
        if spec := ax.get_subplotspec():
            ax.set_position(spec.get_position(figure))
            ax.set_in_layout(True)


def _svg(ax: Axes, words: Mapping[str, str]) -> bytes:
    svg = _rendered(ax, "svg", {"Date": None, **words}).decode()
    title, description = escape(words["Title"]), escape(words["Description"])
    names = f"<title>{title}</title><desc>{description}</desc>"
    svg = re.sub(r"(<svg\b[^>]*)>", lambda m: f'{m[1]} role="img" aria-label="{title}">{names}', svg, count=1)
    return _with_fonts(svg).encode()


def _with_fonts(svg: str) -> str:
    faces = font_faces(letters_of(svg))
    return svg.replace("<defs>", f'<defs><style type="text/css">{faces}</style>', 1)


def _pdf(ax: Axes, words: Mapping[str, str]) -> bytes:
    about = {"Title": words["Title"], "Subject": words["Description"], "Keywords": words["Source"]}
    return _rendered(ax, "pdf", about | {"CreationDate": None})


def _png(ax: Axes, words: Mapping[str, str]) -> bytes:
    return _rendered(ax, "png", words)


WRITERS: Mapping[str, Callable[[Axes, Mapping[str, str]], bytes]] = MappingProxyType(
    {"svg": _svg, "pdf": _pdf, "png": _png}
)

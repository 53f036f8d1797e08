"""Pieces of a page: what a cell of the template returns, and Jupyter shows."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING

import pandas as pd

from mnnvl_lab.plots.save import save, svg_of
from mnnvl_lab.plots.shown import alt_text, shown
from mnnvl_lab.records.styled import table
from mnnvl_lab.records.table_styles import Field, html

if TYPE_CHECKING:
    from matplotlib.axes import Axes


@dataclass(frozen=True)
class Block:
    """HTML that a notebook shows and a page keeps."""

    content: str

    def _repr_html_(self) -> str:
        return self.content

    def __add__(self, other: Block) -> Block:
        return Block(self.content + other.content)


def joined(blocks: Iterable[Block]) -> Block:
    return Block("\n".join(block.content for block in blocks))


def paragraph(words: str) -> Block:
    """Words, escaped."""
    return Block(f"<p>{escape(words)}</p>")


def bullets(items: Sequence[str]) -> Block:
    """Words as a list, escaped."""
    return Block(f"<ul>{''.join(f'<li>{escape(item)}</li>' for item in items)}</ul>")


def commands(lines: Sequence[str]) -> Block:
    return Block(f"<pre><code>{escape(chr(10).join(lines))}</code></pre>")


def facts(rows: Mapping[str, object]) -> Block:
    """Names and values, one below the other."""
    body = "".join(
        f'<tr><th scope="row">{escape(name)}</th><td>{escape(str(value))}</td></tr>' for name, value in rows.items()
    )
    return Block(f'<table class="lab facts"><tbody>{body}</tbody></table>')


def table_block(
    frame: pd.DataFrame, about: Mapping[str, object], *, caption: str = "", columns=None, headings=None
) -> Block:
    """A table whose place in the data the page carries, as `data-` attributes."""
    return _about(table(frame, style="html", columns=columns, caption=caption, headings=headings), about)


def fields_block(fields: Sequence[Field], about: Mapping[str, object], *, caption: str = "") -> Block:
    """The same of fields that are already written."""
    return _about(html(fields, caption), about)


def _about(content: str, about: Mapping[str, object]) -> Block:
    attributes = "".join(f' data-{name}="{escape(str(value))}"' for name, value in about.items())
    return Block(f'<div class="scroll" tabindex="0"{attributes}>{content}</div>')


def figure(ax: Axes, name: str, *, source: pd.DataFrame, folder: str | None = None) -> Block:
    """A figure with its description and the table that it shows; its files, for a paper, go into `folder`."""
    from matplotlib import pyplot

    values, words = shown(ax), escape(alt_text(ax))
    if folder is None:
        svg = svg_of(ax, embed_fonts=False)
    else:
        svg = save(ax, Path(folder) / "figures" / name, ("svg", "pdf"), source=source)[0].read_text(encoding="utf-8")
    svg = _own_names(svg, re.sub(r"\W", "-", name))
    pyplot.close(ax.figure)
    numbers = table(values, style="html", caption="") if len(values) else ""
    inside = f"<details><summary>numbers of this figure</summary>{numbers}</details>" if numbers else ""
    return Block(f'<figure role="img" aria-label="{words}">{svg}</figure>\n{inside}')


def _own_names(svg: str, prefix: str) -> str:
    """An SVG to stand in a page: without prologue, with names where it refers to them, which are its own."""
    svg = svg[svg.index("<svg") :]
    for brought in ("metadata", "title", "desc"):  # the page has letters, and the figure's description
        svg = re.sub(rf"<{brought}>.*?</{brought}>", "", svg, flags=re.S)
    svg = re.sub(r"<style type=\"text/css\">@font-face.*?</style>", "", svg, flags=re.S)
    svg = re.sub(r"<!--.*?-->\s*", "", svg, flags=re.S)
    used = set(re.findall(r"url\(#([^)]+)\)|href=\"#([^\"]+)\"", svg))
    names = {name for pair in used for name in pair if name}
    svg = re.sub(r' id="([^"]+)"', lambda m: f' id="{prefix}-{m[1]}"' if m[1] in names else "", svg)
    svg = re.sub(r"url\(#([^)]+)\)", rf"url(#{prefix}-\1)", svg)
    return re.sub(r'href="#([^"]+)"', rf'href="#{prefix}-\1"', svg)

"""Small drawings as SVG text: drawn in a millisecond, in the colours of the page's theme, with no state.

A figure of Matplotlib takes a hundred times as long, too long for a slider that is being dragged.
"""

from __future__ import annotations

import math
import struct
import zlib
from base64 import b64encode
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

import numpy as np

INK = "var(--jp-content-font-color1, currentColor)"
QUIET = "var(--jp-content-font-color2, currentColor)"
LINE = "var(--jp-border-color1, #9e9e9e)"
FAINT = "var(--jp-border-color2, #cfcfcf)"
WARN = "var(--jp-error-color1, #c62828)"
BLUE, VERMILLION, GREEN, PURPLE = (
    f"color-mix(in srgb, {color} 80%, {INK})" for color in ("#0072B2", "#D55E00", "#009E73", "#CC79A7")
)
"""Those of `plots.style`, a little darker on a light page and lighter on a dark one, so that words in them are read."""
FONT = "var(--jp-ui-font-family, system-ui, sans-serif)"


@dataclass(frozen=True, kw_only=True)
class Panel:
    """A drawing or table as HTML, shown by any notebook.

    Attributes:
        html: the whole panel.
        alt: what it shows, in words.
    """

    html: str
    alt: str

    def _repr_html_(self) -> str:
        return self.html


@dataclass(frozen=True, kw_only=True)
class LogScale:
    """Values to places on a logarithmic axis.

    Attributes:
        low, high: values at both ends, positive.
        begin, end: places of the ends.
    """

    low: float
    high: float
    begin: float
    end: float

    def __call__(self, value: float) -> float:
        share = math.log(max(value, 1e-9) / self.low) / math.log(self.high / self.low)
        return self.begin + min(max(share, -0.02), 1.02) * (self.end - self.begin)

    def ticks(self) -> list[float]:
        """1, 2 and 5 times powers of ten within the ends."""
        first, last = math.floor(math.log10(self.low)), math.floor(math.log10(self.high) + 1e-9)
        steps = [factor * 10.0**n for n in range(first, last + 1) for factor in (1, 2, 5)]
        return [step for step in steps if self.low * (1 - 1e-9) <= step <= self.high * (1 + 1e-9)]


def drawing(body: Sequence[str], *, width: float, height: float, alt: str, style: str = "", name: str = "") -> Panel:
    """A whole SVG with its alternative text."""
    css = f"<style>{style}</style>" if style else ""
    html = (
        f'<svg xmlns="http://www.w3.org/2000/svg" role="img" aria-label="{escape(alt, quote=True)}" '
        f'{f"id={name!r} " if name else ""}viewBox="0 0 {width:g} {height:g}" '
        f'style="width:100%;max-width:{width:g}px;height:auto;font-family:{FONT};font-size:12px">'
        f"{css}{''.join(body)}</svg>"
    )
    return Panel(html=html, alt=alt)


def text(
    x: float, y: float, words: object, *, anchor: str = "start", fill: str = INK, size: float = 12, more: str = ""
):
    return (
        f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}" fill="{fill}" font-size="{size:g}" {more}>'
        f"{escape(str(words))}</text>"
    )


def rect(x: float, y: float, width: float, height: float, *, fill: str = "none", stroke: str = "none", more: str = ""):
    return (
        f'<rect x="{x:.1f}" y="{y:.1f}" width="{max(width, 0):.1f}" height="{max(height, 0):.1f}" fill="{fill}" '
        f'stroke="{stroke}" {more}/>'
    )


def line(x1: float, y1: float, x2: float, y2: float, *, stroke: str = LINE, width: float = 1, more: str = ""):
    ends = f'x1="{x1:.1f}" y1="{y1:.1f}" x2="{x2:.1f}" y2="{y2:.1f}"'
    return f'<line {ends} stroke="{stroke}" stroke-width="{width:g}" {more}/>'


def path(
    points: Sequence[tuple[float, float]], *, stroke: str, fill: str = "none", closed: bool = False, more: str = ""
):
    steps = "L".join(f"{x:.1f} {y:.1f}" for x, y in points)
    return f'<path d="M{steps}{"Z" if closed else ""}" stroke="{stroke}" fill="{fill}" {more}/>'


def dot(x: float, y: float, *, fill: str, stroke: str = "none", radius: float = 3.5, more: str = "") -> str:
    return f'<circle cx="{x:.1f}" cy="{y:.1f}" r="{radius:g}" fill="{fill}" stroke="{stroke}" {more}/>'


def heat_image(shares: np.ndarray) -> str:
    """A PNG as data URI: one pixel per value in [0, 1], from transparent to blue."""
    levels = np.clip(255 * shares, 0, 255).astype(np.uint8)
    height, width = levels.shape
    pixels = np.empty((height, width, 4), dtype=np.uint8)
    pixels[..., :3] = (0, 114, 178)
    pixels[..., 3] = levels
    rows = b"".join(b"\0" + row.tobytes() for row in pixels)
    header = struct.pack(">IIBBBBB", width, height, 8, 6, 0, 0, 0)
    chunks = (b"IHDR", header), (b"IDAT", zlib.compress(rows, 1)), (b"IEND", b"")
    png = b"\x89PNG\r\n\x1a\n" + b"".join(map(_chunk, *zip(*chunks, strict=True)))
    return f"data:image/png;base64,{b64encode(png).decode()}"


def _chunk(kind: bytes, content: bytes) -> bytes:
    body = kind + content
    return struct.pack(">I", len(content)) + body + struct.pack(">I", zlib.crc32(body))


def number(value: float) -> str:
    """Three digits, as short as they go: `0.12`, `61.6`, `440`, `3,269`."""
    if value >= 100:
        return f"{value:,.0f}"
    return f"{value:.1f}" if value >= 10 else f"{value:.2g}"

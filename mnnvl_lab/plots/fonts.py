"""Fonts embedded in an SVG, so that its text stays text and looks the same everywhere."""

from __future__ import annotations

import base64
import html
import re
from functools import cache
from io import BytesIO
from pathlib import Path

FAMILY = "DejaVu Sans"
WEIGHTS = {"normal": "DejaVuSans.ttf", "bold": "DejaVuSans-Bold.ttf"}


def font_faces(letters: str) -> str:
    """CSS `@font-face` rules with the glyphs of `letters` alone, as WOFF inside."""
    rules = []
    for weight, file in WEIGHTS.items():
        data = base64.b64encode(_subset(file, "".join(sorted(set(letters))))).decode()
        source = f"url(data:font/woff;base64,{data}) format('woff')"
        rules.append(f"@font-face{{font-family:'{FAMILY}';font-weight:{weight};src:{source}}}")
    return "".join(rules)


def letters_of(svg: str) -> str:
    """Every character of the text of an SVG."""
    return "".join(html.unescape(re.sub(r"<[^>]*>", "", text)) for text in re.findall(r"<text.*?</text>", svg, re.S))


@cache
def _subset(file: str, letters: str) -> bytes:
    from fontTools import subset
    from matplotlib import get_data_path

    options = subset.Options(
        flavor="woff", drop_tables=[*subset.Options().drop_tables, "FFTM"], layout_features=["kern"]
    )
    font = subset.load_font(str(Path(get_data_path()) / "fonts" / "ttf" / file), options)
    subsetter = subset.Subsetter(options)
    subsetter.populate(text=letters)
    subsetter.subset(font)
    content = BytesIO()
    font.flavor = "woff"
    font.recalcTimestamp = False
    font.save(content)
    return content.getvalue()

"""From an executed notebook to one HTML file that asks for nothing."""

from __future__ import annotations

import json
import re
import uuid
from collections.abc import Mapping
from copy import deepcopy
from html import escape
from importlib import resources
from typing import TYPE_CHECKING

from mnnvl_lab.plots.fonts import font_faces, letters_of

if TYPE_CHECKING:
    import nbformat

ID = "numbers"
"""Of the script element with the page's numbers."""


def page_of(notebook: nbformat.NotebookNode, numbers: Mapping[str, object], *, title: str, language: str = "en") -> str:
    """The notebook's prose and outputs, its numbers and letters in one file; no code runs in it, nothing is fetched."""
    body = without_scripts(_body(notebook))
    style = resources.files("mnnvl_lab.reports").joinpath("page.css").read_text(encoding="utf-8")
    data = json.dumps(numbers, allow_nan=False, ensure_ascii=False, separators=(",", ":")).replace("<", "\\u003c")
    head = [
        '<meta charset="utf-8">',
        '<meta name="viewport" content="width=device-width, initial-scale=1">',
        "<meta http-equiv=\"Content-Security-Policy\" content=\"default-src 'none'; style-src 'unsafe-inline'; "
        'font-src data:; img-src data:">',
        f"<title>{escape(title)}</title>",
        f"<style>{font_faces(letters_of(body))}\n{style}</style>",
    ]
    return (
        f'<!DOCTYPE html>\n<html lang="{language}">\n<head>\n{chr(10).join(head)}\n</head>\n<body>\n<main>\n'
        f'{contents(body)}\n{body}\n</main>\n<script type="application/json" id="{ID}">{data}</script>\n'
        "</body>\n</html>\n"
    )


def _body(notebook: nbformat.NotebookNode) -> str:
    """What nbconvert makes of the notebook; outputs that are HTML already stand aside, for it would parse them."""
    from nbconvert import HTMLExporter

    aside, blocks, place = deepcopy(notebook), [], uuid.uuid4().hex  # which stands in no notebook
    for cell in aside.cells:
        for output in cell.get("outputs", []):
            if (data := output.get("data", {})) and "text/html" in data:
                blocks.append(data["text/html"])
                data["text/html"] = f"<div>{place} {len(blocks) - 1}</div>"
    exporter = HTMLExporter(
        template_name="basic",
        exclude_input=True,
        exclude_input_prompt=True,
        exclude_output_prompt=True,
        anchor_link_text="",
        embed_images=True,
    )
    body = exporter.from_notebook_node(aside)[0]
    return re.sub(rf"{place} (\d+)", lambda found: blocks[int(found[1])], body)


def without_scripts(body: str) -> str:
    """A page of results has no use for them."""
    return re.sub(r"<script\b.*?</script>", "", body, flags=re.S | re.I)


def contents(body: str) -> str:
    """Links to the sections."""
    heads = re.findall(r'<h2[^>]*id="([^"]+)"[^>]*>(.*?)</h2>', body, re.S)
    items = "".join(f'<li><a href="#{name}">{re.sub(r"<[^>]+>", "", words).strip()}</a></li>' for name, words in heads)
    return f'<nav aria-label="Sections"><ul>{items}</ul></nav>' if items else ""

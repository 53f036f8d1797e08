"""The same table in LaTeX, Markdown and HTML."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from html import escape
from types import MappingProxyType

LATEX = MappingProxyType(
    {
        "\\": r"\textbackslash{}",
        "&": r"\&",
        "%": r"\%",
        "$": r"\$",
        "#": r"\#",
        "_": r"\_",
        "{": r"\{",
        "}": r"\}",
        "~": r"\textasciitilde{}",
        "^": r"\textasciicircum{}",
        "µ": r"\textmu{}",
        "×": r"$\times$",
        "–": "--",
        "·": r"$\cdot$",
        "<": r"\textless{}",
        ">": r"\textgreater{}",
        "∞": r"$\infty$",
    }
)


@dataclass(frozen=True, kw_only=True)
class Field:
    """One column as it is shown.

    Attributes:
        name: of the column, or `interval`.
        heading: label and unit.
        cells: a text per row.
        numeric: aligned to the right, so that decimals stand below each other.
        values: per row what the text was made from; None for words.
    """

    name: str
    heading: str
    cells: tuple[str, ...]
    numeric: bool
    values: tuple[object, ...]

    @classmethod
    def of(cls, name: str, heading: str, cells: Sequence[str], values: Sequence[object]) -> Field:
        """A column of numbers that are already written."""
        return cls(name=name, heading=heading, cells=tuple(cells), numeric=True, values=tuple(values))


def latex_escaped(text: str) -> str:
    """`text` with all that LaTeX would read as a command written out."""
    return "".join(LATEX.get(character, character) for character in text)


def latex(fields: Sequence[Field], caption: str) -> str:
    align = "".join("r" if field.numeric else "l" for field in fields)
    head = " & ".join(latex_escaped(field.heading) for field in fields)
    rows = [" & ".join(map(latex_escaped, row)) for row in _rows(fields)]
    lines = [
        *([f"% {caption}".replace("\n", " ")] if caption else []),
        rf"\begin{{tabular}}{{{align}}}",
        r"\toprule",
        rf"{head} \\",
        r"\midrule",
        *(rf"{row} \\" for row in rows),
        r"\bottomrule",
        r"\end{tabular}",
    ]
    return "\n".join(lines) + "\n"


def markdown(fields: Sequence[Field], caption: str) -> str:
    columns = [[markdown_escaped(field.heading), *map(markdown_escaped, field.cells)] for field in fields]
    widths = [max(3, *map(len, cells)) for cells in columns]
    lines = [
        f"| {' | '.join(_aligned(cells[row], width, field) for cells, width, field in parts)} |"
        for row in range(len(columns[0]) if columns else 0)
        for parts in [list(zip(columns, widths, fields, strict=True))]
    ]
    pairs = zip(fields, widths, strict=True)
    rule = [f"{'-' * (width - 1)}:" if field.numeric else "-" * width for field, width in pairs]
    words = [f"{caption}\n"] if caption else []
    return "\n".join([*words, *lines[:1], f"| {' | '.join(rule)} |", *lines[1:]]) + "\n"


def _aligned(cell: str, width: int, field: Field) -> str:
    return cell.rjust(width) if field.numeric else cell.ljust(width)


def markdown_escaped(text: str) -> str:
    """`text` with what would end a cell, or be read as HTML or emphasis, escaped."""
    return re.sub(r"([|*_`<\\])", r"\\\1", text).replace("\n", " ")


def html(fields: Sequence[Field], caption: str) -> str:
    words = f"<caption>{escape(caption)}</caption>" if caption else ""
    kinds = ["number" if field.numeric else "words" for field in fields]
    heads = zip(fields, kinds, strict=True)
    head = "".join(f'<th scope="col" class="{kind}">{escape(field.heading)}</th>' for field, kind in heads)
    rows = []
    for i in range(len(fields[0].cells) if fields else 0):
        cells = (_html_cell(field, kind, i) for field, kind in zip(fields, kinds, strict=True))
        rows.append(f"<tr>{''.join(cells)}</tr>")
    body = "\n".join(rows)
    return f'<table class="lab">{words}<thead><tr>{head}</tr></thead>\n<tbody>\n{body}\n</tbody></table>\n'


def _html_cell(field: Field, kind: str, row: int) -> str:
    value = field.values[row]
    raw = "" if value is None else f' data-value="{escape(str(value))}"'
    return f'<td class="{kind}" data-column="{escape(field.name)}"{raw}>{escape(field.cells[row])}</td>'


def _rows(fields: Sequence[Field]) -> list[tuple[str, ...]]:
    return list(zip(*(field.cells for field in fields), strict=True))


STYLES: Mapping[str, Callable[[Sequence[Field], str], str]] = MappingProxyType(
    {"latex": latex, "markdown": markdown, "html": html}
)

"""Tables with a title and notes, as text and as HTML: how this package's objects look in a terminal and a notebook."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape

import pandas as pd

from mnnvl_lab.errors import named_arguments

UNITS = ("B", "KiB", "MiB", "GiB", "TiB", "PiB", "EiB")
MAX_ROWS = 72  # a rack of NVL72; of a longer table the middle is left out


def text_block(title: str, table: pd.DataFrame, notes: Sequence[str] = ()) -> str:
    """Title, table and notes, one below the other."""
    return "\n".join([title, "", table.to_string(index=False, max_rows=MAX_ROWS), "", *notes])


def html_block(title: str, table: pd.DataFrame, notes: Sequence[str] = ()) -> str:
    """The same for a notebook; title and notes are escaped."""
    lines = "<br>".join(escape(note) for note in notes)
    body = table.to_html(index=False, border=0, max_rows=MAX_ROWS)
    return f"<div><p><b>{escape(title)}</b></p>{body}<p>{lines}</p></div>"


def readable_bytes(size: int) -> str:
    """A size in the unit that a person reads, such as `226.0 MiB`; whole bytes below 1 KiB."""
    value, unit = float(size), 0
    while round(value, 1) >= 1024 and unit < len(UNITS) - 1:
        value, unit = value / 1024, unit + 1
    return f"{value:,.1f} {UNITS[unit]}" if unit else f"{size} B"


@named_arguments
def host_only(fabric: str, reason: str) -> str:
    """The fabric for what no GPU can show: always `host`. Prints a sentence where the notebook runs on another one.

    Args:
        fabric: that the reader chose.
        reason: why a GPU cannot show it, a clause.
    """
    if fabric != "host":
        print(f"This part runs on fabric host, not on {fabric}: {reason}.")
    return "host"

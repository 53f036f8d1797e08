"""Tables with a title and notes, as text and as HTML: how this package's objects look in a terminal and a notebook."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence, Set
from dataclasses import dataclass
from html import escape

import numpy as np
import pandas as pd

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


def host_only(fabric: str, reason: str) -> str:
    """The fabric for what no GPU can show: always `host`. Prints a sentence where the notebook runs on another one.

    Args:
        fabric: that the reader chose.
        reason: why a GPU cannot show it, a clause.
    """
    if fabric != "host":
        print(f"This part runs on fabric host, not on {fabric}: {reason}.")
    return "host"


@dataclass(frozen=True, kw_only=True, repr=False)
class Answer:
    """What a guess is worth; a notebook shows it, with the answer folded away.

    Attributes:
        guess: the reader's, or None.
        answer: what the package computes.
        why: the reason, shown with the answer.
    """

    guess: object
    answer: object
    why: str = ""

    @property
    def right(self) -> bool:
        return self.guess is not None and _plain(self.guess, _word) == _plain(self.answer, _word)

    @property
    def words(self) -> str:
        if self.guess is None:
            return "No guess yet: put yours in place of None and run the cell again."
        return f"Right: {self._solution}" if self.right else f"Not yet: {_shown(self.guess)} is not it."

    @property
    def _solution(self) -> str:
        return f"{_shown(self.answer)}. {self.why}".rstrip()

    def __repr__(self) -> str:
        return self.words

    def _repr_html_(self) -> str:
        solution = self._solution if self.why else _shown(self.answer)
        folded = f"<details><summary>the answer</summary>{escape(solution)}</details>"
        return f"<p>{escape(self.words)}</p>{'' if self.right else folded}"


def check(guess: object, answer: object, *, why: str = "") -> Answer:
    """Compare a guess with the answer.

    How it is written does not matter: lists, tuples and arrays count as equal, sets in any order, numbers also in
    quotes, and words in any case and with any of `-`, `_` and a blank between them.
    """
    return Answer(guess=guess, answer=answer, why=why)


def _plain(value: object, word: Callable[[str], object] = str) -> object:
    """Numbers, words, and lists and dicts of them; `word` is applied to each string."""
    if isinstance(value, str):
        return word(value)
    if isinstance(value, np.ndarray | np.generic | pd.Series):
        return _plain(value.tolist(), word)
    if isinstance(value, Set):
        return sorted((_plain(item, word) for item in value), key=str)
    if isinstance(value, Mapping):
        return {name: _plain(item, word) for name, item in value.items()}
    if isinstance(value, Sequence):
        return [_plain(item, word) for item in value]
    return value


def _word(text: str) -> object:
    """A number if the text is one; else the word without regard to case, blanks, hyphens and underscores."""
    try:
        return float(text)
    except ValueError:
        return text.strip().casefold().replace("-", "_").replace(" ", "_")


def _shown(value: object) -> str:
    return str(_plain(value))

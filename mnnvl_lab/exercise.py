"""Predict first, then reveal: a question's answer stays folded until the reader has tried."""

from __future__ import annotations

from collections.abc import Mapping, Sequence, Set
from dataclasses import dataclass
from html import escape

import numpy as np
import pandas as pd


@dataclass(frozen=True, kw_only=True, repr=False)
class Verdict:
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
        return self.guess is not None and _plain(self.guess) == _plain(self.answer)

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


def check(guess: object, answer: object, *, why: str = "") -> Verdict:
    """Compare a guess with the answer. Lists, tuples and arrays count as equal, and so do sets in any order."""
    return Verdict(guess=guess, answer=answer, why=why)


def _plain(value: object) -> object:
    """Numbers, strings, and lists and dicts of them."""
    if isinstance(value, np.ndarray | np.generic | pd.Series):
        return value.tolist()
    if isinstance(value, Set):
        return sorted(map(_plain, value))
    if isinstance(value, Mapping):
        return {name: _plain(item) for name, item in value.items()}
    if isinstance(value, Sequence) and not isinstance(value, str):
        return [_plain(item) for item in value]
    return value


def _shown(value: object) -> str:
    return str(_plain(value))

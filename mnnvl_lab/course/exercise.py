"""An exercise as data: question, answer as a function, tolerance, unit, hints, reason, and mistakes by name."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class Mistake:
    """A wrong answer that many give.

    Attributes:
        guess: computes it.
        message: names the mistake without giving the right answer away, such as "that is the DP group".
    """

    guess: Callable[[], object]
    message: str


@dataclass(frozen=True, kw_only=True)
class Exercise:
    """One question of a notebook.

    Attributes:
        number: notebook and question, such as `04.3` or `04.A`.
        asks: the question in short.
        solution: computes the answer, by the functions and from the data that the notebook uses: a number, True or
            False, a word of `options`, a list (in order), or a set (in any order).
        reason: why it is so, in one to three sentences; shown with the answer.
        hints: from the vaguest to the plainest; none contains the answer.
        tolerance: largest difference of a number that still counts as right, in `unit`.
        unit: of a number, such as `MiB`; "" for counts.
        options: words to choose from.
        tells_length: whether a reader may be told how many values a list has; not where that is part of the question.
        any_of: `solution` is a set of which each member is a right answer.
        mistakes: wrong answers that have a name.
    """

    number: str
    asks: str
    solution: Callable[[], object]
    reason: str
    hints: tuple[str, ...]
    tolerance: float = 0.0
    unit: str = ""
    options: tuple[str, ...] = ()
    tells_length: bool = True
    any_of: bool = False
    mistakes: tuple[Mistake, ...] = ()

    @property
    def notebook(self) -> str:
        """Number of the notebook, such as `04`."""
        return self.number.partition(".")[0]

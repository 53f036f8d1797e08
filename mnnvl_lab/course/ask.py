"""`lab.check`, `lab.hint` and `lab.reveal`: what a notebook's cells call, and what they show."""

from __future__ import annotations

from collections.abc import Set
from dataclasses import dataclass, replace
from functools import cache, partial
from html import escape

from mnnvl_lab.course.exercise import Exercise
from mnnvl_lab.course.matching import Verdict, judge, plain
from mnnvl_lab.course.progress import Attempt, Progress
from mnnvl_lab.course.registry import require_exercise
from mnnvl_lab.errors import Refused, named_arguments, shown

MOST_SHOWN = 80  # letters of a guess


@dataclass(frozen=True, kw_only=True, repr=False)
class Reply:
    """What a cell shows.

    Attributes:
        headline: the verdict, such as `Right: 8`.
        rest: reason or remedy; "" for none.
        right: whether the guess is the answer; None where nothing was guessed.
    """

    headline: str
    rest: str = ""
    right: bool | None = None

    def __repr__(self) -> str:
        return "\n".join(filter(None, (self.headline, self.rest)))

    def _repr_html_(self) -> str:
        rest = f"<br>{escape(self.rest)}" if self.rest else ""
        return f"<p><b>{escape(self.headline)}</b>{rest}</p>"


@cache
def answer(number: str) -> object:
    """The answer of an exercise, computed once per process: a number, True or False, a word, a list, or a set.

    Raises:
        Refused: there is no such exercise.
    """
    return plain(require_exercise(number).solution())


@named_arguments
def check(number: str, guess: object) -> Reply:
    """Compare a guess with the answer, which stays hidden until it is found or asked for.

    How a guess is written does not matter: numbers also in quotes or with their unit, words in any case and with any
    of `-`, `_` and a blank between them, sets in any order.

    Args:
        number: of the exercise, such as `"04.3"`.
        guess: yours; None for none yet.

    Raises:
        Refused: there is no such exercise.
    """
    asked = require_exercise(number)
    if guess is None:
        return Reply(headline="No guess yet: put yours in place of None and run the cell again.")
    verdict = judge(asked, guess, answer(asked.number))
    kept = _keep(asked, guess, verdict)
    if verdict.right:
        return Reply(headline=f"Right: {in_words(asked)}", rest=_lines(asked.reason, kept), right=True)
    return Reply(headline=_wrong(guess, verdict), rest=_lines(_remedy(asked), kept), right=False)


def _wrong(guess: object, verdict: Verdict) -> str:
    written = shown(guess, MOST_SHOWN)
    verb = "is not it" if verdict.counts else "cannot be the answer"
    return f"Not yet: {written} {verb}" + (f": {verdict.said}." if verdict.said else ".")


def _keep(asked: Exercise, guess: object, verdict: Verdict) -> str:
    if not verdict.counts:
        return ""
    return Progress().change(asked.number, lambda attempt: attempt.guessed(guess, right=verdict.right))


def _remedy(asked: Exercise) -> str:
    return f'A hint: lab.hint("{asked.number}"). The answer: lab.reveal("{asked.number}").'


def _lines(*lines: str) -> str:
    return "\n".join(filter(None, lines))


@named_arguments
def hint(number: str, which: int = 1) -> Reply:
    """A hint that does not give the answer away.

    Args:
        number: of the exercise, such as `"04.3"`.
        which: the first or a later one.

    Raises:
        Refused: there is no such exercise, or no such hint.
    """
    asked = require_exercise(number)
    most = len(asked.hints)
    if not isinstance(which, int) or not 1 <= which <= most:
        raise Refused(f"hint {shown(which)} of exercise {asked.number}: it has {most}; choose one of 1 to {most}")
    Progress().change(asked.number, partial(_hinted, which=which))
    more = f'One more: lab.hint("{asked.number}", {which + 1}).' if which < most else ""
    return Reply(headline=f"Hint {which} of {most} for {asked.number}", rest=_lines(asked.hints[which - 1], more))


def _hinted(attempt: Attempt, *, which: int) -> Attempt:
    return attempt if attempt.solved else replace(attempt, hints=max(attempt.hints, which))


@named_arguments
def reveal(number: str) -> Reply:
    """The answer with its reason; `lab.score` then counts the exercise as revealed, unless it was solved before.

    Raises:
        Refused: there is no such exercise.
    """
    asked = require_exercise(number)
    Progress().change(asked.number, lambda attempt: replace(attempt, revealed=attempt.revealed or not attempt.solved))
    return Reply(headline=f"{asked.number}: {in_words(asked)}", rest=asked.reason)


def in_words(asked: Exercise) -> str:
    """The answer in words, with its unit and what else counts."""
    found = answer(asked.number)
    if asked.any_of:
        return " or ".join(sorted(map(str, found)))
    text = _sorted(found) if isinstance(found, Set) else f"{found:,}" if _is_number(found) else str(found)
    slack = f" (within {asked.tolerance:g})" if asked.tolerance else ""
    return f"{text} {asked.unit}".rstrip() + slack


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _sorted(found: Set) -> str:
    if not found:
        return "none"
    return "{" + ", ".join(map(repr, sorted(found, key=lambda item: (str(type(item)), item)))) + "}"

"""Compare a guess with the answer of an exercise, and forgive how it is written."""

from __future__ import annotations

import math
import re
from collections.abc import Collection, Sequence, Set
from dataclasses import dataclass
from numbers import Real

import numpy as np
import pandas as pd

from mnnvl_lab.course.exercise import Exercise
from mnnvl_lab.course.units import dimension, in_other_units, quantity
from mnnvl_lab.errors import shown

TRUTH = {"true": True, "yes": True, "false": False, "no": False}
NOTHING = {"none", "None", "nobody", "Nobody", "no rank", "set"}
UNIT_SLACK = 0.01  # share by which a number in another unit may differ and still be taken for the right amount


@dataclass(frozen=True, kw_only=True)
class Verdict:
    """What a guess is worth.

    Attributes:
        right: whether it is the answer.
        said: what to tell of a wrong one; "" if there is nothing particular.
        counts: whether it is an attempt: not if it is of another form than the question asks for.
    """

    right: bool
    said: str = ""
    counts: bool = True


def judge(exercise: Exercise, guess: object, answer: object) -> Verdict:
    """Right, wrong, wrong in a way that has a name, or not of the form that is asked for."""
    answers = list(plain(answer)) if exercise.any_of else [plain(answer)]
    guess = _items(guess) if isinstance(guess, str) and isinstance(answers[0], list | set) else plain(guess)
    if any(equal(guess, each, exercise) for each in answers):
        return Verdict(right=True)
    if problem := form_problem(guess, answers[0], exercise):
        return Verdict(right=False, said=problem, counts=False)
    named = (mistake for mistake in exercise.mistakes if equal(guess, plain(mistake.guess()), exercise))
    mistake = next(named, None)
    return Verdict(right=False, said=mistake.message if mistake else _unit_problem(guess, answers[0], exercise))


def plain(value: object) -> object:
    """Numbers, strings, lists and sets of Python in place of arrays, columns and tuples."""
    if isinstance(value, np.ndarray | np.generic | pd.Series | pd.Index):
        return plain(value.tolist())
    if isinstance(value, Set | dict):
        return {item if isinstance(item, tuple | Set) else plain(item) for item in value}
    if isinstance(value, Sequence) and not isinstance(value, str):
        return [plain(item) for item in value]
    return value


def _items(text: str) -> object:
    """The values of a list in quotes: `"[1, 2]"`, `"1, 2"`, `"1 2"`; of a set if it stands in braces."""
    inner = text.strip().strip("[](){}")
    parts = inner.split(",") if "," in inner else inner.split()
    items = [part.strip().strip("'\"") for part in parts if part.strip()]
    return set(items) if text.strip().startswith("{") else items


def equal(guess: object, answer: object, exercise: Exercise) -> bool:
    """Whether a guess, made plain, is this answer."""
    if isinstance(answer, set):
        return _equal_sets(guess, answer, exercise)
    if isinstance(answer, list):
        paired = isinstance(guess, list) and len(guess) == len(answer)
        return paired and all(equal(g, a, exercise) for g, a in zip(guess, answer, strict=True))
    if isinstance(answer, bool):
        return truth(guess) is answer
    if isinstance(answer, Real):
        value = number(guess, exercise.unit)
        return value is not None and abs(value - answer) <= exercise.tolerance + 1e-9 * abs(answer)
    return option(guess, exercise.options or (answer,)) == answer


def _equal_sets(guess: object, answer: set, exercise: Exercise) -> bool:
    """In any order; an only member need not be in brackets, and words do for a set of nothing."""
    items = [each for each in (guess if isinstance(guess, list | set) else [guess]) if not _is_nothing(each)]
    matched = all(any(equal(item, each, exercise) for each in answer) for item in items)
    return len(set(map(shown, items))) == len(answer) and matched


def _is_nothing(value: object) -> bool:
    return value is None or (isinstance(value, str) and value in NOTHING)


def truth(guess: object) -> bool | None:
    """True and False, also in words."""
    return TRUTH.get(guess.strip().casefold()) if isinstance(guess, str) else guess if isinstance(guess, bool) else None


def number(guess: object, unit: str) -> float | None:
    """The guess in `unit`; None if it is no number, or one in a unit that cannot be converted."""
    if isinstance(guess, Real) and not isinstance(guess, bool):
        return _finite(guess)
    read = quantity(guess) if isinstance(guess, str) else None
    if read is None:
        return None
    value, own = read
    known = dimension(unit)
    return value if not own else value * known[own] / known[unit] if own in known else None


def _finite(value: Real) -> float | None:
    try:
        return float(value) if math.isfinite(value) else None
    except OverflowError:  # an integer of hundreds of digits
        return None


def option(guess: object, options: Sequence[str]) -> str | None:
    """The option that a guess spells, in any case, with any of `-`, `_` and a blank, or by its first letters alone."""
    if not isinstance(guess, str):
        return None
    spelled = {_letters(each): each for each in options}
    given = _letters(guess)
    begun = [each for letters, each in spelled.items() if given and letters.startswith(given)]
    return spelled.get(given) or (begun[0] if len(begun) == 1 else None)


def _letters(text: str) -> str:
    return re.sub(r"[^a-z0-9]", "", text.casefold())


def form_problem(guess: object, answer: object, exercise: Exercise) -> str:
    """Why a guess cannot be an answer at all; "" if it can."""
    if isinstance(answer, set | list):
        return _collection_problem(guess, answer, exercise)
    if isinstance(answer, bool):
        return "" if truth(guess) is not None else "the question asks for True or False"
    if isinstance(answer, Real):
        return _number_problem(guess, exercise.unit)
    words = exercise.options or (answer,)
    listed = (
        f"choose one of {', '.join(map(repr, words))}"
        if exercise.options
        else "the question asks for a word, in quotes"
    )
    return "" if option(guess, words) or (not exercise.options and isinstance(guess, str)) else listed


def _number_problem(guess: object, unit: str) -> str:
    asked = f"the question asks for {unit}" if unit else "the question asks for a number"
    if number(guess, unit) is not None:
        return ""
    read = quantity(guess) if isinstance(guess, str) else None
    return f"you wrote {read[1]}, {asked}" if read else f"{asked}, one number" if unit else asked


def _collection_problem(guess: object, answer: Collection, exercise: Exercise) -> str:
    if isinstance(answer, set):
        return "" if isinstance(guess, list | set | str | Real) else "the question asks for a set, such as {0, 5}"
    if not isinstance(guess, list):
        order = ", and their order matters: write a list" if isinstance(guess, set) else ", in a list"
        return f"the question asks for several values{order}, such as [1, 2]"
    if len(guess) != len(answer) and exercise.tells_length:
        return f"the question asks for {len(answer)} values, you wrote {len(guess)}"
    return ""


def _right_number_problem(guess: str, answer: Real, exercise: Exercise) -> str:
    """What to say of the right number with another unit behind it."""
    value, own = quantity(guess) or (math.nan, "")
    meant = own and abs(value - answer) <= exercise.tolerance
    return f"the number is right, but you wrote {own}, and the question asks for {exercise.unit}" if meant else ""


def _unit_problem(guess: object, answer: object, exercise: Exercise) -> str:
    """What to say of the right amount in another unit than the one that is asked for."""
    if not exercise.unit or isinstance(answer, bool) or not isinstance(answer, Real):
        return ""
    if isinstance(guess, str):
        return _right_number_problem(guess, answer, exercise)
    value, slack = number(guess, ""), max(UNIT_SLACK, exercise.tolerance / abs(answer) if answer else 0)
    for unit, amount in in_other_units(answer, exercise.unit):
        if value and math.isclose(value, amount, rel_tol=slack):
            return f"you wrote {unit}, the question asks for {exercise.unit}"
    return ""

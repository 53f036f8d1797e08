"""All exercises by number, gathered from the modules `nbNN` of this package."""

from __future__ import annotations

import pkgutil
import re
from collections.abc import Mapping
from functools import cache
from importlib import import_module
from types import MappingProxyType

from mnnvl_lab.course.exercise import Exercise
from mnnvl_lab.errors import Refused, choose, shown

MODULE = re.compile(r"nb(\d\d)")


def notebooks() -> list[str]:
    """Numbers of the notebooks that have exercises."""
    import mnnvl_lab.course as package

    names = (module.name for module in pkgutil.iter_modules(package.__path__))
    return sorted(match[1] for name in names if (match := MODULE.fullmatch(name)))


@cache
def of_notebook(notebook: str) -> tuple[Exercise, ...]:
    """The exercises of a notebook, in its order."""
    return import_module(f"mnnvl_lab.course.nb{notebook}").EXERCISES


@cache
def exercises() -> Mapping[str, Exercise]:
    """All of them, by number."""
    return MappingProxyType({each.number: each for notebook in notebooks() for each in of_notebook(notebook)})


def require_exercise(number: str) -> Exercise:
    """The exercise of that number; loads its notebook's module alone.

    Raises:
        Refused: there is none; lists those of the notebook, or the notebooks that have exercises.
    """
    if not isinstance(number, str):
        raise Refused(f'an exercise is named by a string such as "04.3", got {shown(number)}: put it in quotes')
    notebook, _, question = number.strip().partition(".")
    choose(notebook, notebooks(), "notebook with exercises", remedy='such as "04.3"')
    known = {each.number.partition(".")[2]: each for each in of_notebook(notebook)}
    return known[choose(question, known, f"question of notebook {notebook}")]

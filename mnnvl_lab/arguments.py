"""Arguments as users write them: scalars where an axis has one value, numbers of NumPy, and nothing that only looks so.

Counts and names are in `errors` (`require_count`, `choose`).
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping, Set
from numbers import Real

from mnnvl_lab.errors import Refused, shown

MOST_SEED = 2**63 - 1
"""Seeds are an int64 column of every record."""


def as_axis(name: str, value: object) -> tuple:
    """The values of an axis: those of a list, or a single value as the only one.

    Raises:
        Refused: empty; or a dict or set, which have no order of values.
    """
    if isinstance(value, Mapping | Set):
        raise Refused(f"{name} is {shown(value)}: an axis has an order; pass one value, or a list")
    is_list = isinstance(value, Iterable) and not isinstance(value, str | bytes) and getattr(value, "ndim", 1)
    values = tuple(value) if is_list else (value,)
    if not values:
        raise Refused(f"{name} is empty: a sweep needs at least one value on every axis")
    return values


def whole_in(text: str) -> int | str:
    """The whole number that a text spells, in at most nine digits; else the text, for `require_count` to refuse."""
    return int(text) if re.fullmatch(r"\s*-?[0-9]{1,9}\s*", text) else text


def is_real(value: object) -> bool:
    """Whether a value is a number of Python or NumPy other than a bool; NaN is not one."""
    return isinstance(value, Real) and not isinstance(value, bool) and not math.isnan(value)


def require_real(name: str, value: object, *, least: float, most: float, remedy: str = "pass a number") -> float:
    """`value` as a float, if it is a number in `[least, most]`.

    Raises:
        Refused: names the value, the rule and the remedy.
    """
    if not is_real(value) or not least <= value <= most:
        raise Refused(f"{name} is {shown(value)}: it must be a number from {least:g} to {most:g}; {remedy}")
    return float(value)


def require_flag(name: str, value: object) -> bool:
    """`value` as a bool, if it is True or False, also of NumPy.

    Raises:
        Refused: it is not.
    """
    if type(value).__name__ not in ("bool", "bool_"):
        raise Refused(f"{name} is {shown(value)}: it must be True or False; pass one of these")
    return bool(value)


def require_type(name: str, value: object, kind: type):
    """`value` itself, if it is of that class.

    Raises:
        Refused: it is not.
    """
    if not isinstance(value, kind):
        raise Refused(f"{name} is {shown(value)}: it must be a {kind.__name__}; pass a {kind.__name__}(...)")
    return value

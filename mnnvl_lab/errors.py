"""Exceptions, one class per kind of failure. Every message gives the value, the rule and the remedy."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from difflib import get_close_matches
from functools import wraps
from inspect import Parameter, Signature, signature
from numbers import Integral
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import pandas as pd


MOST_COUNT = 2**31 - 1  # the kernels count in int32


class LabError(Exception):
    """Anything that this package raises on purpose."""


class Refused(LabError, ValueError):
    """Input that breaks a rule of the kernels or of arithmetic: refused before anything is sent."""


class SmLimitFixed(Refused):
    """A process has used the two-sided kernels with another number of multiprocessors: only new ranks can change it."""


class WorkspaceMismatch(LabError, RuntimeError):
    """A workspace that spans another number of ranks than the EP group (vLLM pull request 40893).

    Args:
        kernel_words: what FlashInfer's kernel says, word for word.
        phase: the phase in which it says so: `open` (one-sided) or `dispatch` (two-sided, after `prepare` has passed).
        spans: ranks of the group that allocated the workspace.
        group: name of that group.
        ep_size: ranks of the EP group.
        arithmetic: how `ep_size` comes about, such as `DP 4 x PCP 1 x TP 2`.
    """

    def __init__(self, *, kernel_message: str, phase: str, spans: int, group: str, ep_size: int, arithmetic: str):
        self.kernel_message, self.phase = kernel_message, phase
        self.spans, self.group, self.ep_size = spans, group, ep_size
        self.arithmetic = arithmetic
        super().__init__(
            f"{kernel_message}\nin {phase}: workspace spans {spans} ranks (the {group.upper()} group) "
            f"but ep_size is {ep_size} = {arithmetic}: allocate it over the EP group"
        )

    def __reduce__(self):
        return _rebuild, (type(self), self.__dict__)


class WrongResult(LabError, AssertionError):
    """Dispatch or combine returned other bits than the oracle: nothing measured with it counts."""


class RankError(LabError, RuntimeError):
    """A rank that failed, died or never answered.

    Args:
        rank: global rank.
        phase: what it was doing, such as `start`, `open`, `dispatch`.
        cause: what happened, in words.
        report: the rank's traceback or output, if there is any.
    """

    def __init__(self, *, rank: int, phase: str, cause: str, report: str = ""):
        self.rank, self.phase, self.cause, self.report = rank, phase, cause, report
        super().__init__(f"rank {rank} in {phase}: {cause}" + (f"\n{report}" if report else ""))

    def __reduce__(self):
        return _rebuild, (type(self), self.__dict__)


class RankDied(RankError):
    """A rank's process ended."""


class RankTimeout(RankError):
    """A rank did not finish within its limit."""


class Hang(RankTimeout):
    """Ranks that wait for one another and will not get on; they were looked at, then killed.

    Args:
        rank, phase, cause, report: as `RankError`; the rank is the one that never arrived, where that is known.
        hang_report: what every rank showed and who waits for whom (`mnnvl_lab.hang.HangReport`).
    """

    def __init__(self, *, rank: int, phase: str, cause: str, hang_report: Any, report: str = ""):
        self.hang_report = hang_report
        super().__init__(rank=rank, phase=phase, cause=cause, report=report)


class HelperDied(LabError, RuntimeError):
    """A process that serves the ranks died or did not answer; the ranks are not to blame, and the next call goes on.

    Args:
        helper: `controller` or `fork server`.
        cause: how it ended, in words.
        report: the end of its log, if there is any.
    """

    def __init__(self, *, helper: str, cause: str, report: str = ""):
        self.helper, self.cause, self.report = helper, cause, report
        super().__init__(
            f"the {helper} process died: {cause}; no rank is to blame, and the next call starts another {helper}"
            + (f"\n{report}" if report else "")
        )

    def __reduce__(self):
        return _rebuild, (type(self), self.__dict__)


class RecordError(LabError, ValueError):
    """A record file that is truncated, foreign, newer, or of another fabric, device or clock."""


class Interrupted(KeyboardInterrupt):
    """An interrupt while ranks worked or a sweep ran: says what was stopped and what there is.

    No `LabError`: like any KeyboardInterrupt it passes `except Exception`. A notebook shows its message alone.

    Attributes:
        table: the finished points of a sweep, as `run` would have returned them; None where there are none.
    """

    def __init__(self, message: str, *, table: pd.DataFrame | None = None):
        self.table = table
        super().__init__(message)

    def _render_traceback_(self) -> list[str]:
        """What IPython shows in place of a traceback."""
        return f"Interrupted: {self}".splitlines()


def _rebuild(cls, fields):
    """Exceptions with keyword-only arguments cross process borders through their fields."""
    return cls(**{name: value for name, value in fields.items() if name != "args"})


def choose(name: object, known: Iterable[str], what: str, *, remedy: str = "") -> str:
    """The member of `known` that `name` spells, in any case and with `-` and `_` alike.

    Args:
        name: what was given.
        known: the names that exist, as they are to be listed.
        what: noun of the thing, such as `model`.
        remedy: what else the reader can do, in words that may follow "choose one of ...,".

    Raises:
        Refused: `name` is no such name; gives the nearest and all.
    """
    names = list(known)
    if isinstance(name, str):
        spellings = {_folded(one): one for one in reversed(names)} | {one: one for one in names}
        if (found := spellings.get(name) or spellings.get(_folded(name))) is not None:
            return found
        folded = {_folded(one): one for one in names}
        near = [folded[one] for one in get_close_matches(_folded(name), folded, n=3, cutoff=0.5)]
        hint = f"did you mean {' or '.join(near)}? " if near else ""
    else:
        hint = "a name is a string; "
    raise Refused(
        f"{what} {shown(name)} is not known: {hint}choose one of {', '.join(names)}{remedy and f', {remedy}'}"
    )


def named_arguments(function: Callable) -> Callable:
    """Let a public function refuse misspelt, missing and surplus arguments in words, where Python raises TypeError.

    The decorated function raises `Refused` with the nearest names; the decorator serves functions and, by
    `named_fields`, dataclasses.
    """
    known = signature(function)
    name = function.__qualname__.removesuffix(".__init__")
    fits = _fits(known)

    @wraps(function)
    def checked(*args, **kwargs):
        try:
            if not fits(args, kwargs):
                known.bind(*args, **kwargs)
        except TypeError as error:
            raise _unbound(name, known, kwargs, error) from None
        return function(*args, **kwargs)

    return checked


def _fits(known: Signature) -> Callable[[tuple, dict], bool]:
    """Whether arguments surely match a signature, in a fraction of the time of `Signature.bind`; False may match too.

    Models, layouts and loads are made by the thousand: every field by keyword, the rest by place.
    """
    by_place = [
        p for p in known.parameters.values() if p.kind in (Parameter.POSITIONAL_ONLY, Parameter.POSITIONAL_OR_KEYWORD)
    ]
    by_name = frozenset(name for name, p in known.parameters.items() if p.kind == Parameter.KEYWORD_ONLY)
    needed = frozenset(name for name in by_name if known.parameters[name].default is Parameter.empty)
    least = sum(p.default is Parameter.empty for p in by_place)

    def fits(args: tuple, kwargs: dict) -> bool:
        return least <= len(args) <= len(by_place) and needed <= kwargs.keys() <= by_name

    return fits


def named_fields(cls: type) -> type:
    """`named_arguments` for the fields of a dataclass."""
    cls.__init__ = named_arguments(cls.__init__)
    return cls


def _unbound(name: str, known: Signature, given: Iterable[str], error: TypeError) -> Refused:
    names = [one for one, each in known.parameters.items() if one != "self" and each.kind != Parameter.VAR_KEYWORD]
    for one in given:
        if one not in names:
            try:
                return Refused(f"argument of {name} {one!r} is not known: write {choose(one, names, 'argument')}")
            except Refused as refusal:
                return Refused(str(refusal).replace("argument", f"argument of {name}", 1))
    written = ", ".join(f"{one}=..." for one in names[:3])
    return Refused(f"{name}: {error}; write {name}({written}{', ...' if len(names) > 3 else ''})")


def require_count(
    name: str, value: int, *, least: int = 1, most: int = MOST_COUNT, remedy: str = "pass a positive integer"
) -> int:
    """`value` as an int, if it is a whole number in `[least, most]`.

    Raises:
        Refused: names the value, the rule and the remedy.
    """
    if not is_whole(value) or value < least:
        raise Refused(f"{name} is {shown(value)}: it must be a whole number of at least {least}; {remedy}")
    if value > most:
        raise Refused(f"{name} is {shown(value)}: it must be at most {most}; use a smaller one")
    return int(value)


def is_whole(value: object) -> bool:
    """Whether a value is an integer of Python or NumPy, and no bool."""
    return isinstance(value, Integral) and not isinstance(value, bool)


def shown(value: object, most: int = 60) -> str:
    """`repr(value)` for an error text: short, and safe for any value.

    Integers of thousands of digits have no `repr` in Python, and an object's own may raise.
    """
    try:
        text = repr(value)
    except Exception:
        return f"a value of type {type(value).__name__} that cannot be printed"
    return text if len(text) <= most else f"{text[: most - 3]}..."


def _folded(name: str) -> str:
    return name.strip().casefold().replace("-", "_")

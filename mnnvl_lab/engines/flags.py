"""A server's command line as values: flags that decide the layout are read, others are kept by name."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from difflib import get_close_matches

from mnnvl_lab.errors import Refused, require_count, shown

SWITCH, COUNT, TEXT = "switch", "count", "text"
MOST_COUNT = 2**31 - 1
ASSIGNMENT = re.compile(r"[A-Z][A-Z0-9_]*=")
TRUE, FALSE = ("true", "1", "yes", "on"), ("false", "0", "no", "off")


@dataclass(frozen=True, kw_only=True)
class Flag:
    """One flag that is read.

    Attributes:
        name: its field in the values.
        spellings: as the engine writes it, dashes for underscores, the usual one first.
        kind: `switch`, `count` (a whole number) or `text`.
        least: least count.
    """

    name: str
    spellings: tuple[str, ...]
    kind: str = COUNT
    least: int = 1


@dataclass(frozen=True, kw_only=True)
class CommandLine:
    """What a command line says.

    Attributes:
        values: of the flags that are read, by name.
        environment: assignments before the command.
        words: what stands without a flag, such as the model.
        unread: flags that do not matter here, in order.
    """

    values: Mapping[str, int | str | bool]
    environment: Mapping[str, str]
    words: tuple[str, ...]
    unread: tuple[str, ...]

    def count(self, name: str, default: int) -> int:
        return int(self.values.get(name, default))

    def text(self, name: str, default: str = "") -> str:
        return str(self.values.get(name, default))

    def on(self, name: str) -> bool:
        return bool(self.values.get(name, False))


def read(text: str | Sequence[str], *, engine: str, flags: Sequence[Flag], others: Iterable[str] = ()) -> CommandLine:
    """Read a command line.

    Args:
        text: as typed, or its words.
        engine: whose, for error texts.
        flags: that are read.
        others: flags of the engine that look like one of `flags` and do not matter here.

    Raises:
        Refused: a flag that looks like a misspelt one, a value that is missing or not of its kind, an open quote.
    """
    spelled = {spelling: flag for flag in flags for spelling in flag.spellings}
    values: dict[str, int | str | bool] = {}
    environment, words, unread = {}, [], []
    rest = _words(text, engine)
    while rest:
        word = rest.pop(0)
        if not word.startswith("-") or word == "-":
            _keep_word(word, words, environment)
            continue
        spelling, has_value, value = word.partition("=")
        folded = spelling.replace("_", "-")
        if (flag := spelled.get(folded)) is not None:
            values[flag.name] = _value(flag, spelling, value if has_value else None, rest)
            continue
        _require_far(folded, spelled, others, engine)
        unread.append(spelling)
        if not has_value:
            _drop_values(rest)
    return CommandLine(values=values, environment=environment, words=tuple(words), unread=tuple(unread))


def _words(text: str | Sequence[str], engine: str) -> list[str]:
    if not isinstance(text, str):
        return [str(word) for word in text]
    try:
        return shlex.split(text.replace("\\\n", " "), comments=False)
    except ValueError as reason:
        raise Refused(f"flags of {engine} {shown(text)}: {reason}; close the quote") from reason


def _keep_word(word: str, words: list[str], environment: dict[str, str]) -> None:
    if ASSIGNMENT.match(word):
        name, _, value = word.partition("=")
        environment[name] = value
    else:
        words.append(word)


def _value(flag: Flag, spelling: str, given: str | None, rest: list[str]) -> int | str | bool:
    if flag.kind == SWITCH:
        return _switch(spelling, given, rest)
    if given is None:
        if not rest or _is_flag(rest[0]):
            example = "2" if flag.kind == COUNT else "VALUE"
            raise Refused(f"{spelling} has no value: it takes one; write {spelling} {example}")
        given = rest.pop(0)
    if flag.kind == TEXT:
        return given
    if not re.fullmatch(r"[+-]?\d+", given):
        raise Refused(f"{spelling} is {shown(given)}: it takes a whole number of at least {flag.least}; pass digits")
    return require_count(spelling, int(given), least=flag.least, most=MOST_COUNT, remedy="pass a larger number")


def _switch(spelling: str, given: str | None, rest: list[str]) -> bool:
    if given is None and rest and rest[0].lower() in (*TRUE, *FALSE):
        given = rest.pop(0)
    if given is None or given.lower() in TRUE:
        return True
    if given.lower() in FALSE:
        return False
    raise Refused(f"{spelling} is {shown(given)}: it takes true or false, or no value; write {spelling} alone")


def _require_far(folded: str, spelled: Mapping[str, Flag], others: Iterable[str], engine: str) -> None:
    """Refuse what is nearly a flag that matters: a misspelt one would be ignored otherwise."""
    if folded in set(others):
        return
    near = get_close_matches(folded, [name for name in spelled if len(name) > 5], n=1, cutoff=0.87)
    if near:
        raise Refused(f"flag {folded} is not one of {engine}: did you mean {near[0]}? Correct it, or leave it out")


def _drop_values(rest: list[str]) -> None:
    """What follows an unread flag up to the next flag is its own."""
    while rest and not _is_flag(rest[0]):
        rest.pop(0)


def _is_flag(word: str) -> bool:
    return word.startswith("-") and not re.fullmatch(r"-\d+(\.\d+)?", word)

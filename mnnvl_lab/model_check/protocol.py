"""A protocol as a closed system: straight-line programs of a few processes over named cells.

A step is atomic. A store to memory that a peer reads (`Memory.put`) becomes visible at any later moment, and stores to
different cells in any order, until their process passes a fence: the weak memory model of stores over a link.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass


class Violation(Exception):
    """A property that does not hold; the message says which."""


class Memory:
    """The cells, as one process reads and changes them in one step."""

    def __init__(self, index: Mapping[str, int], cells: list, pending: list, process: int):
        self._index, self._cells, self._pending, self._process = index, cells, pending, process

    def __getitem__(self, name: str):
        return self._cells[self._index[name]]

    def __setitem__(self, name: str, value) -> None:
        self._cells[self._index[name]] = value

    def put(self, name: str, value) -> None:
        """Store to memory that a peer reads: visible later, unordered with stores to other cells."""
        self._pending.append((self._process, self._index[name], value))

    def require(self, name: str, expected) -> None:
        """Raise `Violation` unless the cell holds `expected`."""
        if self[name] != expected:
            raise Violation(f"{name} holds {self[name]!r} where {expected!r} is expected")


@dataclass(frozen=True, kw_only=True)
class Step:
    """One atomic step: `act` runs once `guard` holds; a `fence` waits until the process's own stores are visible."""

    label: str
    act: Callable[[Memory], None] = lambda memory: None
    guard: Callable[[Memory], bool] | None = None
    fence: bool = False


@dataclass(frozen=True, kw_only=True)
class Protocol:
    """A closed system: the steps of each process by its name, and the first value of every cell."""

    name: str
    programs: Mapping[str, tuple[Step, ...]]
    cells: Mapping[str, object]

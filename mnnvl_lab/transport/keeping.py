"""Workspaces that stay on warm ranks between two transports, and grow when a larger need comes.

A workspace normally goes when its transport closes. After `keep_workspaces(rank)` closing only puts it aside: the next
transport of the mode takes it as it is if it fits, and else one that serves both needs replaces it.
"""

from __future__ import annotations

import uuid
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from mnnvl_lab.ranks.group import Group
    from mnnvl_lab.ranks.rank import Rank

SHELF = "workspaces"  # its place in `Rank.kept`, whose objects are closed when the rank gets another layout


class Memory(Protocol):
    def close(self) -> None: ...


@dataclass(frozen=True, kw_only=True)
class Held:
    """A workspace in use: what it was laid out for, its memory, and the ticket that all its ranks hold."""

    plan: object
    memory: Memory
    ticket: str


@dataclass(frozen=True, kw_only=True)
class Shelf:
    """Workspaces put aside, by mode."""

    held: dict[str, Held] = field(default_factory=dict)

    def close(self) -> None:
        while self.held:
            self.held.popitem()[1].memory.close()


def keep_workspaces(rank: Rank) -> None:
    """From now on, transports that close on this rank leave their workspace to the next."""
    rank.kept.setdefault(SHELF, Shelf())


def release_workspaces(rank: Rank) -> None:
    """Free what is put aside, and free workspaces at once from now on."""
    rank.kept.pop(SHELF, Shelf()).close()


def take(rank: Rank, group: Group, name: str, need: object, allocate: Callable[[object], Memory]) -> Held:
    """The workspace put aside under `name` if it serves `need` on all ranks, else a new one. Collective.

    Args:
        need: a plan of `mnnvl_lab.workspace`. One with `fits` and `union` can grow; another must be equal to be reused.
        allocate: makes the memory of a plan. Collective.
    """
    shelf = rank.kept.get(SHELF, Shelf())
    held = shelf.held.pop(name, None)
    tickets = set(group.allgather(held and held.ticket))
    shared = held if held and tickets == {held.ticket} else None  # not where a rank was renewed
    if shared and _serves(shared.plan, need):
        return shared
    plan = (
        shared.plan.union(need) if shared and hasattr(need, "union") and shared.plan.ep_size == need.ep_size else need
    )
    if held:
        held.memory.close()
    del held, shared
    ticket = group.broadcast(uuid.uuid4().hex)
    return Held(plan=plan, memory=allocate(plan), ticket=ticket)


def put_back(rank: Rank, name: str, held: Held) -> None:
    """Keep a workspace that a transport is done with, or free it."""
    shelf = rank.kept.get(SHELF)
    if shelf is None:
        held.memory.close()
    else:
        shelf.held[name] = held


def _serves(plan: object, need: object) -> bool:
    return plan == need or (hasattr(plan, "fits") and plan.fits(need))

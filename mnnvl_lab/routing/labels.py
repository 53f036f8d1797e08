"""From a label, as records hold it, back to the routing."""

from __future__ import annotations

from dataclasses import fields

from mnnvl_lab.errors import Refused
from mnnvl_lab.routing.balanced import Balanced
from mnnvl_lab.routing.base import Routing
from mnnvl_lab.routing.hot import HotExpert, HotRank
from mnnvl_lab.routing.popularity import LogNormal, Uniform, Zipf

ROUTINGS: tuple[type[Routing], ...] = (Uniform, Zipf, LogNormal, HotExpert, HotRank, Balanced)


def parse(text: str) -> Routing:
    """`zipf:1.2` to `Zipf(exponent=1.2)`; a missing number takes its default.

    Raises:
        Refused: no such routing, or not its numbers. A replay is more than its label: pass `Replay(table_TK)`.
    """
    name, *values = text.split(":")
    cls = {cls.label: cls for cls in ROUTINGS}.get(name)
    if cls is None:
        known = ", ".join(cls.label for cls in ROUTINGS)
        remedy = "pass Replay(table_TK) itself" if name == "replay" else "choose one of these"
        raise Refused(f"routing {text!r}: labels that can be parsed begin with {known}; {remedy}")
    try:
        routing = cls(**{f.name: _number(f.type, value) for f, value in zip(fields(cls), values, strict=False)})
    except (TypeError, OverflowError, ValueError) as error:
        raise error if isinstance(error, Refused) else Refused(f"routing {text!r}: {_rule(cls)}") from error
    if len(values) > len(fields(cls)):
        raise Refused(f"routing {text!r}: {_rule(cls)}")
    return routing


def _number(kind: str, value: str) -> float:
    return int(value) if kind == "int" else float(value)


def _rule(cls: type[Routing]) -> str:
    return f"write {':'.join([cls.label, *(f.name.upper() for f in fields(cls))])} with a number for each name"

"""From a label, as records hold it, back to the routing."""

from __future__ import annotations

from dataclasses import fields

from mnnvl_lab.errors import Refused, choose, shown
from mnnvl_lab.routing.balanced import Balanced
from mnnvl_lab.routing.base import Routing
from mnnvl_lab.routing.hot import HotExpert, HotRank
from mnnvl_lab.routing.popularity import LogNormal, Uniform, Zipf

ROUTINGS: tuple[type[Routing], ...] = (Uniform, Zipf, LogNormal, HotExpert, HotRank, Balanced)


def parse(text: Routing | str) -> Routing:
    """`zipf:1.2` to `Zipf(exponent=1.2)`, in any case; a missing number takes its default.

    The underscore of a label may be left out (`lognormal:1`). A `Routing` is returned as it is.

    Raises:
        Refused: no such routing, or not its numbers. A replay is more than its label: pass `Replay(table_TK)`.
    """
    if isinstance(text, Routing):
        return text
    name, *values = text.split(":") if isinstance(text, str) else [text]
    if name == "replay":
        raise Refused(f"routing {shown(text)}: a replay is more than its label; pass Replay(table_TK) itself")
    labels = {cls.label: cls for cls in ROUTINGS}
    joined = {label.replace("_", ""): label for label in labels}
    spelled = joined.get(name.strip().casefold(), name) if isinstance(name, str) else name
    cls = labels[choose(spelled, labels, "routing")]
    try:
        routing = cls(**{f.name: _number(f.type, value) for f, value in zip(fields(cls), values, strict=False)})
    except (TypeError, OverflowError, ValueError) as error:
        raise error if isinstance(error, Refused) else Refused(f"routing {shown(text)}: {_rule(cls)}") from error
    if len(values) > len(fields(cls)):
        raise Refused(f"routing {shown(text)}: {_rule(cls)}")
    return routing


def _number(kind: str, value: str) -> float:
    return int(value) if kind == "int" else float(value)


def _rule(cls: type[Routing]) -> str:
    return f"write {':'.join([cls.label, *(f.name.upper() for f in fields(cls))])} with a number for each name"

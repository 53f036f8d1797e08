"""Which experts the tokens choose, how many tokens each rank has, and the traffic that follows."""

from mnnvl_lab.routing import traffic
from mnnvl_lab.routing.distributions import (
    Balanced,
    HotExpert,
    HotRank,
    LogNormal,
    Replay,
    Routing,
    Uniform,
    Zipf,
    parse,
)
from mnnvl_lab.routing.traffic import Load

__all__ = [
    "Balanced",
    "HotExpert",
    "HotRank",
    "Load",
    "LogNormal",
    "Replay",
    "Routing",
    "Uniform",
    "Zipf",
    "parse",
    "traffic",
]

"""Which experts the tokens choose, how many tokens each rank has, and the traffic that follows."""

from mnnvl_lab.routing import traffic
from mnnvl_lab.routing.batches import Server, Step
from mnnvl_lab.routing.distributions import (
    ROUTINGS,
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
from mnnvl_lab.routing.padding import Padding
from mnnvl_lab.routing.traffic import Load

__all__ = [
    "ROUTINGS",
    "Balanced",
    "HotExpert",
    "HotRank",
    "Load",
    "LogNormal",
    "Padding",
    "Replay",
    "Routing",
    "Server",
    "Step",
    "Uniform",
    "Zipf",
    "parse",
    "traffic",
]

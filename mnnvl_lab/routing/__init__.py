"""Which experts the tokens choose, how many tokens each rank has, and the traffic that follows."""

from mnnvl_lab.routing import traffic
from mnnvl_lab.routing.balanced import Balanced
from mnnvl_lab.routing.base import Routing
from mnnvl_lab.routing.hot import HotExpert, HotRank
from mnnvl_lab.routing.labels import parse
from mnnvl_lab.routing.load import Load
from mnnvl_lab.routing.popularity import LogNormal, Uniform, Zipf
from mnnvl_lab.routing.replay import Replay

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

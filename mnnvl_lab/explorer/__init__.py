"""The explorer: panels as plain functions of a layout, a plan or a table; `explore` puts widgets beside them."""

from mnnvl_lab.explorer.answer import Answer, answer, headline
from mnnvl_lab.explorer.code import code_of
from mnnvl_lab.explorer.grid import grid_panel
from mnnvl_lab.explorer.latency import latency_panel, numbers_panel
from mnnvl_lab.explorer.memory import memory_panel, verdict
from mnnvl_lab.explorer.setting import Setting, difference, nearest, recorded_points
from mnnvl_lab.explorer.svg import Panel
from mnnvl_lab.explorer.traffic import fullest_link, traffic_panel
from mnnvl_lab.planner.weights import weight_bytes

__all__ = [
    "Answer",
    "Panel",
    "Setting",
    "answer",
    "code_of",
    "difference",
    "fullest_link",
    "grid_panel",
    "headline",
    "latency_panel",
    "memory_panel",
    "nearest",
    "numbers_panel",
    "recorded_points",
    "traffic_panel",
    "verdict",
    "weight_bytes",
]

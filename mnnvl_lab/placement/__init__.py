"""Placement of experts on ranks: maps, DeepSeek's EPLB, the least redundancy that each layer needs, and effects."""

from mnnvl_lab.placement.balance import balanced
from mnnvl_lab.placement.effects import effects, per_rank
from mnnvl_lab.placement.least import least_redundant
from mnnvl_lab.placement.maps import Placement
from mnnvl_lab.placement.placed import Placed, logical_ids

__all__ = ["Placed", "Placement", "balanced", "effects", "least_redundant", "logical_ids", "per_rank"]

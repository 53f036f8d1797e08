"""How much memory a layout's workspaces take, before any is taken: forwards and backwards."""

from mnnvl_lab.planner.modes import ModePlan
from mnnvl_lab.planner.plan import Plan, plan

__all__ = ["ModePlan", "Plan", "plan"]

"""How much memory a layout's workspaces take, before any is taken: forwards, backwards, and for the wrong group."""

from mnnvl_lab.planner.modes import ModePlan
from mnnvl_lab.planner.plans import Plan, plan
from mnnvl_lab.planner.wrong import WrongGroup, wrong_group

__all__ = ["ModePlan", "Plan", "WrongGroup", "plan", "wrong_group"]

"""How much memory a layout's workspaces take, before any is taken: forwards and backwards, alone and in a server."""

from mnnvl_lab.planner.deployment import Deployment
from mnnvl_lab.planner.live import Head, LiveWorkspace
from mnnvl_lab.planner.modes import ModePlan
from mnnvl_lab.planner.plan import Plan, plan

__all__ = ["Deployment", "Head", "LiveWorkspace", "ModePlan", "Plan", "plan"]

"""Bytes and regions of either mode's workspace, exactly as the kernels lay them out, and what they cost."""

from mnnvl_lab.workspace.mnnvl import Allocation, Region, Window, pack
from mnnvl_lab.workspace.one_sided import OneSidedWorkspace
from mnnvl_lab.workspace.two_sided import TwoSidedWorkspace

__all__ = ["Allocation", "OneSidedWorkspace", "Region", "TwoSidedWorkspace", "Window", "pack"]

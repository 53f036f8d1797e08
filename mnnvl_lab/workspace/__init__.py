"""Bytes and regions of either mode's workspace, exactly as the kernels lay them out, and what they cost."""

from mnnvl_lab.workspace.kernel_limits import kernel_wait_limit_s
from mnnvl_lab.workspace.mnnvl import Allocation, Region, Window, pack
from mnnvl_lab.workspace.one_sided import OneSidedWorkspace
from mnnvl_lab.workspace.one_sided_main import MainOneSidedWorkspace
from mnnvl_lab.workspace.two_sided import (
    TwoSidedWorkspace,
    fills_last_step,
    first_rows_that_fill,
    packets_per_row,
    prepare_packets,
    rows_per_entry,
)

__all__ = [
    "Allocation",
    "MainOneSidedWorkspace",
    "OneSidedWorkspace",
    "Region",
    "TwoSidedWorkspace",
    "Window",
    "fills_last_step",
    "first_rows_that_fill",
    "kernel_wait_limit_s",
    "pack",
    "packets_per_row",
    "prepare_packets",
    "rows_per_entry",
]

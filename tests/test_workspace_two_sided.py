"""The two-sided workspace, and what MNNVL takes for either, against recorded numbers and counting."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mnnvl_lab.errors import Refused
from mnnvl_lab.workspace import Allocation, TwoSidedWorkspace, pack
from mnnvl_lab.workspace.two_sided import packets_per_row, rows_per_entry

MIB = 2**20


def most_channels(ep_size, multiprocessors):
    """Count channels up until their blocks would take more than half the multiprocessors."""
    blocks = sum(2 for first_peer in range(0, ep_size, 8))
    channels = 1
    while 2 * (channels + 1) * blocks <= multiprocessors:
        channels += 1
    return channels


def test_recorded_sizes_at_two_ranks_on_132_multiprocessors():
    workspace = TwoSidedWorkspace(ep_size=2)
    sizes = workspace.channels, workspace.workspace_bytes, workspace.prepare_bytes
    assert sizes == (33, 138_428_928, 2_097_664)


@pytest.mark.parametrize(
    ("ep_size", "channels", "fifo_mib"), [(2, 33, 132), (4, 33, 264), (8, 33, 528), (16, 16, 512), (64, 4, 512)]
)
def test_worked_examples_on_132_multiprocessors(ep_size, channels, fifo_mib):
    workspace = TwoSidedWorkspace(ep_size=ep_size)
    assert workspace.channels == channels
    assert workspace.regions[0].size_bytes == fifo_mib * MIB
    assert workspace.workspace_bytes == fifo_mib * MIB + 256 * ep_size * channels


@given(ep_size=st.integers(1, 128), multiprocessors=st.integers(32, 200))
def test_channels_take_at_most_half_the_multiprocessors(ep_size, multiprocessors):
    workspace = TwoSidedWorkspace(ep_size=ep_size, multiprocessors=multiprocessors)
    assert workspace.channels == most_channels(ep_size, multiprocessors)


@pytest.mark.parametrize(("sm_limit", "usable"), [(None, 132), (66, 66), (33, 33), (500, 132)])
def test_a_limit_is_clamped_to_the_gpu(sm_limit, usable):
    limited = TwoSidedWorkspace(ep_size=8, multiprocessors=132, sm_limit=sm_limit)
    assert limited.channels == most_channels(8, usable)


@given(ep_size=st.integers(1, 24), multiprocessors=st.integers(8, 64))
def test_fifos_and_connections_tile_the_workspace(ep_size, multiprocessors):
    workspace = TwoSidedWorkspace(ep_size=ep_size, multiprocessors=multiprocessors)
    lanes = [(peer, channel) for peer in range(ep_size) for channel in range(workspace.channels)]
    fifos = [workspace.fifo_offset(*lane) for lane in lanes]
    connections = [workspace.connection_offset(*lane) for lane in lanes]
    assert fifos == list(range(0, 2 * MIB * len(lanes), 2 * MIB))
    assert connections == list(range(fifos[-1] + 2 * MIB, workspace.workspace_bytes, 256))


def test_regions_say_their_shapes():
    fifos, connections = TwoSidedWorkspace(ep_size=2).regions
    assert fifos.shape == (2, 33, 8, 256 * 1024)
    assert (connections.shape, connections.end_bytes) == ((2, 33, 32), 138_428_928)
    prepare_fifos, prepare_connections = TwoSidedWorkspace(ep_size=2).prepare_regions
    assert prepare_fifos.shape == (2, MIB)
    assert (prepare_connections.shape, prepare_connections.end_bytes) == ((2, 32), 2_097_664)


@pytest.mark.parametrize(
    ("row_bytes", "packets", "rows"), [(16, 1, 128), (1920, 1, 128), (1936, 2, 64), (14336, 8, 16), (245_760, 128, 1)]
)
def test_rows_in_packets_and_entries(row_bytes, packets, rows):
    assert (packets_per_row(row_bytes), rows_per_entry(row_bytes)) == (packets, rows)


def test_a_longer_row_fits_no_entry():
    assert rows_per_entry(245_776) == 0


def test_too_few_multiprocessors_are_refused():
    with pytest.raises(Refused, match=r"3 usable multiprocessors.*4 thread blocks"):
        TwoSidedWorkspace(ep_size=16, sm_limit=3)
    with pytest.raises(Refused, match="sm_limit is 0"):
        TwoSidedWorkspace(ep_size=2, sm_limit=0)


@pytest.mark.parametrize(
    ("asked_bytes", "allocated_bytes"),
    [(236_126_592, 236_978_176), (138_428_928, 140_509_184), (2_097_664, 4_194_304)],
)
def test_allocations_as_cuda_reported_them(asked_bytes, allocated_bytes):
    assert Allocation(asked_bytes=asked_bytes, ep_size=2).allocated_bytes == allocated_bytes


def test_the_worked_example_is_mapped_and_reserved():
    allocation = Allocation(asked_bytes=471_171_456, ep_size=8)
    assert allocation.allocated_bytes == 450 * MIB
    assert (allocation.mapped_bytes, allocation.reserved_bytes) == (3600 * MIB, 4096 * MIB)
    assert allocation.rank_stride_bytes == 512 * MIB


def test_windows_take_allocations_until_full_and_never_go_back():
    windows = pack([300 * MIB, 200 * MIB, 14 * MIB, MIB], ep_size=2)
    assert [len(window.allocations) for window in windows] == [2, 2]
    assert [window.reserved_bytes for window in windows] == [1024 * MIB] * 2
    assert [window.allocated_bytes for window in windows] == [500 * MIB, 16 * MIB]
    assert windows[1].mapped_bytes == 32 * MIB


def test_an_exactly_full_window_is_one_window():
    (window,) = pack([510 * MIB, 2 * MIB], ep_size=4)
    assert window.reserved_bytes == 2048 * MIB


def test_an_allocation_of_nothing_is_refused():
    with pytest.raises(Refused, match="asked_bytes is 0"):
        Allocation(asked_bytes=0, ep_size=2)

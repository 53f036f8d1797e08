"""The one-sided workspace against worked examples, a closed form of the kernels' offsets, and arithmetic laws."""

from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mnnvl_lab.errors import Refused
from mnnvl_lab.exchange import ExchangeShape
from mnnvl_lab.layout import Layout
from mnnvl_lab.workspace import OneSidedWorkspace

GIB = 2**30
FIELDS = [
    "flag_val",
    "local_token_counter",
    "send_counters",
    "recv_counters",
    "dispatch_completion_flags",
    "combine_completion_flags",
    "topk_target_ranks",
    "topk_send_indices",
    "eplb_gathered_stats",
    "payload_data",
]


def padded(size):
    return size + -size % 128


def closed_form_metainfo(ranks, tokens, stats):
    """Offsets as sums of padded sizes, in place of the kernels' running total (`calculateOffsets`)."""
    counters, flags, table = padded(8 + 8 * ranks), padded(4 * ranks), padded(88 * tokens)
    head = [0, 4, 8, 8 + 4 * ranks]
    tail = [counters, flags, flags, table, table, padded(4 * ranks * stats)]
    return [*head, *(sum(tail[: i + 1]) for i in range(6))]


needs = st.builds(
    OneSidedWorkspace,
    ep_size=st.integers(1, 64),
    max_tokens=st.integers(1, 5000),
    dispatch_bytes_per_token=st.integers(0, 20000),
    combine_bytes_per_token=st.integers(0, 20000),
    eplb_stats_experts=st.integers(0, 300),
)


@given(need=needs)
def test_offsets_and_size_equal_the_closed_form(need):
    expected = closed_form_metainfo(need.ep_size, need.max_tokens, need.eplb_stats_experts)
    rows = need.ep_size * need.max_tokens
    size = expected[-1] + padded(rows * need.dispatch_bytes_per_token) + padded(rows * need.combine_bytes_per_token)
    assert need.metainfo.tolist() == expected
    assert need.metainfo.dtype == np.int64
    assert (need.aux_bytes, need.workspace_bytes) == (expected[-1], size)


@pytest.mark.parametrize(
    ("ep_size", "max_tokens", "workspace_bytes"),
    [(8, 2048, 471_171_456), (2, 4096, 236_126_592), (4, 1024, 117_883_264), (8, 1024, 235_585_920)],
)
def test_recorded_sizes_of_bf16_at_hidden_7168_and_top_8(ep_size, max_tokens, workspace_bytes):
    need = ExchangeShape(layout=Layout(dp=ep_size), max_tokens=max_tokens, hidden=7168, experts=256, top_k=8)
    assert OneSidedWorkspace.of(need).workspace_bytes == workspace_bytes


def test_the_worked_example_part_by_part():
    need = ExchangeShape(layout=Layout(tp=2, dp=4), max_tokens=2048, hidden=7168, experts=256, top_k=8)
    workspace = OneSidedWorkspace.of(need)
    parts = workspace.aux_bytes, workspace.dispatch_bytes, workspace.combine_bytes
    assert parts == (360_832, 235_929_600, 234_881_024)


VLLM_GIB = {
    4: (0.56, 0.67, 0.88),
    8: (1.13, 1.33, 1.76),
    16: (2.25, 2.66, 3.51),
    32: (4.50, 5.32, 7.02),
    64: (9.00, 10.64, 14.03),
}


@pytest.mark.parametrize("ep_size", VLLM_GIB)
def test_gib_of_vllms_dispatch_layouts_at_8192_tokens(ep_size):
    expected = dict(zip(("nvfp4", "fp8_block", "bf16"), VLLM_GIB[ep_size], strict=True))
    expected["mxfp8"] = expected["fp8_block"]
    for name, gib in expected.items():
        need = ExchangeShape(layout=Layout(dp=ep_size), max_tokens=8192, hidden=7168, experts=256, top_k=8, format=name)
        assert round(OneSidedWorkspace.of(need).workspace_bytes / GIB, 2) == pytest.approx(gib, abs=0.005), name


def test_combine_is_78_percent_of_the_nvfp4_workspace():
    need = ExchangeShape(layout=Layout(dp=8), max_tokens=8192, hidden=7168, experts=256, top_k=8, format="nvfp4")
    workspace = OneSidedWorkspace.of(need)
    assert round(workspace.combine_bytes / workspace.workspace_bytes, 2) == 0.78


@given(need=needs)
def test_tiles_lie_in_order_without_overlap_and_end_with_the_workspace(need):
    tiles = need.tiles
    assert all(a.end_bytes <= b.offset_bytes for a, b in pairwise(tiles))
    assert tiles[-1].end_bytes == need.workspace_bytes
    gaps = need.workspace_bytes - sum(tile.size_bytes for tile in tiles)
    assert gaps < 6 * 128


@given(need=needs)
def test_regions_are_the_metainfo_fields_and_fill_their_bytes(need):
    assert [region.name for region in need.regions] == [*FIELDS, "dispatch", "combine"]
    assert [region.offset_bytes for region in need.regions[:10]] == need.metainfo.tolist()
    for region in need.regions:
        assert np.prod(region.shape) * np.dtype(region.dtype).itemsize == region.size_bytes
    payload, dispatch, combine = need.regions[9:]
    assert (payload.offset_bytes, payload.end_bytes) == (dispatch.offset_bytes, combine.end_bytes)


@given(need=needs, share=st.floats(0, 1), cuts=st.lists(st.integers(0, 6000), min_size=1, max_size=6))
def test_a_round_packs_payloads_without_gaps_and_aligns_combine(need, share, cuts):
    tokens = max(1, round(need.max_tokens * share))
    widths = [width * need.dispatch_bytes_per_token // (sum(cuts) or 1) for width in cuts]
    offsets = need.payload_offsets(widths, runtime_max_tokens=tokens)
    ends = [offset + need.ep_size * tokens * width for offset, width in zip(offsets, widths, strict=True)]
    assert [need.aux_bytes, *ends[:-1]] == list(offsets)
    combine = need.combine_offset(widths, runtime_max_tokens=tokens)
    assert combine == padded(ends[-1])
    assert combine + need.ep_size * tokens * need.combine_bytes_per_token <= need.workspace_bytes


def test_a_full_round_lies_where_the_regions_say():
    need = ExchangeShape(layout=Layout(dp=8), max_tokens=77, hidden=7168, experts=256, top_k=6, format="nvfp4")
    workspace = OneSidedWorkspace.of(need)
    rows = [part.row_bytes for part in need.payload_parts] + [24, 24]
    *_, dispatch, combine = workspace.regions
    assert workspace.payload_offsets(rows, runtime_max_tokens=77)[0] == dispatch.offset_bytes
    assert workspace.combine_offset(rows, runtime_max_tokens=77) == combine.offset_bytes


def test_refusals_name_the_value():
    workspace = OneSidedWorkspace(ep_size=2, max_tokens=8, dispatch_bytes_per_token=64, combine_bytes_per_token=64)
    with pytest.raises(Refused, match=r"runtime_max_tokens is 9.*max_tokens = 8"):
        workspace.payload_offsets([64], runtime_max_tokens=9)
    with pytest.raises(Refused, match="runtime_max_tokens is 0"):
        workspace.combine_offset([64], runtime_max_tokens=0)
    with pytest.raises(Refused, match="needs 4096 bytes but the workspace has 3968"):
        workspace.combine_offset([72], runtime_max_tokens=8)
    with pytest.raises(Refused, match="ep_size is 0"):
        OneSidedWorkspace(ep_size=0, max_tokens=8, dispatch_bytes_per_token=64, combine_bytes_per_token=64)

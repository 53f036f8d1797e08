"""The one-sided layout of FlashInfer's main branch: sizes from its sources, a second computation, and FlashInfer."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import mnnvl_lab as lab
from mnnvl_lab.errors import Refused
from mnnvl_lab.layout import Layout
from mnnvl_lab.workspace import MainOneSidedWorkspace, OneSidedWorkspace

V3 = {"hidden": 7168, "experts": 256, "top_k": 8}


@pytest.mark.parametrize(
    ("ranks", "tokens", "dispatch", "old", "new", "with_cft"),
    [
        (8, 2048, 14400, 471_171_456, 470_943_744, 710_152_448),  # bf16
        (16, 8192, 4096, 2_417_361_408, 2_416_445_696, 4_330_101_248),  # nvfp4
    ],
)
def test_sizes_that_were_computed_from_the_sources(ranks, tokens, dispatch, old, new, with_cft):
    size = {"ep_size": ranks, "max_tokens": tokens, "dispatch_bytes_per_token": dispatch}
    combine = {"combine_bytes_per_token": 14336}
    assert OneSidedWorkspace(**size, **combine).workspace_bytes == old
    assert MainOneSidedWorkspace(**size, **combine, top_k=8).workspace_bytes == new
    assert MainOneSidedWorkspace(**size, **combine, top_k=8, cft=True).workspace_bytes == with_cft


sizes = {
    "ep_size": st.integers(1, 64),
    "max_tokens": st.integers(1, 4096),
    "top_k": st.integers(1, 22),
    "dispatch_bytes_per_token": st.integers(1, 9999),
    "combine_bytes_per_token": st.integers(1, 9999),
    "eplb_stats_experts": st.integers(0, 300),
}


@given(st.fixed_dictionaries(sizes), st.booleans())
def test_a_second_computation_by_cursor(size, cft):
    """The steps of `calculateWorkspaceLayout`, written down as one running offset."""
    R, M, K = size["ep_size"], size["max_tokens"], size["top_k"]
    rows = R * M
    dispatch = 256 * -(-(rows * size["dispatch_bytes_per_token"] + 6 * 256) // 256)
    combine = 256 * -(-rows * size["combine_bytes_per_token"] // 256)
    at = 4 + 4 + 4 * R + 2 * 4 * R
    steps = [(4 * R, 128), *([(256 * R, 256), (8 * R, 128)] if cft else [])]
    steps += [(4 * M * K, 128)] * 2 + [(4 * R * size["eplb_stats_experts"], 128), (dispatch, 256), (4 * R, 128)]
    steps += [
        *([(256 * rows, 256), (8 * rows, 128)] if cft else []),
        (combine, 256),
        *([(combine, 256)] if cft else []),
    ]
    for length, alignment in steps:
        at = -(-at // alignment) * alignment + length
    workspace = MainOneSidedWorkspace(**size, cft=cft)
    assert workspace.workspace_bytes == at
    assert workspace.aux_bytes + dispatch + combine * (2 if cft else 1) == at


@given(st.fixed_dictionaries(sizes), st.booleans())
def test_regions_are_disjoint_and_the_metainfo_has_25_fields(size, cft):
    workspace = MainOneSidedWorkspace(**size, cft=cft)
    for one, other in zip(workspace.regions, workspace.regions[1:], strict=False):
        assert one.end_bytes <= other.offset_bytes
    fields = workspace.metainfo
    assert fields.shape == (25,)
    assert fields[24] == workspace.workspace_bytes
    assert fields[19:24].tolist() == [
        size["max_tokens"],
        size["top_k"],
        size["ep_size"],
        size["eplb_stats_experts"],
        cft,
    ]
    assert bool(fields[17]) is bool(fields[18]) is cft  # the inbox
    assert (fields[[10, 15]] % 256 == 0).all()


@pytest.mark.gpu
def test_the_installed_flashinfer_computes_the_same():
    """From the version on whose `moe_ep` brings kernels of its own; it asks no GPU but compiles a module."""
    kernels = pytest.importorskip("flashinfer.moe_ep.backends.split.comm.nvlink_one_sided.kernels")
    torch = pytest.importorskip("torch")
    for cft in (False, True):
        workspace = MainOneSidedWorkspace(
            ep_size=8, max_tokens=2048, top_k=8, dispatch_bytes_per_token=14400, combine_bytes_per_token=14336, cft=cft
        )
        found = torch.zeros(25, dtype=torch.int64)
        kernels.get_nvlink_one_sided_module().moe_a2a_get_workspace_layout(
            8, 2048, 8, workspace.dispatch_bytes, workspace.combine_bytes, workspace.inbox_bytes, 0, cft, found
        )
        assert np.array_equal(found.numpy(), workspace.metainfo)


def test_a_plan_in_either_layout():
    old, new = (lab.plan(Layout(dp=8), **V3, max_tokens=2048, flashinfer=name) for name in ("0.7.2", "main"))
    counted = lab.plan(Layout(dp=8), **V3, max_tokens=2048, flashinfer="MAIN", cft=True)
    sizes = [plan.one_sided.workspace_bytes for plan in (old, new, counted)]
    assert sizes == [471_171_456, 470_943_744, 710_152_448]
    assert dict(counted.one_sided.parts)["inbox"] == 234_881_024
    assert counted.to_frame()["bytes per rank"].tolist().count("inbox") == 1
    assert "inbox" not in old.to_frame()["bytes per rank"].tolist()
    assert (counted.to_dict()["flashinfer"], counted.to_dict()["cft"]) == ("main", True)


def test_counted_writes_need_main():
    with pytest.raises(Refused, match=r"cft with FlashInfer 0\.7\.2.*choose flashinfer main"):
        lab.plan(Layout(dp=8), **V3, max_tokens=2048, cft=True)
    with pytest.raises(Refused, match=r"flashinfer '0\.8' is not known"):
        lab.plan(Layout(dp=8), **V3, max_tokens=2048, flashinfer="0.8")
    with pytest.raises(Refused, match="top_k is 0"):
        MainOneSidedWorkspace(ep_size=1, max_tokens=1, top_k=0, dispatch_bytes_per_token=1, combine_bytes_per_token=1)

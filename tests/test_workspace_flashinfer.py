"""The workspace against FlashInfer itself: its Python run with the driver and the compiled parts stood in for, its
constants read from its sources. Nothing here needs a GPU."""

import re
from importlib.util import find_spec
from pathlib import Path
from types import SimpleNamespace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mnnvl_lab.workspace import OneSidedWorkspace, kernel_limits, mnnvl, one_sided, pack, two_sided

pytestmark = pytest.mark.skipif(find_spec("flashinfer") is None, reason="flashinfer-python is not installed here")

MIB = 2**20
CUH = "include/flashinfer/comm/trtllm_alltoall.cuh"
KERNELS = "csrc/nv_internal/tensorrt_llm/kernels/communicationKernels/moeAlltoAllKernels"


def source(path):
    return (Path(find_spec("flashinfer").origin).parent / "data" / path).read_text()


@pytest.mark.parametrize(
    ("path", "pattern", "value"),
    [
        (f"{KERNELS}.h", r"kMaxTopK = (\d+)", one_sided.TOP_K_SLOTS),
        (f"{KERNELS}.h", r"kMaxRanks = (\d+)", kernel_limits.ONE_SIDED_MAX_RANKS),
        (f"{KERNELS}.h", r"kMaxPayloads = (\d+)", kernel_limits.MAX_PAYLOADS),
        ("csrc/trtllm_moe_alltoall.cu", r"kCachelineAlignment = (\d+)", one_sided.ALIGNMENT_BYTES),
        (CUH, r"RECV_FIFO_DEPTH = (\d+)", two_sided.FIFO_DEPTH),
        (CUH, r"RECV_FIFO_ENTRY_BYTES = (\d+) \* 1024", two_sided.FIFO_ENTRY_BYTES // 1024),
        (CUH, r"GROUP_COUNT_PER_BLOCK = (\d+)", two_sided.PEERS_PER_BLOCK),
        (
            "include/flashinfer/comm/trtllm_alltoall_prepare.cuh",
            r"FIFO_SIZE_IN_U64 = (\d+) \* 1024 / 8",
            two_sided.PREPARE_FIFO_BYTES // 1024,
        ),
    ],
)
def test_constants_stand_in_the_sources(path, pattern, value):
    assert int(re.search(pattern, source(path)).group(1)) == value


def test_top_k_values_are_those_that_the_kernels_switch_over():
    switch = re.search(r"#define SWITCH_TOP_K.*?Unsupported", source(f"{KERNELS}.cu"), re.S).group()
    assert tuple(sorted(int(k) for k in re.findall(r"case (\d+):", switch))) == kernel_limits.ONE_SIDED_TOP_K


@settings(max_examples=50)
@given(
    ranks=st.integers(1, 64), tokens=st.integers(1, 4096), dispatch=st.integers(0, 9999), combine=st.integers(0, 9999)
)
def test_size_equals_flashinfers_own_function(ranks, tokens, dispatch, combine):
    comm = pytest.importorskip("flashinfer.comm.trtllm_moe_alltoall")
    workspace = OneSidedWorkspace(
        ep_size=ranks, max_tokens=tokens, dispatch_bytes_per_token=dispatch, combine_bytes_per_token=combine
    )
    compiled = SimpleNamespace(moe_a2a_get_aux_data_size=lambda *sizes: workspace.aux_bytes)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(comm, "get_moe_alltoall_module", lambda backend: compiled)
        size = comm.moe_a2a_get_workspace_size_per_rank(ranks, tokens, dispatch, combine)
    assert size == workspace.workspace_bytes


@settings(max_examples=50)
@given(ranks=st.integers(1, 16), asked=st.lists(st.integers(1, 700 * MIB), min_size=1, max_size=8))
def test_windows_equal_those_that_flashinfer_opens(ranks, asked):
    reserved = flashinfer_reserves(ranks, asked)
    assert [window.reserved_bytes for window in pack(asked, ep_size=ranks)] == reserved


def flashinfer_reserves(ranks, asked):
    """Address space that `MnnvlMemory.open_mnnvl_memory` reserves for these sizes, over a driver that notes them."""
    comm = pytest.importorskip("flashinfer.comm.mnnvl")
    memory, reserved = comm.MnnvlMemory, []

    def reserve(size, *_):
        reserved.append(size)
        return len(reserved) << 40

    group = SimpleNamespace(Get_size=lambda: ranks, Get_rank=lambda: 0, allgather=lambda x: [x] * ranks)
    driver = SimpleNamespace(cuCtxGetDevice=lambda: 0, cuMemAddressReserve=reserve)
    state = {"current_mem_offset": 0, "current_rank_stride": 0, "current_start_address": 0, "dev_id": None}
    stand_ins = {
        "get_comm": staticmethod(lambda mapping: group),
        "_resolve_fabric_support": staticmethod(lambda *_: False),
        "get_allocation_granularity": staticmethod(lambda device: mnnvl.GRANULARITY_BYTES),
        "_create_and_map_handles": staticmethod(lambda *_: []),
        "allocated_map": {},
        "address_refcnt": {},
    }
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(comm, "cuda", driver)
        patch.setattr(comm, "checkCudaErrors", lambda result: result)
        for name, value in (state | stand_ins).items():
            patch.setattr(memory, name, value)
        for size in asked:
            memory.open_mnnvl_memory(None, size)
    return reserved

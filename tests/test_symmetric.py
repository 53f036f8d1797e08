"""What of the symmetric memory needs no GPU: the communicator, whose state upstream keeps, and that memory goes."""

import numpy as np
import pytest

from mnnvl_lab.errors import LabError, Refused, SmLimitFixed
from mnnvl_lab.transport.flashinfer import memory as symmetric
from mnnvl_lab.transport.flashinfer import two_sided, upstream
from mnnvl_lab.transport.flashinfer.base import between, first_line, require_prediction
from mnnvl_lab.workspace import OneSidedWorkspace, TwoSidedWorkspace
from mnnvl_lab.workspace.mnnvl import split_regions
from tests.lazy import Lazy

torch = Lazy("torch")
mnnvl = Lazy("flashinfer.comm.mnnvl")
pytestmark = pytest.mark.xdist_group("flashinfer")  # one process imports it


class FakeGroup:
    """One rank's view of a group whose other members do as it does."""

    def __init__(self, size=4, rank=1, answers=None):
        self.size, self.rank, self.answers, self.barriers = size, rank, answers, 0

    def allgather(self, obj, *, call=""):
        return self.answers or [obj] * self.size

    def broadcast(self, obj, root=0):
        return (obj, root)

    def barrier(self, call=""):
        self.barriers += 1


@pytest.fixture
def driver(monkeypatch):
    """`MnnvlMemory` without CUDA: notes what is open; rows live on the CPU."""
    opened, memory = {}, mnnvl.MnnvlMemory

    def open_memory(mapping, size):
        memory.dev_id = 0
        memory.current_start_address, memory.current_rank_stride = 1 << 40, 1 << 29
        memory.current_mem_offset = size
        opened[1 << 40] = memory.comm.Get_size()
        return 1 << 40, 1 << 29

    monkeypatch.setattr(memory, "initialize", staticmethod(lambda: None))
    monkeypatch.setattr(memory, "open_mnnvl_memory", staticmethod(open_memory))
    monkeypatch.setattr(memory, "close_mnnvl_memory", staticmethod(opened.pop))
    monkeypatch.setattr(torch.cuda, "set_device", lambda device: None)
    monkeypatch.setattr(torch.cuda, "synchronize", lambda device: None)
    view = lambda self, dtype: torch.ones(self.group.size, self.size_bytes, dtype=torch.uint8).view(dtype)  # noqa: E731
    monkeypatch.setattr(symmetric.SymmetricMemory, "view", view)
    monkeypatch.setattr(symmetric, "comes_to_rest", lambda device: True)
    return opened


def allocated(group):
    return symmetric.SymmetricMemory(group, size_bytes=64, device=torch.device("cpu"))


def test_backend_answers_flashinfers_protocol():
    from flashinfer.comm.mnnvl import all_ranks_agree

    backend = symmetric.GroupBackend(FakeGroup(answers=[True, False]))
    assert (backend.Get_rank(), backend.Get_size()) == (1, 4)
    assert backend.Split(3, 0) is backend
    assert backend.bcast("x", 2) == ("x", 2)
    assert not all_ranks_agree(backend, True)


def test_upstreams_window_is_put_back_also_after_a_failure():
    memory = mnnvl.MnnvlMemory
    before = {name: getattr(memory, name) for name in symmetric._WINDOW}

    def allocate_in_vain():
        with symmetric.own_window("ours"):
            assert (memory.comm, memory.current_rank_stride) == ("ours", 0)
            memory.current_rank_stride, memory.dev_id = 512, 7
            raise RuntimeError("no memory")

    with pytest.raises(RuntimeError, match="no memory"):
        allocate_in_vain()
    assert {name: getattr(memory, name) for name in symmetric._WINDOW} == before


@pytest.mark.parametrize(("answers", "left"), [([False, False], False), ([None, False], None)])
def test_all_ranks_probe_again_if_one_process_is_new(monkeypatch, answers, left):
    monkeypatch.setattr(mnnvl.MnnvlMemory, "_fabric_supported", False)
    symmetric.forget_fabric_support(symmetric.GroupBackend(FakeGroup(answers=answers)))
    assert mnnvl.MnnvlMemory._fabric_supported is left


def test_only_the_own_row_is_zeroed(driver):
    rows = allocated(FakeGroup()).rows
    assert rows.sum(1).tolist() == [64, 0, 64, 64]


def test_memory_goes_once(driver):
    memory = allocated(FakeGroup())
    assert driver == {1 << 40: 4}
    memory.close()
    assert driver == {}
    memory.close()
    assert memory.rows is None


def test_memory_goes_even_if_a_peer_is_gone(driver):
    memory = allocated(FakeGroup())

    def dead(call):
        raise RuntimeError("connection closed by peer")

    memory.group.barrier = dead
    with pytest.raises(RuntimeError, match="connection closed"):
        memory.close()
    assert driver == {}


def test_memory_is_abandoned_without_waiting_for_a_peer(driver):
    memory = allocated(FakeGroup())
    before = memory.group.barriers
    memory.abort()
    assert (driver, memory.group.barriers) == ({}, before)
    memory.abort()
    memory.close()
    assert memory.group.barriers == before


def test_memory_under_a_spinning_kernel_stays_until_the_process_ends(driver, monkeypatch):
    memory = allocated(FakeGroup())
    monkeypatch.setattr(symmetric, "comes_to_rest", lambda device: False)
    memory.abort()
    assert driver == {1 << 40: 4}


def test_memory_goes_if_it_cannot_be_zeroed(driver, monkeypatch):
    monkeypatch.setattr(symmetric.SymmetricMemory, "_zero", lambda self: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        allocated(FakeGroup())
    assert driver == {}


def test_flags_are_cut_out_of_the_head_of_a_row():
    plan = OneSidedWorkspace(ep_size=2, max_tokens=3, dispatch_bytes_per_token=32, combine_bytes_per_token=16)
    flags = between(plan.regions, "flag_val", "combine_completion_flags")
    row = np.zeros(flags[-1].end_bytes, dtype=np.uint8)
    row[128:136] = np.array([7, 5], dtype=np.int32).view(np.uint8)  # OP:106-146: the flags begin at the first 128
    assert split_regions(row, flags)["dispatch_completion_flags"].tolist() == [7, 5]
    assert len(row) == 256 + 8


def test_connections_are_cut_out_of_a_tail_that_starts_elsewhere():
    region = TwoSidedWorkspace(ep_size=2, sm_limit=4).regions[1]
    tail = np.zeros(region.size_bytes, dtype=np.uint8)
    tail[256:264] = np.array([9], dtype=np.uint64).view(np.uint8)  # one channel: the second peer's head
    words = split_regions(tail, [region], begin_bytes=region.offset_bytes)["connections"]
    assert words[1, 0, 0] == 9
    assert words.sum() == 9


def test_the_kernels_words_are_taken_without_their_frames():
    assert first_line(RuntimeError("\nCheck failed: a == b (2 vs. 4) : short\n  at kernel.cu:1\n")) == (
        "Check failed: a == b (2 vs. 4) : short"
    )
    assert first_line(AssertionError()) == "AssertionError"


def test_a_wrong_prediction_stops_with_both_figures():
    require_prediction("bytes", predicted=4, asked=4)
    with pytest.raises(LabError, match="4 predicted but FlashInfer asks for 8"):
        require_prediction("bytes", predicted=4, asked=8)


class FakeRank:
    device = torch.device("cpu")


@pytest.fixture
def module(monkeypatch):
    """FlashInfer's two-sided module of a process on a GPU with 132 multiprocessors."""
    from types import SimpleNamespace

    from flashinfer.comm import trtllm_alltoall

    calls = []
    fake = SimpleNamespace(set_moe_max_usable_sm_count=calls.append, calls=calls)
    monkeypatch.setattr(trtllm_alltoall, "get_comm_alltoall_module", lambda: fake)
    monkeypatch.setattr(torch.cuda, "set_device", lambda device: None)
    properties = SimpleNamespace(multi_processor_count=132)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: properties)
    return fake


@pytest.mark.parametrize(
    ("sm_limit", "used", "calls"),
    [(None, 132, []), (33, 33, [33]), (400, 132, [])],
)
def test_the_sm_limit_is_set_once_in_a_process(module, sm_limit, used, calls):
    for _ in range(2):
        assert two_sided.fix_sm_limit(FakeRank(), FakeGroup(), sm_limit) == used
    assert module.calls == calls


def test_another_sm_limit_is_refused_by_all_ranks_if_one_process_has_used_it(module):
    with pytest.raises(SmLimitFixed, match=r"66 multiprocessors but the process of ep_rank 1 has used 33.*renew"):
        two_sided.fix_sm_limit(FakeRank(), FakeGroup(size=2, answers=[None, 33]), 66)
    assert module.calls == []


def test_an_unknown_layer_is_refused_with_the_known():
    with pytest.raises(Refused, match=r"'DeepEP'.*MoeAlltoAll, MnnvlMoe"):
        upstream.attempt(FakeRank(), layer="DeepEP")

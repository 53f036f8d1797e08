"""vLLM's managers under this package's layouts: which group they take, which sizes, what is refused. No GPU is used.

Over a package with vLLM's interfaces (`fake_vllm`), and over vLLM's own files where they are at hand.
"""

import sys
from types import SimpleNamespace

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from mnnvl_lab import wrong_group
from mnnvl_lab.errors import Refused
from mnnvl_lab.exchange import ExchangeShape
from mnnvl_lab.layout import Layout
from mnnvl_lab.planner.live import Head, grown
from mnnvl_lab.transport.flashinfer.vllm_files import VARIABLE, find_vllm, load_managers, require_vllm, vllm_modules
from mnnvl_lab.transport.flashinfer.vllm_managers import ONE_SIDED, TWO_SIDED
from tests import fake_vllm
from tests.lazy import Lazy

moe_ep = Lazy("flashinfer.moe_ep", reason="flashinfer-python is not installed here")
torch = Lazy("torch")
pytestmark = pytest.mark.xdist_group("flashinfer")  # one process imports it

REAL = find_vllm()
QUANT = {"bf16": "BF16", "nvfp4": "NVFP4", "mxfp8": "MXFP8", "fp8_block": "DeepSeekFp8"}


@pytest.fixture(params=["interfaces", "vLLM's own files"])
def vllm(request, tmp_path, monkeypatch):
    """The folder of a vLLM package, named by the environment."""
    if request.param == "interfaces":
        monkeypatch.setenv(VARIABLE, str(fake_vllm.write(tmp_path)))
    elif REAL is None:
        pytest.skip(f"vLLM is not installed and {VARIABLE} names no folder")


class FakeGroup:
    """A process group as far as the managers look at it."""

    def __init__(self, ranks, member):
        self.ranks, self.process_group = tuple(ranks), self
        self._rank = self.ranks.index(member)

    def rank(self):
        return self._rank

    def size(self):
        return len(self.ranks)


def groups_of(layout, rank):
    """The groups of one rank, as the loader takes them."""
    found = {name: FakeGroup(layout.group_of(name, rank), rank) for name in ("tp", "dp", "pcp", "ep")}
    return {
        name: SimpleNamespace(process_group=group, rank=group.rank(), size=group.size(), ranks=group.ranks)
        for name, group in found.items()
    }


@pytest.fixture
def asked(monkeypatch):
    """What `create_communication` is asked for, instead of memory on a GPU; barriers and devices are no-ops."""
    calls = []

    def create(bootstrap, params, backend):
        calls.append(SimpleNamespace(bootstrap=bootstrap, params=params, config=backend))
        made = object.__new__(moe_ep.NVLinkOneSidedAlltoAll)
        made.params, made.config, made._alltoall = params, backend, None
        return made

    monkeypatch.setattr("flashinfer.moe_ep.create_communication", create)
    monkeypatch.setattr(torch.distributed, "barrier", lambda group=None: None)
    for name in ("current_device_index", "empty_cache", "synchronize"):
        monkeypatch.setattr(torch.accelerator, name, lambda: 0)
    return calls


SHAPE = {"max_num_tokens": 64, "top_k": 4, "num_experts": 48, "hidden_size": 256}


@pytest.mark.parametrize(
    "layout",
    [Layout(tp=2, dp=2), Layout(tp=2, dp=3), Layout(tp=2, pcp=2, dp=2), Layout(tp=2, dp=2, pp=2), Layout(dp=4)],
)
def test_each_rank_asks_for_the_ep_group_since_40893_and_for_the_dp_group_before(layout, vllm, asked):
    for rank in range(layout.world_size):
        groups = groups_of(layout, rank)
        for name, handles_over in (("ep", None), ("dp", groups["dp"])):
            with vllm_modules(groups) as load:
                manager = load_managers(load, handles_over=handles_over).FlashInferNVLinkOneSidedManager(
                    groups["ep"].process_group
                )
                manager.initialize(**SHAPE)
            call = asked.pop()
            assert (call.bootstrap.world_size, call.bootstrap.rank) == (layout.ep_size, layout.ep_rank(rank))
            assert call.config.comm_backend.Get_size() == len(layout.group_of(name, rank))
            assert call.config.comm_backend.Get_rank() == layout.group_of(name, rank).index(rank)
    assert "vllm" not in sys.modules


kinds = st.lists(st.tuples(st.sampled_from(sorted(QUANT)), st.sampled_from([256, 512, 1024])), min_size=1, max_size=4)


@settings(max_examples=20, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(kinds)
def test_growth_is_what_the_planner_says(vllm, asked, layers):
    """Layers of several formats and widths, in the order of loading: as many workspaces, each as large."""
    from flashinfer.fused_moe import QuantFormat

    asked.clear()
    layout = Layout(tp=2, dp=2)
    groups = groups_of(layout, 0)
    with vllm_modules(groups) as load:
        manager = load_managers(load).FlashInferNVLinkOneSidedManager(groups["ep"].process_group)
        for name, hidden in layers:
            shape = SHAPE | {"hidden_size": hidden, "dispatch_format": QuantFormat[QUANT[name]]}
            manager.initialize(**shape)
    (form, hidden), heads = layers[0], [Head(format=name, hidden=width) for name, width in layers[1:]]
    need = ExchangeShape(layout=layout, max_tokens=64, hidden=hidden, experts=48, top_k=4, format=form)
    assert [size_of(call) for call in asked] == [one.asked_bytes[0] for one in grown(need, heads)]


def size_of(call):
    """Bytes that `NVLinkOneSidedAlltoAll` asks for, by FlashInfer's formula over this package's count of flags."""
    from mnnvl_lab.workspace import OneSidedWorkspace

    params = call.params
    extra = call.config.extra_payload_bytes_per_token
    return OneSidedWorkspace(
        ep_size=call.bootstrap.world_size,
        max_tokens=params.max_tokens_per_rank,
        dispatch_bytes_per_token=params.dispatch_bytes_per_token + 8 * params.top_k + extra,
        combine_bytes_per_token=2 * params.hidden_size,
    ).workspace_bytes


def test_layers_of_another_top_k_are_refused(vllm, asked):
    groups = groups_of(Layout(dp=2), 0)
    with vllm_modules(groups) as load:
        manager = load_managers(load).FlashInferNVLinkOneSidedManager(groups["ep"].process_group)
        manager.initialize(**SHAPE)
        with pytest.raises(AssertionError, match="heterogeneous top_k"):
            manager.initialize(**SHAPE | {"top_k": 2})


def test_experts_that_do_not_divide_are_refused_by_moe_ep(vllm, monkeypatch):
    """vLLM issue 52435: 256 experts on 3 ranks. The kernel could; `moe_ep` says no. The platform is made up."""
    from flashinfer.moe_ep.backends.split.comm import nvlink_common
    from flashinfer.moe_ep.backends.split.comm.nvlink_one_sided import communication

    for module in (nvlink_common, communication):
        monkeypatch.setattr(module, "nvlink_platform_supported", lambda: True)
    monkeypatch.setattr(torch.distributed, "barrier", lambda group=None: None)
    for name in ("current_device_index", "empty_cache"):
        monkeypatch.setattr(torch.accelerator, name, lambda: 0)
    monkeypatch.setattr(
        torch.distributed, "all_gather_object", lambda found, one, group=None: found.__setitem__(slice(None), [one] * 3)
    )
    groups = groups_of(Layout(dp=3), 0)
    with vllm_modules(groups) as load:
        manager = load_managers(load).FlashInferNVLinkOneSidedManager(groups["ep"].process_group)
        with pytest.raises(ValueError, match=r"requires num_experts \(256\) divisible by the EP size \(3\)"):
            manager.initialize(**SHAPE | {"num_experts": 256})


def test_the_two_sided_manager_disguises_ep_as_tp(vllm, monkeypatch):
    from flashinfer.comm.trtllm_alltoall import MnnvlMoe

    seen = []
    for name in ("get_moe_workspaces", "get_moe_prepare_workspace"):
        monkeypatch.setattr(MnnvlMoe, name, lambda mapping, config: seen.append((mapping, config)))
    layout = Layout(tp=2, dp=2)
    groups = groups_of(layout, 3)
    for handles_over, spans in ((None, 4), (groups["dp"], 2)):
        with vllm_modules(groups) as load:
            all2all = load_managers(load, handles_over=handles_over)
            manager = all2all.FlashInferNVLinkTwoSidedManager(groups["ep"].process_group)
            manager.initialize(manager.world_size, manager.rank, 4)
        mapping, config = seen.pop()
        assert (mapping.tp_size, mapping.world_size, mapping.rank) == (4, 4, 3)
        assert config.comm_backend.Get_size() == spans


def test_the_two_sided_manager_names_a_function_as_its_gpus_per_node(vllm, monkeypatch):
    """Opened at first use it passes `torch.accelerator.device_count` without calling it; only its name is kept."""
    groups = groups_of(Layout(tp=2, dp=2), 0)
    with vllm_modules(groups) as load:
        manager = load_managers(load).FlashInferNVLinkTwoSidedManager(groups["ep"].process_group)
        taken = {}
        monkeypatch.setattr(manager, "initialize", lambda **words: taken.update(words))
        manager.ensure_alltoall_workspace_initialized()
        assert callable(taken["gpus_per_node"])


def test_pcp_without_dp_ends_two_sided_and_leaves_one_sided_its_own_count(vllm):
    """With PCP > 1 and DP 1 vLLM's forward context has no `dp_metadata`."""
    groups = groups_of(Layout(pcp=2), 0)
    prepare = "model_executor.layers.fused_moe.prepare_finalize.flashinfer_nvlink"
    with vllm_modules(groups, dp_metadata=None) as load:
        with pytest.raises(AssertionError):
            load(f"{prepare}_two_sided").get_local_sizes()
        assert load(f"{prepare}_one_sided").get_local_sizes() is None
    counted = SimpleNamespace(get_chunk_sizes_across_dp_rank=lambda: [7, 3])
    with vllm_modules(groups, dp_metadata=counted) as load:
        assert load(f"{prepare}_two_sided").get_local_sizes() == [7, 3]


SMALL = {"tokens": 5, "hidden": 64, "experts": 8, "top_k": 2, "modes": ()}


class TestExperiment:
    def test_the_wrong_group_is_named_by_flashinfer_without_a_gpu(self, vllm, host_ranks):
        table = wrong_group.side_by_side(host_ranks, Layout(tp=2, dp=2), layers=(ONE_SIDED,), **SMALL)
        wrong, right = (table[table["group"] == group].iloc[0] for group in ("dp", "ep"))
        assert (wrong["outcome"], wrong["phase"]) == ("mismatch", "open")
        assert wrong["words"] == "MNNVL communicator has 2 ranks but the EP group has world_size=4"
        assert right["outcome"] == "error"  # the group passes; the next check asks for GPUs
        assert "NVLink backends are not supported on EP ranks [0, 1, 2, 3]" in right["words"]

    def test_two_sided_needs_a_gpu(self, vllm, host_ranks):
        with pytest.raises(Refused, match="TwoSidedManager on fabric host"):
            wrong_group.side_by_side(host_ranks, Layout(dp=2), layers=(TWO_SIDED,), **SMALL)

    def test_without_vllm_it_is_refused_with_the_remedy(self, host_ranks, monkeypatch, tmp_path):
        monkeypatch.setenv(VARIABLE, str(tmp_path))
        with pytest.raises(Refused, match="pip install --no-deps"):
            wrong_group.side_by_side(host_ranks, Layout(dp=2), layers=(ONE_SIDED,), **SMALL)


def test_a_folder_without_the_files_is_none(tmp_path, monkeypatch):
    monkeypatch.setenv(VARIABLE, str(tmp_path))
    assert find_vllm() is None
    with pytest.raises(Refused, match=VARIABLE):
        require_vllm()


def test_vllm_in_the_process_is_left_alone(vllm, monkeypatch):
    monkeypatch.setitem(sys.modules, "vllm", sys)
    with pytest.raises(Refused, match="use fresh ranks"), vllm_modules({}):
        pass
    assert sys.modules["vllm"] is sys

"""Plans against recorded allocations, worked examples, and their own inverse."""

import json
import re
from contextlib import suppress
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mnnvl_lab.errors import Refused
from mnnvl_lab.hardware import GPUS
from mnnvl_lab.layout import Layout
from mnnvl_lab.model import MODELS
from mnnvl_lab.notebook import readable_bytes
from mnnvl_lab.planner import plan
from mnnvl_lab.planner.modes import one_sided, two_sided
from mnnvl_lab.wrong_group.memory import workspace_over

MIB, GIB = 2**20, 2**30
V3 = {"hidden": 7168, "experts": 256, "top_k": 8}


def test_both_modes_of_a_recorded_pair():
    planned = plan(Layout(dp=2), **V3, max_tokens=4096)
    assert (planned.one_sided.workspace_bytes, planned.one_sided.allocated_bytes) == (236_126_592, 236_978_176)
    two_sided = planned.two_sided
    assert (two_sided.workspace_bytes, two_sided.prepare_bytes) == (138_428_928, 2_097_664)
    assert two_sided.allocated_bytes == 140_509_184 + 4_194_304
    assert two_sided.mapped_bytes == 2 * two_sided.allocated_bytes
    assert two_sided.reserved_bytes == 2 * 512 * MIB


def test_json_of_the_worked_example():
    answer = json.loads(json.dumps(plan(Layout(tp=2, dp=4), model="deepseek-v3", max_tokens=2048).to_dict()))
    sizes = {"tp": 2, "dp": 4, "pcp": 1, "pp": 1, "gpus_per_node": 8, "world_size": 8, "ep_size": 8}
    assert answer["layout"] == sizes
    one_sided, two_sided = answer["one_sided"], answer["two_sided"]
    assert one_sided["workspace_bytes"] == 471_171_456
    assert (one_sided["mapped_bytes"], one_sided["reserved_bytes"]) == (3600 * MIB, 4 * GIB)
    assert one_sided["regions"][-1] == {"name": "combine", "offset_bytes": 236_290_432, "size_bytes": 234_881_024}
    assert (two_sided["workspace_bytes"], two_sided["channels"]) == ((2 * MIB + 256) * 8 * 33, 33)
    assert two_sided["prepare_bytes"] == (MIB + 256) * 8
    assert one_sided["refusal"] is two_sided["refusal"] is None


@given(
    tp=st.integers(1, 8),
    dp=st.integers(1, 8),
    tokens=st.integers(1, 16384),
    form=st.sampled_from(["bf16", "nvfp4", "fp8_block", "mxfp8"]),
    gpu=st.sampled_from(sorted(GPUS)),
)
def test_totals_follow_from_the_parts_for_ep_1_to_64(tp, dp, tokens, form, gpu):
    planned = plan(Layout(tp=tp, dp=dp), **V3, max_tokens=tokens, format=form, gpu=gpu)
    for mode, allocations in zip(planned.modes, (1, 2), strict=True):
        regions = mode.regions + mode.prepare_regions
        assert sum(region.size_bytes for region in mode.regions) <= mode.workspace_bytes
        assert mode.workspace_bytes == max(region.end_bytes for region in mode.regions)
        assert mode.asked_bytes == mode.workspace_bytes + mode.prepare_bytes
        assert 0 <= mode.allocated_bytes - mode.asked_bytes < allocations * 2 * MIB
        assert mode.mapped_bytes == tp * dp * mode.allocated_bytes <= mode.reserved_bytes
        assert mode.reserved_bytes % (tp * dp * 512 * MIB) == 0
        assert all(region.size_bytes >= 0 for region in regions)


@given(
    budget_bytes=st.integers(2 * MIB, 100 * GIB),
    tp=st.integers(1, 8),
    dp=st.integers(1, 8),
    sequence_parallel=st.booleans(),
)
def test_the_most_tokens_fit_and_one_more_does_not(budget_bytes, tp, dp, sequence_parallel):
    def allocated(tokens):
        sized = plan(Layout(tp=tp, dp=dp), **V3, max_tokens=tokens, sequence_parallel=sequence_parallel)
        return sized.one_sided.allocated_bytes

    planned = plan(Layout(tp=tp, dp=dp), **V3, max_tokens=1, sequence_parallel=sequence_parallel)
    if allocated(1) > budget_bytes:
        with pytest.raises(Refused, match=f"budget_bytes is {budget_bytes}"):
            planned.most_tokens(budget_bytes)
        return
    most = planned.most_tokens(budget_bytes)
    assert allocated(most) <= budget_bytes < allocated(most + 1)


def test_a_budget_too_small_for_one_token_is_refused():
    with pytest.raises(Refused, match=r"budget_bytes is 1000.*2097152"):
        plan(Layout(dp=4), **V3, max_tokens=1).most_tokens(1000)


def test_sequence_parallelism_halves_what_vllm_reserves_at_tp_2():
    sizes = [
        plan(Layout(tp=2, dp=4), **V3, max_tokens=8192, format="nvfp4", sequence_parallel=sp) for sp in (False, True)
    ]
    whole, share = (planned.one_sided.workspace_bytes / MIB for planned in sizes)
    assert (round(whole), round(share)) == (1153, 577)
    assert sizes[1].tokens_per_rank == 4096
    assert sizes[0].sequence_parallel_saves_bytes == pytest.approx((whole - share) * MIB, abs=2 * MIB)
    assert "would save 576.0 MiB" in str(sizes[0])


def test_an_odd_batch_is_shared_rounding_up():
    assert plan(Layout(tp=4), **V3, max_tokens=2049, sequence_parallel=True).tokens_per_rank == 513


def test_costs_in_shares_of_memory_and_tokens_of_cache():
    planned = plan(Layout(dp=8), model="deepseek-v3", max_tokens=2048, gpu="h200")
    assert planned.memory_share(planned.one_sided) == pytest.approx(450 / 143771)
    per_token = 61 * (512 + 64) * 2
    assert planned.kv_cache_tokens(planned.one_sided) == 450 * MIB // per_token
    unnamed = plan(Layout(dp=8), **V3, max_tokens=2048)
    assert unnamed.kv_cache_tokens(unnamed.one_sided) is None


def test_channels_follow_the_gpu():
    channels = {gpu: plan(Layout(dp=8), **V3, max_tokens=1, gpu=gpu).two_sided.channels for gpu in GPUS}
    assert channels == {
        "h100": 33,
        "h200": 33,
        "h20": 19,
        "b200": 37,
        "b300": 37,
        "gb200": 38,
        "gb300": 38,
    }


@pytest.mark.parametrize("name", MODELS)
def test_every_model_is_planned(name):
    planned = plan(Layout(tp=2, dp=4), model=name, max_tokens=1024)
    model = MODELS[name]
    assert planned.one_sided.workspace_bytes > 8 * 1024 * model.hidden * 4
    assert name in str(planned)


def test_what_a_mode_cannot_serve_is_planned_and_said():
    planned = plan(Layout(dp=2), hidden=7168, experts=10, top_k=3, max_tokens=64)
    assert planned.one_sided.refusal.startswith("top_k is 3")
    assert planned.two_sided.refusal.startswith("experts is 10")
    assert "one_sided cannot serve this: top_k is 3" in str(planned)
    assert "two_sided cannot serve this: experts is 10" in planned._repr_html_()
    assert planned.one_sided.workspace_bytes > 64 * 2 * 4 * 7168


def test_all_problems_of_a_mode_are_said():
    planned = plan(Layout(dp=80, gpus_per_node=80), hidden=7168, experts=90, top_k=33, max_tokens=64)
    one_sided, two_sided = (planned.reasons_against(mode) for mode in planned.modes)
    for reasons, words in (
        (one_sided, ("top_k is 33", "at most 64 ranks", "NVLink domains of 8")),
        (two_sided, ("multiple of 4", "divide evenly", "at most 32", "NVLink domains of 8")),
    ):
        assert len(reasons) == len(words)
        for word in words:
            assert any(word in reason for reason in reasons)
            assert word in str(planned)
    assert all(problem in planned.one_sided.refusal for problem in planned.one_sided.problems)
    answer = json.loads(json.dumps(planned.to_dict()))
    assert answer["two_sided"]["problems"] == list(planned.two_sided.problems)
    assert answer["one_sided"]["reasons_against"] == one_sided


def test_a_group_without_a_channel_is_planned_without_a_size():
    planned = plan(Layout(dp=1024), **V3, max_tokens=64)
    assert any("one channel must fit" in reason for reason in planned.reasons_against(planned.two_sided))
    assert planned.to_frame()["two_sided"].isna().all()
    assert planned.one_sided.allocated_bytes > 0
    assert "two_sided: " not in str(planned)


@pytest.mark.parametrize("gpu", ["h100", "H200", "b200"])
def test_an_ep_group_on_two_nodes_is_refused_for_both_modes(gpu):
    planned = plan(Layout(tp=4, dp=4), model="DeepSeek-V3", max_tokens=8192, format="NVFP4", gpu=gpu)
    for mode in planned.modes:
        (problem,) = mode.problems
        assert "an EP group of 16 ranks (such as 0 to 15) spans 2 NVLink domains of 8 GPUs" in problem
        assert f"{mode.mode} cannot serve this: {problem}" in str(planned)
    rack = plan(Layout(tp=4, dp=4), model="deepseek-v3", max_tokens=8192, gpu="GB200")
    assert not any(rack.reasons_against(mode) for mode in rack.modes)


def test_an_exchange_is_planned_with_the_domain_of_its_gpu():
    from mnnvl_lab.exchange import Exchange

    exchange = Exchange(mode="one_sided", layout=Layout(dp=16), max_tokens=64, **V3)
    assert one_sided(exchange).problems == ()
    assert "spans 2 NVLink domains" in one_sided(exchange, GPUS["h100"]).refusal
    assert "spans 2 NVLink domains" in two_sided(exchange, GPUS["b200"]).refusal
    assert one_sided(exchange, GPUS["gb200"]).refusal is two_sided(exchange, GPUS["gb200"]).refusal is None


@pytest.mark.parametrize("sequence_parallel", [False, True])
def test_what_does_not_fit_says_the_most_tokens_that_do(sequence_parallel):
    ask = {"model": "deepseek-v3", "gpu": "H100", "sequence_parallel": sequence_parallel}
    planned = plan(Layout(tp=2, dp=4), max_tokens=50_000_000, **ask)
    (reason,) = planned.reasons_against(planned.one_sided)
    assert reason in str(planned)
    most, batch = map(int, re.search(r"at most (\d+) tokens per rank.*use max_tokens (\d+) or less", reason).groups())
    assert most == (batch // 2 if sequence_parallel else batch)
    assert not planned.fits(planned.one_sided)
    assert planned.fits(planned.two_sided)
    fitting = plan(Layout(tp=2, dp=4), max_tokens=batch, **ask)
    assert fitting.fits(fitting.one_sided)
    assert fitting.tokens_per_rank == most
    above = plan(Layout(tp=2, dp=4), max_tokens=batch + 1, **ask)
    assert not above.fits(above.one_sided)
    assert not json.loads(json.dumps(planned.to_dict()))["one_sided"]["fits"]


def test_not_even_one_token_fits():
    tiny = replace(GPUS["h100"], memory_bytes=MIB)
    planned = plan(Layout(dp=4), **V3, max_tokens=4, gpu=tiny)
    assert "one token per rank takes 2.0 MiB, H100 SXM has 1.0 MiB" in str(planned)
    assert "two_sided takes" in planned.reasons_against(planned.two_sided)[0]


def test_sizes_are_shown_in_readable_units_and_wide_in_bytes_too():
    planned = plan(Layout(dp=2), **V3, max_tokens=4096)
    assert " 226.0 MiB" in str(planned)
    assert "226.0 MiB (236,978,176 B)" in planned.text(wide=True)
    assert "236,978,176" not in str(planned)


@pytest.mark.parametrize(
    ("size", "words"),
    [
        (0, "0 B"),
        (1023, "1023 B"),
        (1024, "1.0 KiB"),
        (1536, "1.5 KiB"),
        (MIB - 1, "1.0 MiB"),
        (226 * MIB, "226.0 MiB"),
        (GIB, "1.0 GiB"),
        (2**63, "8.0 EiB"),
        (2**80, "1,048,576.0 EiB"),
    ],
)
def test_readable_bytes(size, words):
    assert readable_bytes(size) == words


@pytest.mark.parametrize(
    ("layout", "sequence_parallel", "words"),
    [
        (Layout(tp=2, dp=2), False, "would save"),
        (Layout(tp=2, dp=2), True, "saves"),
        (Layout(tp=8), False, "vLLM opens neither workspace"),
        (Layout(tp=8), True, "vLLM opens neither workspace"),
        (Layout(tp=2, pcp=2), True, "SP-MoE in vLLM needs DP > 1"),
        (Layout(tp=2, pcp=2), False, None),
        (Layout(dp=8), False, None),
        (Layout(), False, None),
    ],
)
def test_the_note_on_sequence_parallelism_stands_where_vllm_has_it(layout, sequence_parallel, words):
    text = str(plan(layout, **V3, max_tokens=64, sequence_parallel=sequence_parallel))
    notes = ("would save", "saves", "vLLM opens neither workspace", "SP-MoE in vLLM needs DP > 1")
    assert [note for note in notes if note in text] == ([words] if words else [])


anything = st.one_of(
    st.integers(), st.integers(-1, 300), st.floats(), st.none(), st.booleans(), st.text(max_size=5), st.just(10**5000)
)
arguments = {
    "max_tokens": st.one_of(st.integers(1, 2**31), anything),
    "model": st.one_of(st.none(), st.sampled_from(sorted(MODELS)), anything),
    "hidden": st.one_of(st.none(), st.integers(1, 9000), anything),
    "experts": st.one_of(st.none(), st.integers(1, 600), anything),
    "top_k": st.one_of(st.none(), st.integers(1, 40), anything),
    "format": st.one_of(st.sampled_from(["bf16", "FP8_block", "nvfp4"]), anything),
    "combine_dtype": st.one_of(st.sampled_from(["bf16", "fp32"]), anything),
    "gpu": st.one_of(st.sampled_from(sorted(GPUS)), anything),
    "sm_limit": st.one_of(st.none(), st.integers(1, 200), anything),
}
layouts = st.builds(Layout, tp=st.integers(1, 300), dp=st.integers(1, 200), gpus_per_node=st.integers(1, 80))


@given(
    st.one_of(layouts, anything), st.fixed_dictionaries({"max_tokens": arguments.pop("max_tokens")}, optional=arguments)
)
def test_a_plan_is_made_whole_or_refused(layout, given_words):
    with suppress(Refused):
        planned = plan(layout, **given_words)
        json.dumps(planned.to_dict())
        assert "Memory per rank" in planned.text(wide=True)


@given(anything)
def test_a_budget_is_answered_or_refused(budget_bytes):
    with suppress(Refused):
        assert plan(Layout(dp=4), **V3, max_tokens=1).most_tokens(budget_bytes) >= 1


def test_more_ranks_than_the_one_sided_kernels_take():
    assert "at most 64 ranks" in plan(Layout(dp=65), hidden=64, experts=130, top_k=2, max_tokens=1).one_sided.refusal


def test_the_table_holds_missing_parts_as_missing():
    table = plan(Layout(dp=2), **V3, max_tokens=4096).to_frame().set_index("bytes per rank")
    assert list(table.columns) == ["one_sided", "two_sided"]
    assert table["two_sided"].isna().sum() == 3
    assert table["one_sided"].isna().sum() == 2
    assert table.loc["asked"].tolist() == [236_126_592, 138_428_928 + 2_097_664]


@pytest.mark.parametrize(
    ("given_words", "message"),
    [
        ({"model": "deepseek-v3", "top_k": 8}, "deepseek-v3 and top_k given"),
        ({"hidden": 7168}, "experts, top_k missing"),
        ({**V3, "max_tokens": 0}, "max_tokens is 0"),
        ({**V3, "top_k": 0}, "top_k is 0"),
        ({**V3, "combine_dtype": "fp8"}, "combine_dtype 'fp8' is not known"),
        ({**V3, "max_tokens": 10**26}, "max_tokens is 100000000000000000000000000: it must be at most 2147483647"),
        ({**V3, "hidden": 2**31 - 2**7, "max_tokens": 2**31 - 1}, "64 bits end before"),
        ({**V3, "sm_limit": 0}, "sm_limit is 0"),
        ({"model": None}, "hidden, experts, top_k missing"),
        ({"model": 3}, "model 3 is not known"),
        ({**V3, "gpu": None}, "gpu None is not known"),
        ({**V3, "format": "fp5"}, "'fp5'"),
        ({**V3, "hidden": 100, "format": "nvfp4"}, "hidden is 100"),
        ({**V3, "gpu": "h10"}, "did you mean h100"),
        ({"model": "deepseek-v33"}, "did you mean deepseek-v3"),
    ],
)
def test_refusals(given_words, message):
    with pytest.raises(Refused, match=message):
        plan(Layout(dp=2), **({"max_tokens": 16} | given_words))


def test_the_dp_sized_workspace_is_smaller_in_rows_not_in_memory():
    planned = plan(Layout(tp=2, dp=2), **V3, max_tokens=1024)
    wrong = workspace_over(planned)
    assert (wrong.spans, wrong.layout.ep_size, wrong.is_wrong) == (2, 4, True)
    assert wrong.allocated_bytes == planned.one_sided.allocated_bytes
    assert 2 * wrong.mapped_bytes == planned.one_sided.mapped_bytes
    assert 2 * wrong.reserved_bytes == planned.one_sided.reserved_bytes
    assert "2 of 4 rows" in str(wrong)


def test_who_is_out_of_reach_in_the_dp_sized_workspace():
    table = workspace_over(plan(Layout(tp=2, dp=2), **V3, max_tokens=1024)).to_frame()
    assert table["out_of_reach"].tolist() == ["1 3", "0 2", "1 3", "0 2"]
    assert table["row_of_this_rank"].tolist() == [0, 0, 1, 1]
    assert table["rank_of_row_ep_rank"].tolist() == ["0", "3", "none", "none"]


def test_two_sided_over_the_wrong_group_keeps_both_allocations():
    planned = plan(Layout(tp=2, dp=4), **V3, max_tokens=1024)
    wrong = workspace_over(planned, mode="two_sided")
    assert wrong.allocated_bytes == planned.two_sided.allocated_bytes
    assert wrong.mapped_bytes == planned.two_sided.mapped_bytes // 2


def test_without_tp_the_dp_group_is_the_ep_group():
    right = workspace_over(plan(Layout(dp=4), **V3, max_tokens=1024))
    assert not right.is_wrong
    assert "nothing is wrong" in str(right)


def test_another_mode_or_group_is_refused():
    planned = plan(Layout(tp=2, dp=2), **V3, max_tokens=16)
    assert workspace_over(planned, mode="ONE-SIDED", group="DP") == workspace_over(planned)
    with pytest.raises(Refused, match="pass what plan"):
        workspace_over(None)
    with pytest.raises(Refused, match=r"'all_to_all'.*one_sided, two_sided"):
        workspace_over(planned, mode="all_to_all")
    with pytest.raises(Refused, match="group 'cp' is not known: did you mean pcp"):
        workspace_over(planned, group="cp")

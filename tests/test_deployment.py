"""Memory of a server: weights, the workspaces that are alive, and what they leave, against sums made by hand."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

import mnnvl_lab as lab
from mnnvl_lab.__main__ import main
from mnnvl_lab.errors import Refused
from mnnvl_lab.layout import Layout
from mnnvl_lab.planner import Head

MIB, GIB = 2**20, 2**30


def v3(layout, *, max_tokens=8192, gpu="h200", **more):
    return lab.plan(layout, model="deepseek-v3", max_tokens=max_tokens, gpu=gpu, **more)


def test_experts_of_deepseek_v3_on_eight_ranks():
    """58 layers of 256 experts with three matrices of 7168 x 2048, a byte each, an eighth of them."""
    held = v3(Layout(dp=8)).deployment()
    assert held.expert_bytes == 58 * 32 * 3 * 7168 * 2048
    assert held.other_bytes == 2 * (671_000_000_000 - 58 * 256 * 3 * 7168 * 2048)
    assert v3(Layout(tp=2, dp=4)).deployment().other_bytes == held.other_bytes // 2


def test_a_redundant_expert_takes_what_vllm_documents():
    """vLLM's page on expert parallelism: 2.4 GB for one redundant expert of DeepSeek-V3 on a rank."""
    held = v3(Layout(dp=32, gpus_per_node=32), gpu="gb200").deployment(redundant=32)
    assert held.redundant_bytes == 58 * 3 * 7168 * 2048 == pytest.approx(2.4 * GIB, rel=0.01)


def test_an_odd_number_of_experts_fills_the_first_rank():
    held = lab.plan(Layout(dp=3), model="qwen3-30b-a3b", max_tokens=64).deployment(weights="bf16")
    assert held.expert_bytes == 48 * 43 * 3 * 2048 * 768 * 2  # 43 + 43 + 42 experts


def test_the_parts_add_up_to_the_memory():
    held = v3(Layout(dp=8), format="nvfp4").deployment(heads=["bf16"], other_weights_bytes=20 * GIB, utilization=0.9)
    table = held.to_frame().set_index("what")["bytes"]
    assert table.iloc[0] == int(143771 * MIB * 0.9)
    assert table.iloc[0] - table.iloc[1:-1].sum() == table["left"] == held.left_bytes
    assert table["other weights"] == 20 * GIB
    assert held.kv_tokens == held.left_bytes // 70_272
    assert held.fits is (held.left_bytes >= 0)


def test_a_bf16_head_makes_vllm_grow_and_flashinfer_keep_the_outgrown():
    """EP 8, 8,192 tokens of DeepSeek-V3: 1.13 GiB with nvfp4 rows, 1.76 GiB with bf16 rows."""
    held = v3(Layout(dp=8), format="nvfp4").deployment(heads=["bf16"])
    sizes = [one.asked_bytes[0] for one in held.workspaces]
    assert [round(size / GIB, 2) for size in sizes] == [1.13, 1.76]
    assert [one.in_use for one in held.workspaces] == [False, True]
    assert sizes[1] == v3(Layout(dp=8)).one_sided.workspace_bytes
    assert held.kept_bytes == v3(Layout(dp=8), format="nvfp4").one_sided.allocated_bytes
    assert "outgrown" in str(held)
    assert "outgrown" in held._repr_html_()


def test_main_frees_the_outgrown():
    held = v3(Layout(dp=8), format="nvfp4", flashinfer="main").deployment(heads=["bf16"])
    assert [one.in_use for one in held.workspaces] == [True]
    assert held.kept_bytes == 0
    assert held.workspaces[0].asked_bytes == (v3(Layout(dp=8), flashinfer="main").one_sided.workspace_bytes,)


def test_a_head_that_fits_changes_nothing():
    alone = v3(Layout(dp=8)).deployment()
    held = v3(Layout(dp=8)).deployment(heads=["nvfp4", "bf16:2048"])
    assert held.workspaces == alone.workspaces


def test_a_union_takes_the_larger_of_each_size():
    """A head of narrower bf16 rows: its dispatch is wider than nvfp4's, the combine stays the model's."""
    plan = v3(Layout(dp=8), max_tokens=1024, format="nvfp4")
    held = plan.deployment(heads=["bf16:4096"])
    rows = 8 * 1024
    union = plan.one_sided.workspace_bytes - rows * 4096 + rows * (2 * 4096 + 64)
    assert held.workspaces[-1].asked_bytes == (union,)
    wider = plan.deployment(heads=[Head(format="nvfp4", hidden=14336)]).workspaces[-1].asked_bytes[0]
    assert wider == plan.one_sided.workspace_bytes + rows * (14336 * 9 // 16 - 7168 * 9 // 16 + 2 * (14336 - 7168))


def test_sglang_keeps_up_to_three():
    """EP 16, 16,384 tokens of DeepSeek-V3: 7.02 GiB each, told apart by 128 bytes."""
    plan = v3(Layout(dp=16, gpus_per_node=4), max_tokens=16384, gpu="gb200", format="nvfp4")
    held = plan.deployment(engine="sglang", namespaces=["decode", "speculative", "sp-prefill"])
    sizes = [one.asked_bytes[0] for one in held.workspaces]
    bf16 = v3(Layout(dp=16, gpus_per_node=4), max_tokens=16384, gpu="gb200").one_sided.workspace_bytes
    assert sizes == [bf16, bf16 + 128, bf16 + 256]
    assert round(sizes[0] / GIB, 2) == 7.02
    assert round(plan.deployment(engine="sglang", namespaces=["decode", "sp_prefill"]).allocated_bytes / GIB, 1) == 14.0
    assert len(plan.deployment(engine="sglang", namespaces=["decode", "DECODE"]).workspaces) == 1


def test_two_sided_has_one_whatever_the_layers():
    held = v3(Layout(dp=8)).deployment(mode="two-sided", heads=["bf16"])
    assert held.allocated_bytes == v3(Layout(dp=8)).two_sided.allocated_bytes
    assert len(held.workspaces) == 1
    assert held.unused_bytes == held.kept_bytes == 0


def test_what_vllm_reserves_and_never_uses_under_tp():
    """1,153 MiB reserved and 577 needed at TP 2: nvfp4, 8,192 tokens, EP 8."""
    held = v3(Layout(tp=2, dp=4), format="nvfp4").deployment()
    assert held.unused_bytes == pytest.approx(576 * MIB, abs=2 * MIB)
    assert "stay empty" in str(held)
    assert v3(Layout(tp=8), format="nvfp4").deployment().unused_bytes == 0  # no SP-MoE with DP 1
    assert v3(Layout(tp=2, dp=4), format="nvfp4", sequence_parallel=True).deployment().unused_bytes == 0


@given(
    tp=st.integers(1, 4),
    dp=st.integers(1, 8),
    heads=st.lists(st.sampled_from(["bf16", "nvfp4", "mxfp8", "bf16:2048"]), max_size=2),
    kv_tokens=st.integers(0, 200_000),
    shared=st.booleans(),
)
def test_the_largest_batch_fits_and_one_more_token_does_not(tp, dp, heads, kv_tokens, shared):
    def held(tokens):
        plan = lab.plan(Layout(tp=tp, dp=dp), model="qwen3-30b-a3b", max_tokens=tokens, sequence_parallel=shared)
        return plan.deployment(heads=heads, weights="bf16")

    most = held(1).most_tokens(kv_tokens)
    needed = kv_tokens * 98_304
    if most is None:
        assert held(1).left_bytes < needed
        return
    assert held(most).left_bytes >= needed > held(most + 1).left_bytes


def test_what_does_not_fit_says_what_would():
    held = v3(Layout(dp=8), gpu="h100").deployment()
    assert not held.fits
    assert held.kv_tokens == 0
    assert "use more GPUs" in held.reasons_against[0]
    tight = v3(Layout(dp=8), max_tokens=500_000).deployment()
    batch = tight.most_tokens()
    assert f"use max_tokens {batch} or less" in tight.reasons_against[0]
    assert v3(Layout(dp=8), max_tokens=batch).deployment().fits


def test_the_cache_that_is_asked_for_counts():
    """70,272 bytes per token of DeepSeek-V3."""
    held = v3(Layout(dp=8), format="nvfp4").deployment()
    room = held.left_bytes // 70_272
    assert v3(Layout(dp=8), format="nvfp4").deployment(least_kv_tokens=room).fits
    tight = v3(Layout(dp=8), format="nvfp4").deployment(least_kv_tokens=room + 1000)
    assert not tight.fits
    batch = tight.most_tokens()
    assert f"use max_tokens {batch} or less" in tight.reasons_against[0]
    assert batch == held.most_tokens(room + 1000)
    assert v3(Layout(dp=8), max_tokens=batch, format="nvfp4").deployment(least_kv_tokens=room + 1000).fits


def test_a_model_that_is_not_known_has_workspaces_all_the_same():
    held = lab.plan(Layout(dp=4), hidden=4096, experts=64, top_k=4, max_tokens=64).deployment()
    assert held.expert_bytes is held.other_bytes is held.kv_tokens is None
    assert held.left_bytes == held.budget_bytes - held.allocated_bytes
    assert "not known" in str(held)
    with pytest.raises(Refused, match="name a model"):
        held.most_tokens(10)


@pytest.mark.parametrize(
    ("choices", "words"),
    [
        ({"mode": "pico"}, "'pico'"),
        ({"engine": "trtllm"}, "whose rules on workspaces are known"),
        ({"weights": "int3"}, "dtype of weights"),
        ({"heads": ["fp5"]}, "fp5"),
        ({"heads": ["nvfp4:40"]}, "hidden is 40"),
        ({"heads": ["bf16:x"]}, "hidden of a head is 'x'"),
        ({"heads": ["bf16:²"]}, "hidden of a head is '²'"),
        ({"heads": ["bf16:" + "9" * 5000]}, "hidden of a head is '999"),
        ({"heads": [3]}, "head is 3"),
        ({"engine": "sglang", "heads": ["bf16"]}, "leave heads out"),
        ({"engine": "sglang", "namespaces": ["draft"]}, "'draft'"),
        ({"engine": "sglang", "namespaces": []}, "no workspace"),
        ({"redundant": -1}, "redundant is -1"),
        ({"least_kv_tokens": -1}, "least_kv_tokens is -1"),
        ({"utilization": 0}, "utilization is 0"),
        ({"utilization": float("nan")}, "utilization is nan"),
        ({"other_weights_bytes": -5}, "other_weights_bytes is -5"),
    ],
)
def test_what_makes_no_deployment_is_refused(choices, words):
    with pytest.raises(Refused, match=words):
        v3(Layout(dp=8)).deployment(**choices)


class TestCommandLine:
    LINE = ("plan", "--dp", "8", "--model", "deepseek-v3", "--gpu", "h200", "--format", "nvfp4", "--max-tokens", "8192")

    def test_weights_add_the_deployment(self, capsys):
        assert main([*self.LINE, "--weights", "fp8", "--heads", "bf16", "--modes", "one_sided"]) == 0
        text = capsys.readouterr().out
        assert "layers and bf16 head" in text
        assert "routed experts" in text

    def test_json_holds_each_mode(self, capsys):
        assert main([*self.LINE, "--weights", "fp8", "--json", "--other-gib", "16"]) == 0
        found = json.loads(capsys.readouterr().out)["deployment"]
        assert [one["mode"] for one in found] == ["one_sided", "two_sided"]
        assert found[0]["other_bytes"] == 16 * GIB
        assert (
            found[0]["left_bytes"]
            == v3(Layout(dp=8), format="nvfp4").deployment(other_weights_bytes=16 * GIB).left_bytes
        )

    def test_what_does_not_fit_ends_with_1(self, capsys):
        assert main([*self.LINE, "--weights", "bf16", "--modes", "one_sided"]) == 1
        assert "one_sided does not fit" in capsys.readouterr().err

    def test_an_engine_brings_its_rules(self, capsys):
        flags = ["--enable-dp-attention", "--moe-a2a-backend", "flashinfer", "--tp", "8", "--dp", "8"]
        line = ["plan", "--engine", "sglang", "--model", "deepseek-v3", "--gpu", "h200", "--weights", "fp8", "--json"]
        assert main([*line, "--namespaces", "decode", "speculative", "--", *flags]) == 0
        found = json.loads(capsys.readouterr().out)["deployment"]
        assert [(one["engine"], len(one["workspaces"])) for one in found] == [("sglang", 2)]

    def test_tokens_of_cache_that_must_fit(self, capsys):
        line = [*self.LINE, "--weights", "fp8", "--modes", "one_sided"]
        assert main([*line, "--kv-tokens", "100000"]) == 0
        assert main([*line, "--kv-tokens", "10000000"]) == 1
        assert "does not fit with 10,000,000 tokens of KV cache" in capsys.readouterr().err

    def test_an_engine_whose_rules_are_not_known(self, capsys):
        line = ["plan", "--engine", "tensorrt_llm", "--model", "deepseek-v3", "--weights", "fp8"]
        assert main([*line, "--modes", "one_sided", "--", "--tp_size", "8"]) == 2
        assert "pass --rules vllm or sglang" in capsys.readouterr().err

    def test_the_layout_of_main_by_name(self, capsys):
        line = ["plan", "--dp", "8", "--model", "deepseek-v3", "--flashinfer", "main", "--cft", "--json"]
        assert main(line) == 0
        assert json.loads(capsys.readouterr().out)["one_sided"]["workspace_bytes"] == 710_152_448
        assert main(["plan", "--dp", "8", "--model", "deepseek-v3", "--cft"]) == 2

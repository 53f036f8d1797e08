"""Engines' flags: what vLLM, SGLang and TensorRT-LLM make of theirs, and who serves the result."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

import mnnvl_lab as lab
from mnnvl_lab.__main__ import main
from mnnvl_lab.engines import READERS, read_engine, vllm
from mnnvl_lab.errors import Refused
from mnnvl_lab.layout import Layout
from mnnvl_lab.planner import plan
from mnnvl_lab.serving import about, model_named, who_serves

EP = "--enable-expert-parallel"
ONE_SIDED = "--all2all-backend flashinfer_nvlink_one_sided"


@pytest.mark.parametrize(
    ("engine", "flags", "layout"),
    [
        ("vllm", f"--tensor-parallel-size 2 --data-parallel-size 4 {EP}", Layout(tp=2, dp=4)),
        ("vllm", f"-tp 2 -dp=4 -pp 2 -pcp 2 {EP}", Layout(tp=2, dp=4, pp=2, pcp=2)),
        ("vllm", "vllm serve some/model --tensor_parallel_size 8", Layout(tp=8)),
        ("VLLM", "--tp-is-not-this 3 -tp 4", Layout(tp=4)),
        ("vllm", "-tp 8 -dp 8", Layout(tp=8, dp=8)),  # 64 GPUs
        ("vllm", "-dp 16 --data-parallel-size-local 4 -tp 2", Layout(tp=2, dp=16, gpus_per_node=8)),
        ("vllm", "-tp 16 --nnodes 4", Layout(tp=16, gpus_per_node=4)),
        ("sglang", "--tp 8 --dp 8 --enable-dp-attention", Layout(dp=8)),  # 8 GPUs
        ("sglang", "--tp 8 --dp 8", Layout(dp=8)),
        ("sglang", "python -m sglang.launch_server --model-path m --tp-size 16 --dp-size 4", Layout(tp=4, dp=4)),
        ("sglang", "--tp 8 --nnodes 2 --pp-size 2", Layout(tp=8, pp=2, gpus_per_node=8)),
        ("tensorrt_llm", "trtllm-serve m --tp_size 8 --ep_size 8 --enable_attention_dp", Layout(dp=8)),
        ("trtllm", "--tp_size 8", Layout(tp=8)),
        (
            "TensorRT-LLM",
            "--tp_size 4 --pp_size 2 --enable_attention_dp true --gpus_per_node 4",
            Layout(dp=4, pp=2, gpus_per_node=4),
        ),
    ],
)
def test_the_layout_that_flags_make(engine, flags, layout):
    assert Layout.of_engine(engine, flags) == layout
    assert Layout.of_engine(engine, flags.split()) == layout


@pytest.mark.parametrize(
    ("flags", "opens", "mode"),
    [
        (f"-tp 8 {EP} {ONE_SIDED}", False, None),  # DP 1: no all-to-all
        (f"-tp 2 -dp 4 {EP} {ONE_SIDED}", True, "one_sided"),
        (f"-dp 4 {EP}", True, "allgather_reducescatter"),
        (f"-pcp 4 {EP} --all2all-backend flashinfer_nvlink_two_sided", True, "two_sided"),
        (f"VLLM_ALL2ALL_BACKEND=flashinfer_nvlink_one_sided vllm serve m -dp 2 {EP}", True, "one_sided"),
        (f"-dp 4 {EP} --all2all-backend deepep_v2", True, None),
        ("-dp 4", False, None),
        ("-tp 8", False, None),
        (f"-dp 4 {EP} --no-enable-expert-parallel", False, None),
    ],
)
def test_whether_vllm_opens_an_all_to_all(flags, opens, mode):
    setup = read_engine("vllm", flags)
    assert (setup.opens_all_to_all, setup.mode) == (opens, mode)
    assert setup.why


def test_tokens_and_capacity_of_vllm_under_sp_moe():
    """TP ranks share the batch in one-sided mode, and the workspace is sized for all of it; two-sided repeats it."""
    batch = "--max-num-batched-tokens 1001"
    one = read_engine("vllm", f"-tp 2 -dp 4 {EP} {ONE_SIDED} {batch}")
    two = read_engine("vllm", f"-tp 2 -dp 4 {EP} --all2all-backend flashinfer_nvlink_two_sided {batch}")
    assert (one.capacity, one.tokens_per_rank, one.sequence_parallel) == (1001, 501, True)
    assert (two.capacity, two.tokens_per_rank, two.sequence_parallel) == (1001, 1001, False)
    assert "2 times the rows" in str(two)


def test_sglang_sizes_by_chunk_or_environment():
    assert read_engine("sglang", "--tp 8 --chunked-prefill-size 16384").capacity == 16384
    assert read_engine("sglang", "--tp 8 --dp 8 --chunked-prefill-size 16384").capacity == 4096
    given_size = "SGLANG_FLASHINFER_NUM_MAX_DISPATCH_TOKENS_PER_RANK=512 python -m sglang.launch_server --tp 8 --dp 8"
    assert read_engine("sglang", given_size).capacity == 512
    with pytest.raises(
        Refused, match="SGLANG_FLASHINFER_NUM_MAX_DISPATCH_TOKENS_PER_RANK is 'many': it must be a whole number"
    ):
        read_engine("sglang", given_size.replace("512", "many"))
    for size in ("²", "9" * 5000):
        with pytest.raises(Refused, match="it must be a whole number of at least 1"):
            read_engine("sglang", given_size.replace("512", size))


def test_dp_of_sglang_without_dp_attention_is_said_to_be_replicas():
    assert "independent replicas" in str(read_engine("sglang", "--tp 8 --dp 8"))
    assert "independent replicas" not in str(read_engine("sglang", "--tp 8 --dp 8 --enable-dp-attention"))


@pytest.mark.parametrize(
    ("flags", "opens", "backend"),
    [
        ("--tp_size 8 --ep_size 8", False, "none"),
        ("--tp_size 8 --ep_size 8 --enable_attention_dp", True, "NVLINK_ONE_SIDED"),
        ("--tp_size 8 --ep_size 4 --enable_attention_dp", True, "ALLGATHER"),
        ("--tp_size 8 --pp_size 2 --ep_size 8 --enable_attention_dp", True, "NVLINK_TWO_SIDED"),
        (
            "TRTLLM_FORCE_COMM_METHOD=nvlink_two_sided m --tp_size 8 --ep_size 8 --enable_attention_dp=true",
            True,
            "NVLINK_TWO_SIDED",
        ),
        ("--tp_size 8 --ep_size 8 --enable_attention_dp false", False, "none"),
    ],
)
def test_the_method_that_tensorrt_llm_takes(flags, opens, backend):
    setup = read_engine("tensorrt_llm", flags)
    assert (setup.opens_all_to_all, setup.backend) == (opens, backend)


@pytest.mark.parametrize(
    ("engine", "flags", "message"),
    [
        ("vllm", "--tensor-paralel-size 2", "did you mean --tensor-parallel-size"),
        ("vllm", "--data-parallel-sizes 2", "did you mean --data-parallel-size"),
        ("vllm", "--enable-expert-paralel", "did you mean --enable-expert-parallel"),
        ("vllm", "-tp two", "-tp is 'two': it takes a whole number of at least 1; pass digits"),
        ("vllm", "-tp 0", "-tp is 0: it must be a whole number of at least 1"),
        ("vllm", "-tp -3", "-tp is -3"),
        ("vllm", "-dp", "-dp has no value"),
        ("vllm", "-dp --enable-expert-parallel", "-dp has no value"),
        ("vllm", f"-tp {2**40}", "must be at most"),
        ("vllm", "-tp 70000", "a layout has at most 65536"),
        ("vllm", "--all2all-backend pplx", "'pplx' is not known"),
        ("vllm", "--enable-expert-parallel=perhaps", "it takes true or false"),
        ("vllm", "-dp 2 --data-parallel-size-local 4", "at most --data-parallel-size 2"),
        ("vllm", "-tp 8 --nnodes 3", "must divide the 8 ranks"),
        ("vllm", "-tp 4 -dcp 3", "must divide --tensor-parallel-size 4"),
        ("vllm", "--eplb-config nonsense", "must be a JSON object"),
        ("vllm", "--model 'open", "close the quote"),
        ("sglang", "--tp 8 --dp 3", "divides --tp-size, which is 8"),
        ("sglang", "--tp 8 --ep-size 4", "use --ep-size 8"),
        ("sglang", "--tp 8 --dp 2 --moe-a2a-backend flashinfer", "only supported with dp_size == tp_size"),
        ("sglang", "--tp 8 --moe-a2a-backend flashinfr", "did you mean flashinfer"),
        ("sglang", "--tp 8 --nnodes 3", "must divide the 8 GPUs"),
        ("tensorrt_llm", "--tp_size 8 --ep_size 3", "their product must be --tp_size 8"),
        ("tensorrt_llm", "--tp_size 8 --cp_size 2", "Helix"),
        ("tensorrt_llm", "TRTLLM_FORCE_COMM_METHOD=NVLINK --tp_size 8", "did you mean NVLINK_"),
        (
            "tensorrt_llm",
            "TRTLLM_FORCE_COMM_METHOD=NVLINK_ONE_SIDED --tp_size 8 --ep_size 8 --pp_size 2 --enable_attention_dp",
            "only supports pure EP",
        ),
        ("deepspeed", "", "choose one of vllm, sglang, tensorrt_llm"),
        (None, "", "a name is a string"),
        ("vllm", 8, "must be a command line"),
    ],
)
def test_bad_flags_are_refused_with_the_flag_the_rule_and_the_remedy(engine, flags, message):
    with pytest.raises(Refused, match=message):
        read_engine(engine, flags)


def test_flags_that_do_not_matter_are_named_and_swallow_their_values():
    flags = "--gpu-memory-utilization 0.9 -tp 2 --served-model-name a b --port=80 --trust-remote-code -dp 2"
    setup = read_engine("vllm", flags)
    assert setup.layout == Layout(tp=2, dp=2)
    assert setup.unread == ("--gpu-memory-utilization", "--served-model-name", "--port", "--trust-remote-code")


@pytest.mark.parametrize("flag", vllm.OTHERS)
def test_neighbours_of_flags_are_not_taken_for_misspelt_ones(flag):
    assert read_engine("vllm", f"{flag} 1 -tp 2").layout == Layout(tp=2)


@given(engine=st.sampled_from(list(READERS)), words=st.lists(st.text(max_size=12), max_size=6))
def test_any_words_are_read_or_refused(engine, words):
    try:
        setup = read_engine(engine, words)
    except Refused:
        return
    assert setup.layout.world_size >= 1


@pytest.mark.parametrize("engine", list(READERS))
def test_a_setup_is_shown_and_kept_as_json(engine):
    setup = read_engine(engine, "--tp 4" if engine != "vllm" else "-tp 4 -dp 2 --enable-expert-parallel")
    assert json.loads(json.dumps(setup.to_dict()))["layout"]["world_size"] == setup.layout.world_size
    assert setup.version in str(setup)
    assert setup.engine in setup._repr_html_()
    assert setup.engine in about(setup)


# Who serves this


def served(layout, mode, **shape):
    numbers = {"hidden": 7168, "experts": 256, "top_k": 8} | shape
    gpu = numbers.pop("gpu", "h100")
    table = who_serves(plan(layout, **numbers, max_tokens=128, gpu=gpu)).table
    return table.set_index("layer")[mode].to_dict()


def test_who_serves_a_plain_ep8():
    found = served(Layout(dp=8), "one_sided")
    assert found == dict.fromkeys(found, "yes")
    assert len(found) == 5
    two = served(Layout(dp=8), "two_sided")
    assert two.pop("SGLang").startswith("has none")
    assert two == dict.fromkeys(two, "yes")


@pytest.mark.parametrize(
    ("layout", "mode", "shape", "layer", "words"),
    [
        (Layout(dp=3), "one_sided", {"top_k": 6}, "FlashInfer kernel", "yes"),
        (
            Layout(dp=3),
            "one_sided",
            {"top_k": 6},
            "flashinfer.moe_ep",
            "requires num_experts (256) divisible by the EP size (3)",
        ),
        (Layout(dp=3), "one_sided", {"top_k": 6}, "vLLM", "requires num_experts (256) divisible by the EP size (3)"),
        (Layout(dp=3), "two_sided", {"top_k": 6}, "TensorRT-LLM", "requires num_experts % ep_size == 0"),
        (
            Layout(dp=3),
            "two_sided",
            {"experts": 258, "top_k": 6},
            "FlashInfer kernel",
            "expertCount must be divisible by 4",
        ),
        (Layout(dp=8), "one_sided", {"top_k": 5}, "FlashInfer kernel", "Unsupported top_k"),
        (Layout(dp=8), "one_sided", {"top_k": 10}, "TensorRT-LLM", "MAX_TOP_K is 8"),
        (Layout(tp=8), "one_sided", {}, "vLLM", "opens none: DP 1 and PCP 1"),
        (Layout(pcp=4), "two_sided", {}, "vLLM", "dp_metadata is not None"),
        (Layout(tp=2, dp=4), "one_sided", {}, "SGLang", "dp_size == tp_size"),
        (Layout(dp=8), "one_sided", {"format": "fp8_block"}, "SGLang", "would dispatch bf16"),
        (Layout(dp=8), "one_sided", {"format": "fp32"}, "vLLM", "NotImplementedError"),
        (Layout(dp=4, pp=2), "one_sided", {}, "TensorRT-LLM", "pure EP"),
        (Layout(dp=16), "one_sided", {}, "FlashInfer kernel", "share the same host"),
        (Layout(dp=128, gpus_per_node=4), "one_sided", {"gpu": "gb200"}, "FlashInfer kernel", "same host"),
        (
            Layout(dp=72, gpus_per_node=4),
            "one_sided",
            {"gpu": "gb200", "experts": 288},
            "FlashInfer kernel",
            "epSize must be in the range (0, 64]",
        ),
    ],
)
def test_who_refuses_in_whose_words(layout, mode, shape, layer, words):
    assert words in served(layout, mode, **shape)[layer]


@pytest.mark.parametrize("experts", [3, 7, 255, 256, 258])
@pytest.mark.parametrize("layout", [Layout(dp=2), Layout(dp=3), Layout(tp=2, dp=2)])
def test_a_kernel_that_serves_has_no_problem_in_the_plan(experts, layout):
    """`yes` of the kernels is what the planner finds too."""
    made = plan(layout, hidden=7168, experts=experts, top_k=2, max_tokens=64)
    table = who_serves(made).table.set_index("layer")
    for mode in made.modes:
        assert (table.loc["FlashInfer kernel", mode.mode] == "yes") == (not mode.problems)


def test_models_by_the_names_of_checkpoints():
    assert model_named("deepseek-ai/DeepSeek-V3-0324").name == "deepseek-v3"
    assert model_named("deepseek-ai/DeepSeek-R1").name == "deepseek-v3"
    assert model_named("Qwen/Qwen3-235B-A22B-Instruct-2507-FP8").name == "qwen3-235b-a22b"
    assert model_named("/models/Kimi-K2-Instruct/").name == "kimi-k2"
    assert model_named("nvidia/NVIDIA-Nemotron-3-Super-120B-A12B-NVFP4").name == "nemotron-3-super"
    assert model_named("deepseek-ai/DeepSeek-V4-Flash-0731").name == "deepseek-v4-flash"
    assert model_named("meta/other") is None
    assert model_named("") is None


@pytest.mark.parametrize(
    "name", ["zai-org/GLM-4.5-Air", "zai-org/GLM-5.3-Flash", "deepseek-ai/DeepSeek-V3.3", "DeepSeek-R1-Distill-Qwen-7B"]
)
def test_a_checkpoint_of_another_size_or_version_is_not_taken_for_the_model(name):
    """GLM-4.5-Air has 128 experts, GLM-4.5 has 160."""
    assert model_named(name) is None


# The command


def test_plan_reads_an_engines_flags(capsys):
    flags = f"deepseek-ai/DeepSeek-V3 -tp 2 -dp 4 {EP} {ONE_SIDED} --max-num-batched-tokens 512"
    assert main(["plan", "--engine", "vllm", "--", *flags.split()]) == 0
    out = capsys.readouterr().out
    assert "DP 4 x PCP 1 x TP 2" in out
    assert "512 tokens per rank" in out
    assert "Who serves" in out
    assert "vLLM opens a one_sided workspace" in out


def test_plan_gives_the_engine_as_json(capsys):
    arguments = ["plan", "--engine", "sglang", "--model", "deepseek-v3", "--json", "--"]
    assert main([*arguments, "--tp", "8", "--dp", "8", "--moe-a2a-backend", "flashinfer"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["layout"]["world_size"] == found["engine"]["layout"]["world_size"] == 8
    assert {row["layer"] for row in found["who_serves"]} >= {"vLLM", "SGLang", "TensorRT-LLM"}
    assert found["max_tokens"] == 4096


def test_a_mode_that_the_engine_does_not_open_does_not_count(capsys):
    """258 experts: two-sided cannot serve them, vLLM's one-sided would."""
    shape = ["--hidden", "7168", "--experts", "258", "--top-k", "6"]
    assert main(["plan", *shape, "--engine", "vllm", "--", "-dp", "2", EP, *ONE_SIDED.split()]) == 0
    assert main(["plan", *shape, "--dp", "2"]) == 1
    capsys.readouterr()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("--dp 8 --model deepseek-v3 -- -tp 2", "without --engine"),
        ("--engine vllm --dp 8 --model deepseek-v3 -- -tp 2", "--engine and --dp given"),
        ("--engine vllm -- -tp 2", "the flags name no model"),
        ("--engine vllm -- some/model -tp 2", "'some/model' is not known here"),
        ("--engine vllm --model deepseek-v3 -- -tp two", "-tp is 'two'"),
        ("--engine vlm --model deepseek-v3", "did you mean vllm"),
    ],
)
def test_the_command_refuses_in_one_line(arguments, message, capsys):
    assert main(["plan", *arguments.split()]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1


def test_the_public_names():
    assert lab.read_engine is read_engine
    assert lab.who_serves is who_serves

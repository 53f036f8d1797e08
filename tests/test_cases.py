"""Public reports as cases: what the lab says of each against an answer computed here; and the lines of the page."""

import contextlib
import re
import shlex
from importlib.util import find_spec
from itertools import count
from pathlib import Path

import numpy as np
import pytest

import mnnvl_lab as lab
from mnnvl_lab.__main__ import main
from mnnvl_lab.cli import sweep as sweep_command
from mnnvl_lab.doctor.known_errors import KNOWN_ERRORS
from mnnvl_lab.errors import Hang, LabError, Refused
from mnnvl_lab.exchange import Exchange, ExchangeShape
from mnnvl_lab.faults import FuzzCase, run_fuzz_cases, small_point, stay_away
from mnnvl_lab.hardware import GPUS
from mnnvl_lab.layout import Layout, sp_token_counts
from mnnvl_lab.measure import Sampling, Sweep
from mnnvl_lab.model import FORMATS, MODELS
from mnnvl_lab.placement.least import least_redundant
from mnnvl_lab.planner.modes import one_sided
from mnnvl_lab.routing import Load, Padding, Uniform, traffic
from mnnvl_lab.transport.flashinfer.vllm_files import find_vllm
from mnnvl_lab.workspace import OneSidedWorkspace, kernel_wait_limit_s
from mnnvl_lab.workspace.kernel_limits import problems
from tests import ranks_helpers
from tests.test_cli import parsers_of
from tests.test_repository import anchor

PAGE = (Path(__file__).parents[1] / "docs" / "cases.md").read_text()
GIB = 2**30
RIGHT = "right"
QUICK = Sampling(warmup=0, min_samples=1, max_samples=1, budget_s=0.0)


def fewest(accepts):
    """The least number of redundant experts beside 256 that a rule accepts, by trying one after another."""
    return next(more for more in count() if accepts(256 + more))


class TestExperts:
    def test_256_on_three_ranks(self):
        """vLLM #52435: vLLM and one-sided want multiples of 3, two-sided of 3 and of 4, the kernel none."""
        found = least_redundant(256, 3).set_index(["layer", "mode"])["redundant"]
        thirds, twelfths = fewest(lambda n: n % 3 == 0), fewest(lambda n: n % 3 == n % 4 == 0)
        assert (thirds, twelfths) == (2, 8)
        assert found["vLLM 0.33", "one_sided"] == found["flashinfer.moe_ep", "one_sided"] == thirds
        assert found["vLLM 0.33", "two_sided"] == found["FlashInfer kernel", "two_sided"] == twelfths
        assert found["FlashInfer kernel", "one_sided"] == 0

    def test_what_stands_in_the_way_names_the_remedy(self):
        plan = lab.plan(Layout(dp=3), model="deepseek-v4-flash", max_tokens=8192, format="fp8_block")
        assert plan.one_sided.refusal is None
        assert "add 8 redundant experts (264 in all)" in plan.two_sided.refusal


class TestRounds:
    def test_padding_goes_to_rank_0_or_nowhere(self):
        """FlashInfer #4017, by a loop over all rows: in C -1 / 64 is 0."""
        counts, experts, ranks = (1024, 512, 512, 512), 256, 4
        plain = Load(routing=Uniform(), tokens=counts)
        for handling, truncates in (("as_kernel", True), ("drop", False)):
            padded = Load(routing=Uniform(), tokens=counts, padding=Padding.to_fullest(counts, invalid_ids=handling))
            rows = traffic.rows_RR(padded, experts=experts, top_k=8, ep_size=ranks).sum(axis=0)
            due = traffic.rows_RR(plain, experts=experts, top_k=8, ep_size=ranks).sum(axis=0)
            for rank in range(ranks):
                for _ in range(max(counts) - counts[rank]):
                    if truncates:
                        due[int(-1 / (experts // ranks))] += 1
            assert rows.tolist() == due.tolist()

    def test_rows_that_experts_see(self):
        """TensorRT-LLM #13723: 8 ranks, 128 tokens, runtime max 8,192."""
        assert Load(routing=Uniform(), tokens=128).buffer_rows(8) == 8 * 128
        assert Load(routing=Uniform(), tokens=128, runtime_max_tokens=8192).buffer_rows(8) == 65_536

    def test_a_larger_capacity_moves_no_row_of_a_round(self):
        """SGLang #26643: behind the tables offsets are R x M x bytes of the payloads before, with M of the round."""
        for capacity in (128, 1024, 8192):
            workspace = OneSidedWorkspace(
                ep_size=8, max_tokens=capacity, dispatch_bytes_per_token=14400, combine_bytes_per_token=14336
            )
            offsets = workspace.payload_offsets((14336, 32, 32), runtime_max_tokens=128)
            assert [at - workspace.aux_bytes for at in offsets] == [0, 1024 * 14336, 1024 * (14336 + 32)]

    def test_capacity_round_and_tokens_are_three_numbers(self):
        (point,) = Sweep(
            layouts=Layout(dp=4), modes="one_sided", hidden=1024, experts=32, top_k=8, tokens=(128,), max_tokens=1024
        ).points()
        assert (point.exchange.max_tokens, point.load.runtime_max, point.load.max_tokens) == (1024, 128, 128)
        with pytest.raises(Refused, match="tokens is 2048 but the capacity max_tokens is 1024"):  # DeepEP #165
            Sweep(layouts=Layout(dp=4), hidden=256, experts=16, top_k=4, tokens=2048, max_tokens=1024)

    @pytest.mark.parametrize("mode", ["one_sided", "two_sided"])
    def test_sizes_that_change_on_one_workspace(self, host_ranks, mode):
        """DeepEP #382; every round is compared with the oracle."""
        sizes = (1, 2, 4, 8, 12, 16, 24, 32, 48, 64, 96, 128, 160, 256, 512, 1)
        assert host_ranks.run(ranks_helpers.rounds_of_sizes, mode, sizes) == [len(sizes)] * 4


FUZZ = {"experts": 16, "top_k": 4, "hidden": 256, "tokens": (5, 3, 9, 0)}
WIDE = {"experts": 512, "top_k": 22, "hidden": 1024, "tokens": (3, 0, 5, 1)}  # Nemotron-3-Super
GPT_OSS = {"experts": 128, "top_k": 4, "hidden": 2880, "tokens": (3, 1, 2, 4)}
LLAMA = {"experts": 128, "top_k": 1, "hidden": 5120, "tokens": (3, 1, 2, 4)}
V3 = {"experts": 256, "top_k": 8, "hidden": 7168, "tokens": (1, 0, 2, 1)}
ON_RANKS = {
    "SGLang #27945, runtime max differs": (
        {"mode": "one_sided", "invalid_input": "runtime_max_tokens differs between ranks", "target": 2} | FUZZ,
        r"refused: runtime_max_tokens is 9 on ep_rank 0 but 10 on ep_rank 2",
    ),
    "TensorRT-LLM #13319, sizes differ": (
        {"mode": "one_sided", "invalid_input": "max_tokens differs between ranks", "target": 2} | FUZZ,
        r"refused: max_tokens is 10 on ep_rank 0 but 11 on ep_rank 2",
    ),
    "DeepEP #208, one-sided": ({"mode": "one_sided"} | FUZZ | {"tokens": (1, 4, 0, 128)}, RIGHT),
    "DeepEP #208, two-sided": ({"mode": "two_sided"} | FUZZ | {"tokens": (1, 4, 0, 128)}, RIGHT),
    "DeepEP #165, a round above the workspace": (
        {"mode": "one_sided", "invalid_input": "runtime_max_tokens above max_tokens"} | FUZZ,
        r"refused: .*it must lie in \[1, max_tokens = 10\]",
    ),
    "NCCL #2103, one-sided": ({"mode": "one_sided"} | WIDE, RIGHT),
    "NCCL #2103, two-sided": ({"mode": "two_sided"} | WIDE, RIGHT),
    "NCCL #2103, nvfp4": ({"mode": "one_sided", "format": "nvfp4"} | WIDE, RIGHT),
    "vLLM #24588, bf16": ({"mode": "one_sided"} | GPT_OSS, RIGHT),
    "vLLM #24588, bf16 two-sided": ({"mode": "two_sided"} | GPT_OSS, RIGHT),
    "vLLM #24588, mxfp8": ({"mode": "one_sided", "format": "mxfp8"} | GPT_OSS, RIGHT),
    "vLLM #24588, nvfp4": ({"mode": "one_sided", "format": "nvfp4"} | GPT_OSS, RIGHT),
    "FlashInfer #3351, one-sided": ({"mode": "one_sided"} | LLAMA, RIGHT),
    "FlashInfer #3351, two-sided": ({"mode": "two_sided"} | LLAMA, RIGHT),
    "vLLM #47733, fp8": ({"mode": "one_sided", "format": "fp8"} | V3, RIGHT),
    "vLLM #47733, fp8 two-sided": ({"mode": "two_sided", "format": "fp8"} | V3, RIGHT),
    "vLLM #47733, mxfp4": ({"mode": "one_sided", "format": "mxfp4"} | V3, RIGHT),
}
"""Rounds that ranks run: right by the oracle, or refused by all ranks in these words."""


def test_rounds_of_the_reports_on_ranks(host_ranks):
    host_ranks.use(Layout(dp=4))
    cases = [FuzzCase(**case) for case, _ in ON_RANKS.values()]
    outcomes_of_ranks = host_ranks.run(run_fuzz_cases, cases)
    for name, (_, due), *outcomes in zip(ON_RANKS, ON_RANKS.values(), *outcomes_of_ranks, strict=True):
        assert len(set(outcomes)) == 1, name
        assert re.match(due, outcomes[0], re.DOTALL), (name, outcomes[0])


def test_pcp_and_tp_share_an_exact_round(host_ranks):
    """vLLM #57075: TP 2, PCP 2."""
    sweep = Sweep(layouts=Layout(tp=2, pcp=2), hidden=256, experts=16, top_k=4, tokens=5, sampling=QUICK)
    table = lab.run(sweep, ranks=host_ranks, progress=False)
    assert set(table["checked"]) <= {"exact", "bounded"}
    assert set(table["mode"]) == {"one_sided", "two_sided"}


class TestWaiting:
    def test_a_rank_that_skips_its_round_is_named(self, host_ranks):
        """vLLM #51984: one rank has 7 tokens, three are idle, and rank 1 does not come."""
        host_ranks.use(Layout(dp=4))
        point = small_point(Layout(dp=4), tokens=(7, 0, 0, 0))
        with pytest.raises(Hang) as caught:
            host_ranks.run(stay_away, point, culprits=1, phase="dispatch", round_limit_s=1.5)
        assert caught.value.hang_report.culprits == (1,)
        assert host_ranks.run(stay_away, point, culprits=None, phase="", rounds=1) == [None] * 4

    def test_the_kernels_own_limit(self):
        """vLLM #53282: 6e11 cycles, 300 s at 2 GHz; two-sided has none."""
        assert kernel_wait_limit_s("one_sided", 2.0) == 300
        assert kernel_wait_limit_s("one_sided", 1.98) == pytest.approx(303.03, abs=0.01)
        assert kernel_wait_limit_s("two_sided", 1.98) == float("inf")
        for clock in (0, True, float("nan"), "2"):
            with pytest.raises(Refused, match="clock_ghz is "):
                kernel_wait_limit_s("one_sided", clock)
        with pytest.raises(Refused, match="mode of FlashInfer's kernels 'pico' is not known"):
            kernel_wait_limit_s("pico", 2.0)

    def test_that_limit_stands_in_the_source(self):
        if (flashinfer := find_spec("flashinfer")) is None:
            pytest.skip("flashinfer-python is not installed here")
        kernels = "data/csrc/nv_internal/tensorrt_llm/kernels/communicationKernels/moeAlltoAllKernels.cu"
        text = (Path(flashinfer.origin).parent / kernels).read_text()
        (product,) = re.findall(r"define check_timeout.*> \(([\d l*]+)\)\)", text)
        cycles = np.prod([int(factor.strip().rstrip("l")) for factor in product.split("*")])
        assert cycles == kernel_wait_limit_s("one_sided", 1.0) * 1e9


class TestMemory:
    def test_three_workspaces_of_sglang(self):
        """16 ranks, 16,384 tokens: 2 x 7168 bytes each way, 64 of ids and weights, tables for 22 choices: 7.02 GiB."""
        rows = 16 * 16384
        least = rows * (2 * 7168 + 64) + rows * 2 * 7168 + 2 * 16384 * 22 * 4
        plan = lab.plan(Layout(dp=16, gpus_per_node=4), model="deepseek-v3", max_tokens=16384, gpu="gb200")
        for names, gibibytes in ((["decode"], 7.02), (["decode", "sp_prefill"], 14.04)):
            held = plan.deployment(engine="sglang", namespaces=names)
            assert held.allocated_bytes / GIB == pytest.approx(gibibytes, abs=0.01)
            assert 0 <= held.allocated_bytes - len(names) * least < len(names) * 3 * 2**20

    def test_a_bf16_head_beside_nvfp4_layers(self):
        """vLLM #42976: too small by R x M x (14400 - 4096) bytes for the head."""
        held = lab.plan(Layout(dp=8), model="deepseek-v3", max_tokens=8192, format="nvfp4").deployment(heads=["bf16"])
        first, union = (one.asked_bytes[0] for one in held.workspaces)
        assert union - first == 8 * 8192 * (14400 - 4096)

    @pytest.mark.parametrize(("layout", "gpu"), [(Layout(tp=4, dp=4), "b200"), (Layout(dp=16), "h100")])
    def test_nvlink_ends_at_an_hgx_node(self, layout, gpu):
        """FlashInfer #4916: 16 ranks, 8 per node; the kernels' handles reach one host."""
        plan = lab.plan(layout, model="deepseek-v3", max_tokens=8192, gpu=gpu, format="nvfp4")
        domains = {rank // 8 for rank in layout.group_of("ep", 0)}
        assert len(domains) == 2
        for mode in plan.modes:
            assert "spans 2 NVLink domains of 8 GPUs" in mode.refusal
        rack = lab.plan(Layout(tp=4, dp=4, gpus_per_node=4), model="deepseek-v3", max_tokens=8192, gpu="gb200")
        assert not any(rack.reasons_against(mode) for mode in rack.modes)


class TestShapes:
    def test_latent_rows_are_a_quarter(self):
        """NCCL #2103: 1024 of 4096 values; a bf16 row of 2,048 bytes with 22 ids and weights."""
        layout = Layout(dp=16, gpus_per_node=4)
        plan = lab.plan(layout, model="nemotron-3-super", max_tokens=256, gpu="gb200")
        assert plan.need.dispatch_bytes_per_token == 2048 + 22 * 8
        wrong = lab.plan(layout, hidden=4096, experts=512, top_k=22, max_tokens=256, gpu="gb200")
        assert wrong.need.combine_bytes_per_token == 4 * plan.need.combine_bytes_per_token

    @pytest.mark.parametrize(("form", "scales"), [("mxfp8", 2880 // 32), ("nvfp4", 2880 // 16)])
    def test_scales_of_2880_values_are_no_multiple_of_16_bytes(self, form, scales):
        (_, part) = FORMATS[form].parts(2880)
        assert part.row_bytes == scales
        plan = lab.plan(Layout(dp=4), model="gpt-oss-120b", max_tokens=64, format=form)
        assert plan.one_sided.refusal is None
        assert f"scales has {scales} bytes per row" in plan.two_sided.refusal

    def test_blocks_of_128_do_not_divide_2880(self):
        assert 2880 % 128
        with pytest.raises(Refused, match="use hidden 2944"):
            lab.plan(Layout(dp=4), model="gpt-oss-120b", max_tokens=64, format="fp8_block")

    def test_a_payload_of_four_bytes_is_refused_for_two_sided_alone(self):
        """FlashInfer #3351."""
        need = ExchangeShape(
            layout=Layout(dp=4), max_tokens=64, hidden=5120, experts=128, top_k=1, extra_payload_bytes=(4,)
        )
        assert any("needs a multiple of 16" in problem for problem in problems(need, "two_sided"))
        assert list(problems(need, "one_sided")) == []

    @pytest.mark.parametrize(("form", "row"), [("fp8", 7168), ("mxfp4", 7168 // 2 + 7168 // 32)])
    def test_formats_that_people_ask_for(self, form, row):
        """vLLM #47733."""
        exchange = Exchange(
            mode="one_sided", layout=Layout(dp=8), max_tokens=2048, hidden=7168, experts=256, top_k=8, format=form
        )
        assert dict(one_sided(exchange).parts)["dispatch"] == 8 * 2048 * (row + 64)

    def test_what_people_ask_about_is_known_and_sourced(self):
        models = ("nemotron-3-super", "deepseek-v4-pro", "deepseek-v4-flash", "qwen3-30b-a3b", "glm-5", "kimi-k3")
        assert all(MODELS[name].source for name in (*models, "minimax-m3"))
        assert all(GPUS[name].source for name in ("b300", "gb300", "h20"))


class TestLayoutsOfEngines:
    def test_tp_8_and_dp_8(self):
        """SGLang #3704: vLLM multiplies, SGLang divides."""
        multiplied = lab.read_engine("vllm", "--tensor-parallel-size 8 --data-parallel-size 8 -ep").layout
        divided = lab.read_engine("sglang", "--tp 8 --dp 8 --enable-dp-attention --moe-a2a-backend flashinfer").layout
        assert (multiplied.world_size, multiplied.ep_size) == (8 * 8, 8 * 8)
        assert (divided.world_size, divided.ep_size, divided.tp) == (8, 8, 8 // 8)

    @pytest.mark.parametrize(
        ("flags", "opens"),
        [("-tp 8 -ep", False), ("-tp 8 -dp 2 -ep", True), ("-tp 4 -pcp 2 -ep", True), ("-tp 8 -dp 2", False)],
    )
    def test_when_vllm_opens_an_all_to_all(self, flags, opens):
        """vLLM #14944: with EP, and DP > 1 or PCP > 1."""
        backend = "--all2all-backend flashinfer_nvlink_one_sided"
        assert lab.read_engine("vllm", f"{flags} {backend}").opens_all_to_all is opens

    def test_tokens_over_tp(self):
        """Without sequence parallelism each of the TP ranks sends all; with it ceil(n / TP)."""
        tokens = [7, 3, 8, 1]
        assert sp_token_counts(tokens, tp=2, sequence_parallel=False) == [n for n in tokens for _ in range(2)]
        assert sp_token_counts(tokens, tp=2, sequence_parallel=True) == [-(-n // 2) for n in tokens for _ in range(2)]

    def test_replicas_send_the_same_rows(self):
        load = Load(routing=Uniform(), tokens=(7, 7, 3, 3), replicas=2)
        choices = [load.experts_TK(rank, experts=32, top_k=4, ep_size=4) for rank in range(4)]
        assert np.array_equal(choices[0], choices[1])
        assert not np.array_equal(choices[0][:3], choices[2])

    def test_pcp_without_dp(self):
        """vLLM #54016."""
        served = lab.who_serves(lab.plan(Layout(pcp=4), model="deepseek-v3", max_tokens=64)).table.set_index("layer")
        assert served.loc["vLLM", "two_sided"] == "AssertionError: dp_metadata is not None"
        assert served.loc["vLLM", "one_sided"] == "yes"


# The page: every line is run


def blocks_of(page):
    """Language and text of each fenced block, in order."""
    return re.findall(r"^```(\w+)\n(.*?)^```", page, re.DOTALL | re.MULTILINE)


BLOCKS = blocks_of(PAGE)


def console_lines():
    """Command, and the lines that its output must hold."""
    for language, text in BLOCKS:
        if language == "console":
            for part in re.split(r"^\$ ", text, flags=re.MULTILINE)[1:]:
                command, *due = part.strip().splitlines()
                yield pytest.param(command, due, id=command[len("python -m mnnvl_lab ") :][:60])


@pytest.mark.parametrize(("command", "due"), list(console_lines()))
def test_a_command_of_the_page_says_what_stands_there(command, due, capsys):
    *python, name = shlex.split(command)[:4]
    assert python == ["python", "-m", "mnnvl_lab"]
    words = shlex.split(command)[3:]
    if name == "sweep":  # starts ranks: the points are made, not measured
        (parser,) = parsers_of(sweep_command)
        assert list(sweep_command.sweep_of(parser.parse_args(words[1:])).points())
        return
    assert due
    with contextlib.suppress(SystemExit):
        main(words)
    said = "".join(capsys.readouterr())
    for line in due:
        assert line in said


def python_blocks():
    """Each block of Python with the text that follows it, if any."""
    for (language, text), (follower, due) in zip(BLOCKS, [*BLOCKS[1:], ("", "")], strict=True):
        if language == "python" and "lab.Ranks(" not in text:
            yield pytest.param(text, due.splitlines() if follower == "text" else [], id=text.strip()[:50])


@pytest.mark.parametrize(("code", "due"), list(python_blocks()))
def test_python_of_the_page_says_what_stands_there(code, due, host_ranks, capsys):
    if "vllm." in code and find_vllm() is None:
        pytest.skip("vLLM's files are not at hand")
    if "ranks." in code:
        host_ranks.use(Layout(dp=4))
    raised = ""
    try:
        exec(compile(code, "cases.md", "exec"), {"lab": lab, "ranks": host_ranks})
    except LabError as error:
        raised = str(error)
    said = capsys.readouterr().out + raised
    for line in due:
        assert line in said
    assert due or not raised


def test_the_page_has_every_known_error_with_cause_remedy_and_reports():
    rows = {line.split("`")[1]: line for line in PAGE.splitlines() if line.startswith("| `")}
    assert set(rows) == {error.said for error in KNOWN_ERRORS}
    for error in KNOWN_ERRORS:
        line = rows[error.said]
        assert f"| {error.cause} | {error.remedy} |" in line
        assert all(f"]({link})" in line for link in error.reports)


def test_every_case_has_its_report_and_its_line():
    cases = re.split(r"^## ", PAGE, flags=re.MULTILINE)[1:-1]
    assert len(cases) == 24
    for case in cases:
        title = case.splitlines()[0]
        assert "```" in case, title
        assert "https://github.com/" in case, title
        assert f"](#{anchor(title)})" in PAGE, title

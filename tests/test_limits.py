"""The kernels' limits on an exchange, at their edges, and the bytes that follow from a need."""

import pytest

from mnnvl_lab.exchange import ExchangeShape
from mnnvl_lab.layout import Layout
from mnnvl_lab.workspace.kernel_limits import problems, runtime_max_problem, runtime_max_step


def need(**changes):
    shape = {"layout": Layout(dp=4), "max_tokens": 64, "hidden": 7168, "experts": 256, "top_k": 8}
    return ExchangeShape(**(shape | changes))


@pytest.mark.parametrize("mode", ["one_sided", "two_sided", "all_to_all"])
def test_a_common_shape_breaks_nothing(mode):
    assert list(problems(need(), mode)) == []


@pytest.mark.parametrize(
    ("mode", "within", "beyond", "says"),
    [
        ("one_sided", {"top_k": 22}, {"top_k": 20}, "top_k is 20"),
        ("one_sided", {"layout": Layout(dp=64)}, {"layout": Layout(dp=65)}, "at most 64 ranks"),
        ("one_sided", {"experts": 10}, {"experts": 3, "top_k": 2}, "every rank must own an expert"),
        ("one_sided", {"eplb_stats_experts": 256}, {"eplb_stats_experts": 257}, "between 0 and experts = 256"),
        (
            "one_sided",
            {"low_precision_combine": True},
            {"low_precision_combine": True, "combine_dtype": "fp32"},
            "its result is bf16",
        ),
        ("two_sided", {"top_k": 32}, {"top_k": 33}, "at most 32"),
        ("two_sided", {"top_k": 3}, {"experts": 254}, "multiple of 4"),
        ("two_sided", {"experts": 8}, {"layout": Layout(dp=3), "experts": 256}, "divide evenly"),
        ("two_sided", {"hidden": 122_880}, {"hidden": 122_888}, "at most 245760"),
        ("two_sided", {"hidden": 7176}, {"hidden": 7172}, "multiple of 16"),
        ("two_sided", {"sm_limit": 1}, {"sm_limit": 0}, "sm_limit is 0"),
        ("all_to_all", {"combine_dtype": "fp16"}, {"combine_dtype": "fp8"}, "combine_dtype is 'fp8'"),
        ("all_to_all", {"experts": 8}, {"experts": 7}, "cannot choose more experts"),
        ("all_to_all", {"max_tokens": 1}, {"max_tokens": 0}, "max_tokens is 0"),
    ],
)
def test_each_limit_at_its_edge(mode, within, beyond, says):
    assert list(problems(need(**within), mode)) == []
    broken = list(problems(need(**beyond), mode))
    assert any(says in sentence for sentence in broken), broken


def test_bytes_of_a_token_in_either_direction():
    quantised = need(format="nvfp4", extra_payload_bytes=(4, 12))
    assert quantised.dispatch_bytes_per_token == 3584 + 448 + 4 + 12 + 8 * 4 + 8 * 4
    assert quantised.moved_row_bytes == {"rows": 3584, "scales": 448, "extra 0": 4, "extra 1": 12, "combine": 14336}
    assert need(combine_dtype="fp32").combine_bytes_per_token == 4 * 7168


MXFP8 = {"format": "mxfp8", "hidden": 2880}  # 2,880 bytes and 90 scales: 2,970 bytes per token, twice an odd number


@pytest.mark.parametrize(
    ("changes", "step"),
    [
        (MXFP8 | {"layout": Layout()}, 2),
        (MXFP8 | {"layout": Layout(dp=3)}, 2),
        (MXFP8 | {"layout": Layout(dp=4)}, 1),
        (MXFP8 | {"layout": Layout(dp=3), "hidden": 2944}, 1),
        ({"layout": Layout(), "extra_payload_bytes": (3,)}, 4),
        ({"layout": Layout(dp=2), "extra_payload_bytes": (3,)}, 2),
        ({"layout": Layout(), "format": "fp8_block", "hidden": 128}, 1),
    ],
)
def test_rounds_whose_payloads_would_begin_inside_an_element(changes, step):
    asked = need(**changes)
    assert runtime_max_step(asked) == step
    for tokens in range(1, 9):
        told = runtime_max_problem(asked, "one_sided", tokens)
        assert (told is None) == (tokens % step == 0)
        assert told is None or f"give the fullest rank a multiple of {step} tokens" in told
        assert runtime_max_problem(asked, "all_to_all", tokens) is None


@pytest.mark.parametrize("max_tokens", [1, 2])
def test_a_capacity_below_every_possible_round_is_refused_with_the_exchange(max_tokens):
    told = list(problems(need(**MXFP8, layout=Layout(dp=3), max_tokens=max_tokens), "one_sided"))
    assert ["use max_tokens 2 or more" in sentence for sentence in told] == [True][: 2 - max_tokens]

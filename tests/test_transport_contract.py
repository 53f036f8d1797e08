"""What every transport owes, whatever its mode and fabric: whole rows, each once; right sums; misuse refused."""

import pytest

from mnnvl_lab.exchange import MODES, Exchange
from mnnvl_lab.hardware import count_visible_gpus
from mnnvl_lab.layout import Layout
from mnnvl_lab.ranks import Ranks
from mnnvl_lab.routing import HotRank, Load, Uniform, Zipf
from tests import transport_helpers as on

GPUS = count_visible_gpus()
TIMEOUT_S = {"host": 60, "nvlink": 400, "shared_gpu": 400}  # on GPUs the kernels may have to be compiled first


def _gpu(fabric, needed):
    reason = f"{GPUS} NVIDIA GPUs are visible: {fabric} needs {needed}"
    return pytest.param(fabric, marks=[pytest.mark.gpu, pytest.mark.skipif(GPUS < needed, reason=reason)])


@pytest.fixture(scope="module", params=["host", _gpu("nvlink", 4), _gpu("shared_gpu", 1)])
def ranks(request):
    """Four ranks of the fabric."""
    if request.param == "host":
        yield request.getfixturevalue("host_ranks")
        return
    with Ranks(Layout(tp=2, dp=2), fabric=request.param) as warm:
        yield warm


def exchange(mode, layout, **more):
    shape = {"max_tokens": 24, "hidden": 256, "experts": 16, "top_k": 4}
    return Exchange(mode=mode, layout=layout, **shape | more)


def run(ranks, function, first, *args, **kwargs):
    ranks.use(first.layout)
    return ranks.run(function, first, *args, timeout_s=TIMEOUT_S[ranks.fabric], **kwargs)


COLLECTIVES = ("allgather_reducescatter", "all_to_all")
FEWER = {"tokens": 9}  # Triton's interpreter takes a tenth of a second per token
UNIFORM = Uniform()
SQUARE = Layout(tp=2, dp=2)
CASES = {
    "bf16": {},
    "fp16": {"format": "fp16", "combine_dtype": "fp16"},
    "fp32": {"format": "fp32", "combine_dtype": "fp32"},
    "fp8_block": {"format": "fp8_block", "hidden": 512},
    "mxfp8, fp32 sums": {"format": "mxfp8", "hidden": 512, "combine_dtype": "fp32"},
    "nvfp4": {"format": "nvfp4"},
    "two more payloads": {"extra_payload_bytes": (48, 16)},
    "six payloads": {"format": "fp8_block", "hidden": 512, "extra_payload_bytes": (32, 16)},
    "an idle rank": {"tokens": (9, 0, 24, 1)},
    "one busy rank": {"tokens": (0, 0, 7, 0)},
    "no tokens at all": {"tokens": 0},
    "top-1": {"top_k": 1},
    "top-8": {"top_k": 8, "experts": 32},
    "all experts": {"top_k": 16},
    "a hot rank": {"routing": HotRank(share=0.9, rank=1)},
    "a row of the least width": {"hidden": 8},
    "experts that do not divide": {"experts": 10, "routing": Zipf(exponent=1.2)},
    "one rank": {"layout": Layout()},  # other layouts together at the end: each change joins all ranks anew
    "two ranks": {"layout": Layout(tp=2), "tokens": (5, 24)},
    "seven experts on two ranks": {"layout": Layout(dp=2), "experts": 7, "tokens": (24, 3)},
}
ONLY_ONE_SIDED_AND_BASELINES = ("experts that do not divide", "seven experts on two ranks")


def fewer(ranks, mode):
    """Fewer tokens where each takes long."""
    return FEWER if mode == "pico" and ranks.fabric == "host" else {}


def loads(tokens=24, routing=UNIFORM):
    """Three rounds: routing changes, then who has how many tokens."""
    turned = (*tokens[1:], tokens[0]) if isinstance(tokens, tuple) else tokens // 2
    counts = (tokens, tokens, turned)
    return [Load(routing=routing, tokens=count, seed=seed) for seed, count in enumerate(counts)]


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("case", CASES)
def test_rounds_agree_with_the_oracle(ranks, mode, case):
    if mode == "two_sided" and case in ONLY_ONE_SIDED_AND_BASELINES:
        pytest.skip("two_sided refuses experts that do not divide evenly: test_checks")
    if mode in COLLECTIVES and ranks.fabric == "shared_gpu":
        pytest.skip("NCCL takes no two ranks on one GPU")
    more = dict(CASES[case])
    layout = more.pop("layout", SQUARE)
    load = fewer(ranks, mode) | {name: more.pop(name) for name in ("tokens", "routing") if name in more}
    assert run(ranks, on.rounds, exchange(mode, layout, **more), loads(**load)) == [3] * layout.world_size


@pytest.mark.parametrize("dtype", ["bf16", "fp32"])
@pytest.mark.parametrize("top_k", [4, 6, 8, 10, 12, 14, 16, 18, 22])
@pytest.mark.parametrize("mode", ["one_sided", "pico"])
def test_one_sided_adds_up_in_the_kernels_order(ranks, mode, top_k, dtype):
    """With rows that cancel: rounded to bf16, the sums of the other cases come out alike in any order."""
    asked = exchange(mode, SQUARE, experts=32, top_k=top_k, combine_dtype=dtype)
    for right, sensitive in run(ranks, on.cancelling_round, asked, loads(**fewer(ranks, mode))[0]):
        assert right
        assert sensitive > 20


@pytest.mark.parametrize("mode", MODES)
def test_calls_out_of_turn_are_refused_and_do_no_harm(ranks, mode):
    if mode in COLLECTIVES and ranks.fabric == "shared_gpu":
        pytest.skip("NCCL takes no two ranks on one GPU")
    for early, twice in run(ranks, on.misuse, exchange(mode, SQUARE), loads(**fewer(ranks, mode))[0]):
        assert early.startswith("Refused: combine called while the transport is 'idle'")
        assert twice.startswith("Refused: dispatch called while the transport is 'dispatched'")


@pytest.mark.parametrize("mode", MODES)
def test_a_handle_of_an_earlier_round_is_refused_on_all_ranks(ranks, mode):
    if mode not in ("one_sided", "two_sided") and ranks.fabric == "shared_gpu":
        pytest.skip("NCCL takes no two ranks on one GPU")
    told = {said for (said,) in run(ranks, on.stale_handles, exchange(mode, SQUARE), loads(**fewer(ranks, mode))[0])}
    assert len(told) == 1
    assert told.pop().startswith("Refused: ep_rank 1: the handle is of a round of")


@pytest.mark.parametrize(
    ("mode", "words", "phase", "passed"),
    [
        (
            "one_sided",
            "Check failed: workspace.size(0) == epSize (2 vs. 4) : workspace first dim must equal ep_size",
            "open",
            [],
        ),
        (
            "two_sided",
            "Check failed: allWorkspaces.size(0) == epSize (2 vs. 4) : allWorkspaces must have epSize elements",
            "dispatch",
            ["open", "prepare"],
        ),
        ("pico", "pico: workspace spans 2 ranks but ep_size is 4", "open", []),
    ],
)
def test_a_workspace_of_the_dp_group_is_refused_in_the_kernels_words(ranks, mode, words, phase, passed):
    wrong = exchange(mode, SQUARE, workspace_group="dp")
    for kind, message, where, went_through in run(ranks, on.over_the_wrong_group, wrong, loads()[0]):
        assert (kind, where, went_through) == ("WorkspaceMismatch", phase, passed)
        assert message.startswith(words)
        assert "spans 2 ranks (the DP group) but ep_size is 4 = DP 2 x PCP 1 x TP 2" in message


@pytest.mark.parametrize("mode", ["one_sided", "two_sided", "pico"])
def test_with_tp_1_the_dp_group_is_the_ep_group(ranks, mode):
    right = exchange(mode, Layout(dp=4), workspace_group="dp")
    assert run(ranks, on.rounds, right, loads(**fewer(ranks, mode))) == [3] * 4

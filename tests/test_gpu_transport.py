"""FlashInfer's kernels on real GPUs, beyond what the contract test asks of every transport."""

import re
from dataclasses import replace

import pytest

from mnnvl_lab.errors import Refused, SmLimitFixed, WorkspaceMismatch
from mnnvl_lab.exchange import Exchange
from mnnvl_lab.hardware import count_visible_gpus
from mnnvl_lab.layout import Layout
from mnnvl_lab.measure.point import Point
from mnnvl_lab.ranks import Ranks
from mnnvl_lab.routing import Load, Padding, Uniform
from mnnvl_lab.transport.flashinfer.small_round import EXPERTS_PER_RANK, HIDDEN, TOKENS, TOP_K
from mnnvl_lab.transport.flashinfer.upstream import LAYERS, attempt
from tests import gpu_helpers as on
from tests.transport_helpers import cancelling_round

GPUS = count_visible_gpus()
pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(GPUS == 0, reason="no NVIDIA GPU is visible: FlashInfer's kernels cannot run here"),
    pytest.mark.timeout(600),
]
needs_pair = pytest.mark.skipif(GPUS < 2, reason=f"{GPUS} GPUs are visible: moe_ep wants NVLink between two")
FIRST_S = 400  # the kernels may have to be compiled
GPU_MODES = ("one_sided", "two_sided")
WORDS = {
    "one_sided": ("workspace.size(0) == epSize", "workspace first dim must equal ep_size", "open"),
    "two_sided": ("allWorkspaces.size(0) == epSize", "allWorkspaces must have epSize elements", "dispatch"),
}


@pytest.fixture(scope="module")
def pair():
    """Two ranks: a GPU each where there are two, else both on one under MPS."""
    with Ranks(Layout(dp=2), fabric="nvlink" if GPUS > 1 else "shared_gpu") as ranks:
        yield ranks


@pytest.fixture(scope="module")
def quartet():
    """Four ranks, several a GPU where there are fewer than four."""
    with Ranks(Layout(tp=2, dp=2), fabric="nvlink" if GPUS > 3 else "shared_gpu") as ranks:
        yield ranks


@pytest.fixture
def two(pair):
    pair.use(Layout(dp=2))
    return pair


@pytest.fixture
def square(quartet):
    """TP 2 x DP 2."""
    quartet.use(Layout(tp=2, dp=2))
    return quartet


def small(mode, layout, **more):
    """The exchange of `upstream.Call`'s small round."""
    shape = {"max_tokens": TOKENS, "hidden": HIDDEN, "experts": EXPERTS_PER_RANK * layout.ep_size, "top_k": TOP_K}
    return Exchange(mode=mode, layout=layout, **shape | more)


def point(mode, *, tokens=(33, 7), experts=16, top_k=4, hidden=512, seed=0, **more):
    layout = Layout(dp=len(tokens))
    shape = {"max_tokens": max(*tokens, 1), "hidden": hidden, "experts": experts, "top_k": top_k}
    exchange = Exchange(mode=mode, layout=layout, **shape | more)
    return Point(exchange=exchange, load=Load(routing=Uniform(), tokens=tokens, seed=seed))


@pytest.mark.parametrize("top_k", [1, 2, 4, 6, 8, 10, 12, 14, 16, 18, 22])
@pytest.mark.parametrize("tokens", [(33, 7), (16, 0, 7, 16)], ids=["two addends", "up to four"])
def test_every_compiled_top_k(pair, quartet, tokens, top_k):
    ranks = pair if len(tokens) == 2 else quartet
    asked = point("one_sided", tokens=tokens, experts=32, top_k=top_k)
    ranks.use(asked.exchange.layout)
    results = ranks.run(on.checked, asked, timeout_s=FIRST_S)
    assert results == [["exact"] * 2] * len(tokens)


@pytest.mark.parametrize(
    "asked",
    [
        point("one_sided", tokens=(0, 5)),
        point("one_sided", tokens=(0, 0)),
        point("one_sided", experts=7, top_k=2),
        point("one_sided", tokens=(16, 16), experts=64, top_k=8, hidden=7168),
        point("one_sided", extra_payload_bytes=(16, 4)),
        point("one_sided", combine_dtype="fp16"),
        point("one_sided", combine_dtype="fp32"),
        point("one_sided", payload_in_workspace=True),
        point("one_sided", low_precision_combine=True),
        point("one_sided", low_precision_combine=True, payload_in_workspace=True),
        point("one_sided", enable_rank_mask=True),
        *(point("one_sided", format=name) for name in ("fp16", "fp32", "fp8_block", "mxfp8", "nvfp4")),
        point("two_sided", tokens=(0, 5)),
        point("two_sided", tokens=(0, 0)),
        point("two_sided", tokens=(900, 901), top_k=2),
        point("two_sided", top_k=3),
        point("two_sided", tokens=(16, 16), experts=64, top_k=8, hidden=7168),
        point("two_sided", combine_dtype="fp32", top_k=2),
        *(point("two_sided", format=name, hidden=2048) for name in ("fp8_block", "mxfp8", "nvfp4")),
    ],
    ids=str,
)
def test_rounds_equal_the_oracle(two, asked):
    results = two.run(on.checked, asked, timeout_s=FIRST_S)
    assert all(result == ["exact"] * 2 for result in results)  # two ranks: at most two partials, any order rounds alike


@pytest.mark.parametrize("mode", GPU_MODES)
def test_rounds_may_change_size(two, mode):
    exchange = point(mode, tokens=(64, 64)).exchange
    loads = [Load(routing=Uniform(), tokens=tokens, seed=n) for n, tokens in enumerate([(64, 1), (3, 5), (40, 64)])]
    assert two.run(on.growing, exchange, loads, timeout_s=FIRST_S) == [["exact"] * 3] * 2


def alternating(tokens_R, other_R, pairs):
    sizes = [tokens_R, other_R] * pairs
    return [Load(routing=Uniform(), tokens=tokens, seed=seed) for seed, tokens in enumerate(sizes)]


def test_batches_validated_ahead_may_change_size_where_one_rank_pulls_for_long(two):
    """The ragged pair that gives wrong sums with FlashInfer 0.7.2 alone: one rank is done at once, the other pulls."""
    exchange = point("one_sided", tokens=(4096, 4096), experts=256, top_k=8, hidden=2048).exchange
    loads = alternating((2048, 1), (1, 4096), 4)
    assert two.run(on.changing, exchange, loads, timeout_s=FIRST_S) == [[True] * 8] * 2


def test_the_living_may_change_size_without_the_masked_rank(quartet):
    quartet.use(Layout(dp=4))
    exchange = point("one_sided", tokens=(512,) * 4, experts=32, top_k=4, hidden=2048, enable_rank_mask=True).exchange
    loads = alternating((256, 1, 1, 0), (1, 512, 512, 0), 4)
    told = quartet.run(on.changing, exchange, loads, active_ranks=(0, 1, 2), timeout_s=FIRST_S)
    assert told == [[True] * 8] * 3 + [[]]


def test_an_enqueued_round_of_another_size_is_refused_until_ranks_have_met(two):
    exchange = small("one_sided", two.layout, max_tokens=TOKENS + 1)
    for said, right in two.run(on.enqueued_in_another_size, exchange, timeout_s=FIRST_S):
        assert said.startswith(f"Refused: runtime_max_tokens is {TOKENS + 1} but ranks last agreed on {TOKENS}: ")
        assert right


@pytest.mark.parametrize("mode", GPU_MODES)
def test_unchecked_ids_of_minus_1_send_a_token_to_rank_0_as_one_row(two, mode):
    """What `faults.invalid_inputs` says of them. Every token goes to both ranks; the padded one leaves rank 1 out."""
    (to_0, to_0_padded), (to_1, to_1_padded) = two.run(on.padded_ids, small(mode, two.layout), timeout_s=FIRST_S)
    assert to_0_padded == to_0 == TOKENS
    assert to_1_padded == to_1 - 1


@pytest.mark.parametrize("options", [{}, {"payload_in_workspace": True}, {"mode": "two_sided"}], ids=str)
def test_a_captured_round_replays_over_new_rows_and_routings(two, options):
    exchange = small(**{"mode": "one_sided", "layout": two.layout} | options)
    assert two.run(on.replayed, exchange, timeout_s=FIRST_S) == [[True] * 3] * 2


@pytest.mark.parametrize("mode", GPU_MODES)
@pytest.mark.parametrize("tokens", [16, 4096])
def test_memory_is_as_predicted_and_comes_back_to_the_byte(two, mode, tokens):
    exchange = small(mode, two.layout, max_tokens=tokens, hidden=7168)
    for predicted, taken, left in two.run(on.memory_taken, exchange, timeout_s=FIRST_S):
        assert taken == predicted
        assert left == 0


@pytest.mark.parametrize("mode", GPU_MODES)
def test_a_workspace_over_the_wrong_group_is_named_by_the_kernel_and_freed(square, mode):
    check, rule, phase = WORDS[mode]
    exchange = small(mode, square.layout, workspace_group="dp")
    words = f"Check failed: {check} (2 vs. 4) : {rule}"
    assert square.run(on.mismatch, exchange, timeout_s=FIRST_S) == [((words, phase, 2, 4), 0)] * 4


@pytest.mark.parametrize("mode", GPU_MODES)
def test_the_ranks_raise_the_mismatch_as_one_and_go_on(square, mode):
    wrong = small(mode, square.layout, workspace_group="dp")
    right = small(mode, square.layout)
    load = Load(routing=Uniform(), tokens=(5,) * 4)
    with pytest.raises(WorkspaceMismatch, match=r"spans 2 ranks \(the DP group\).*ep_size is 4 = DP 2 x PCP 1 x TP 2"):
        square.run(on.checked, Point(exchange=wrong, load=load), timeout_s=FIRST_S)
    assert len(square.run(on.checked, Point(exchange=right, load=load), timeout_s=FIRST_S)) == 4


@pytest.mark.parametrize("layer", ["MoeAlltoAll", "MnnvlMoe"])
def test_upstreams_classes_meet_the_wrong_group(square, layer):
    outcomes = square.run(attempt, layer=layer, group="dp", timeout_s=FIRST_S)
    assert {(o.phase, o.right) for o in outcomes} == {("open" if layer == "MoeAlltoAll" else "dispatch", None)}
    assert all("(2 vs. 4)" in outcome.words for outcome in outcomes)
    assert [outcome.right for outcome in square.run(attempt, layer=layer, group="ep", timeout_s=FIRST_S)] == [True] * 4


@needs_pair
@pytest.mark.parametrize("layer", sorted(LAYERS))
def test_upstreams_classes_on_a_pair(pair, layer):
    pair.use(Layout(tp=2))
    for outcome in pair.run(attempt, layer=layer, group="dp", timeout_s=FIRST_S):
        assert outcome.phase == ("dispatch" if layer == "MnnvlMoe" else "open")
        assert re.search(r"\b1\b.*\b2\b|\b2\b.*\b1\b", outcome.words)  # both values: 1 rank spanned, ep_size 2
    assert [outcome.right for outcome in pair.run(attempt, layer=layer, group="ep", timeout_s=FIRST_S)] == [True] * 2


@pytest.mark.parametrize(("mode", "expert_id"), [("one_sided", -1), ("two_sided", -1), ("two_sided", "E")])
def test_padding_goes_where_the_kernel_sends_it(two, mode, expert_id):
    """-1 to EP rank 0, E nowhere; results are the oracle's, and those of padding are zeros."""
    plain = point(mode, max_tokens=33, invalid_ids="as_kernel")
    padding = Padding(rows=(0, 26), expert_id=expert_id)
    padded = replace(plain, load=replace(plain.load, padding=padding))
    results = two.run(on.checked, padded, timeout_s=FIRST_S)
    assert all(each in ("exact", "bounded") for result in results for each in result)


def test_a_masked_rank_is_left_out(two):
    exchange = small("one_sided", two.layout, enable_rank_mask=True)
    (counts, right), gone = two.run(on.without_rank_1, exchange, timeout_s=FIRST_S)
    assert gone is None
    assert right
    assert counts[0] > 0
    assert counts[1] == 0


def test_load_statistics_reach_every_rank(two):
    exchange = small("one_sided", two.layout, eplb_stats_experts=3)
    assert two.run(on.statistics, exchange, timeout_s=FIRST_S) == [[[0, 1, 2], [100, 101, 102]]] * 2


def test_stale_ids_can_be_overwritten(two):
    exchange = small("one_sided", two.layout)
    for kept, stale in two.run(on.sanitized, exchange, timeout_s=FIRST_S):
        assert kept == [True, True]
        assert stale == {exchange.experts}


def test_flags_are_readable_beside_a_spinning_kernel(two):
    (right, flags, seconds), other = two.run(on.peeked, small("one_sided", two.layout), timeout_s=FIRST_S)
    assert right
    assert other[0]
    assert flags["flag_val"] == [3]  # the epoch has moved on by one with every dispatch and every combine
    assert flags["dispatch_completion_flags"] == [3, 1]
    assert seconds < on.SPIN_S  # it did not wait for the kernel


def test_fifo_heads_are_readable_beside_a_spinning_kernel(two):
    (right, flags, seconds), other = two.run(on.peeked, small("two_sided", two.layout), timeout_s=FIRST_S)
    assert right
    assert other[0]
    assert len(flags["connections"]) == len(flags["prepare_connections"]) == 2
    assert seconds < on.SPIN_S


def test_partials_outside_the_promised_place_are_refused(two):
    exchange = small("one_sided", two.layout, payload_in_workspace=True)
    with pytest.raises(Refused, match=r"payload_in_workspace promises them; write them into partials_buffer"):
        two.run(on.misplaced, exchange, timeout_s=FIRST_S)


def test_another_sm_limit_needs_new_ranks(two):
    two.run(on.checked, point("two_sided"), timeout_s=FIRST_S)
    with pytest.raises(SmLimitFixed, match="renew the ranks"):
        two.run(on.checked, point("two_sided", sm_limit=8), timeout_s=FIRST_S)
    two.kill(0)
    two.kill(1)
    assert two.run(on.checked, point("two_sided", sm_limit=8), timeout_s=FIRST_S) == [["exact"] * 2] * 2
    two.kill(0)
    two.kill(1)


@pytest.fixture(scope="module")
def eight():
    """Eight ranks, several per GPU where there are fewer than eight."""
    with Ranks(Layout(dp=8), fabric="nvlink" if GPUS > 7 else "shared_gpu") as ranks:
        yield ranks


@pytest.mark.parametrize("dtype", ["bf16", "fp32"])
@pytest.mark.parametrize("top_k", [4, 6, 8, 10, 12, 14, 16, 18, 22])
@pytest.mark.parametrize("mode", ["one_sided", "pico"])
def test_eight_ranks_add_up_in_the_kernels_order(eight, mode, top_k, dtype):
    shape = {"max_tokens": 24, "hidden": 256, "experts": 64, "top_k": top_k}
    asked = Exchange(mode=mode, layout=Layout(dp=8), combine_dtype=dtype, **shape)
    load = Load(routing=Uniform(), tokens=24, seed=0)
    for right, sensitive in eight.run(cancelling_round, asked, load, timeout_s=FIRST_S):
        assert right
        assert sensitive > 20

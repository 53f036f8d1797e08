"""Bad input is refused on all ranks together before anything is sent, and the transport works on."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from mnnvl_lab.errors import Refused
from mnnvl_lab.exchange import MODES, Batch, Exchange
from mnnvl_lab.layout import Layout
from mnnvl_lab.routing import Load, Uniform
from mnnvl_lab.transport.validation import batch_problem, check_exchange, partials_problem
from tests import transport_helpers as on
from tests.wrong_batches import BEGINNINGS, changes

LAYOUT = Layout(tp=2, dp=2)
LOAD = Load(routing=Uniform(), tokens=(6, 5, 6, 2), seed=3)


def exchange(mode, **more):
    shape = {"layout": LAYOUT, "max_tokens": 8, "hidden": 128, "experts": 16, "top_k": 4}
    return Exchange(mode=mode, **shape | more)


@pytest.mark.parametrize("mode", MODES)
def test_every_wrong_batch_is_refused_on_all_ranks_and_the_next_round_is_right(host_ranks, mode):
    host_ranks.use(LAYOUT)
    masks = mode == "one_sided"
    wrong = changes(masks=masks)
    told = host_ranks.run(on.refusals, exchange(mode, enable_rank_mask=masks), LOAD, wrong)
    for name in wrong:
        assert len({messages[name] for messages in told}) == 1, [messages[name] for messages in told]
        assert told[0][name].startswith(f"Refused: {BEGINNINGS[name]}"), told[0][name]


def test_ranks_do_not_meet_for_a_wrong_batch(host_ranks):
    """Before a round of another size, as `dispatch` does by itself."""
    host_ranks.use(LAYOUT)
    wrong = changes(masks=False)
    told = host_ranks.run(on.refusals, exchange("one_sided"), LOAD, wrong, "meet")
    for name in wrong:
        assert len({messages[name] for messages in told}) == 1, [messages[name] for messages in told]
        assert told[0][name].startswith(f"Refused: {BEGINNINGS[name]}"), told[0][name]


@pytest.mark.parametrize("mode", MODES)
def test_partials_of_another_form_are_refused_on_all_ranks(host_ranks, mode):
    host_ranks.use(LAYOUT)
    for fewer, wider, turned in host_ranks.run(on.wrong_partials, exchange(mode), LOAD):
        assert fewer.startswith("Refused: ep_rank 1: partials are [")
        assert "of float32: combine takes contiguous" in wider
        assert "non-contiguous" in turned


def test_partials_outside_the_workspace_are_refused_where_they_must_lie_in_it(host_ranks):
    host_ranks.use(LAYOUT)
    for *_, elsewhere in host_ranks.run(on.wrong_partials, exchange("one_sided", payload_in_workspace=True), LOAD):
        assert "but payload_in_workspace wants them at 0x" in elsewhere


@pytest.mark.parametrize("mode", MODES)
def test_an_exchange_that_differs_between_ranks_is_refused_on_all(host_ranks, mode):
    host_ranks.use(LAYOUT)
    for message in host_ranks.run(on.unequal_exchange, exchange(mode)):
        assert message.startswith("Refused: hidden is 128 on ep_rank 0 but 256 on ep_rank 1")


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"mode": "both_sided"}, "mode is 'both_sided': it must be one of one_sided"),
        ({"mode": "one_sided", "top_k": 3}, "top_k is 3: the one-sided kernels"),
        ({"mode": "two_sided", "experts": 18}, "experts is 18: the two-sided prepare kernel needs a multiple of 4"),
        ({"mode": "two_sided", "payload_in_workspace": True}, "payload_in_workspace asked of mode two_sided"),
        ({"mode": "all_to_all", "enable_rank_mask": True}, "enable_rank_mask asked of mode all_to_all"),
        ({"mode": "one_sided", "format": "fp8_block", "hidden": 100}, "hidden is 100"),
    ],
)
def test_an_exchange_beyond_the_kernels_is_refused(changes, says):
    with pytest.raises(Refused, match=says):
        check_exchange(exchange(**{"mode": "one_sided"} | changes))


def batch(tokens, extra):
    ids = torch.zeros(tokens, 4, dtype=torch.int32)
    payloads = (torch.zeros(tokens, 128, dtype=torch.bfloat16), torch.zeros(tokens, extra, dtype=torch.uint8))
    return Batch(payloads=payloads, experts_TK=ids, weights_TK=ids.float(), runtime_max_tokens=tokens)


@pytest.mark.parametrize(
    ("tokens", "extra", "step"), [(5, 3, 4), (6, 3, 4), (4, 3, 1), (5, 4, 1), (5, 2, 2), (6, 2, 1)]
)
def test_regions_are_packed_so_ids_need_an_aligned_end_before_them(tokens, extra, step):
    """moeA2ADispatchOp: "Misaligned payload buffer"; on one rank, 5 x 3 bytes of extra payload end at an odd byte."""
    alone = exchange("one_sided", layout=Layout(), extra_payload_bytes=(extra,))
    problem = batch_problem(alone, batch(tokens, extra), ep_rank=0)
    assert (problem is None) == (step == 1)
    assert step == 1 or f"one_sided needs a multiple of {step}, or a payload would begin inside" in problem


@pytest.mark.parametrize("partials", [None, [1.0], np.zeros((4, 128), dtype=np.float32)])
def test_what_is_no_tensor_is_no_batch_and_no_partials(partials):
    assert "partials is a" in partials_problem(partials, 4, 128, "bf16")
    assert "it must be a Batch" in batch_problem(exchange("one_sided"), partials, ep_rank=0)


def test_tensors_of_another_device_never_reach_a_kernel():
    device = torch.device("meta")
    problem = batch_problem(exchange("one_sided"), batch(4, 16), 0, device)
    assert problem.startswith("experts_TK is on cpu: this rank's transport takes tensors on meta")
    rows = torch.zeros(4, 128, dtype=torch.bfloat16)
    assert "partials is on cpu" in partials_problem(rows, 4, 128, "bf16", device)
    assert partials_problem(rows, 4, 128, "bf16", rows.device) is None


def test_a_size_that_cannot_be_packed_is_refused_with_the_exchange():
    x = exchange("one_sided", layout=Layout(dp=3), format="mxfp8", hidden=2880)
    check_exchange(x, runtime_max_tokens=4)
    with pytest.raises(
        Refused, match=r"runtime_max_tokens is 5: .* one_sided needs a multiple of 2, .* or use a multiple"
    ):
        check_exchange(x, runtime_max_tokens=5)


def test_modes_that_do_not_pack_payloads_take_them_at_any_size():
    alone = exchange("all_to_all", layout=Layout(), extra_payload_bytes=(3,))
    assert batch_problem(alone, batch(5, 3), ep_rank=0) is None


def test_the_kernels_take_six_payloads_and_no_more():
    four, five = (16,) * 3, (16,) * 4
    for extras, right in ((four, True), (five, False)):
        x = exchange("one_sided", extra_payload_bytes=extras)
        ids = torch.zeros(4, 4, dtype=torch.int32)
        payloads = tuple(torch.zeros(4, part.width, dtype=getattr(torch, part.dtype)) for part in x.payload_parts)
        whole = Batch(payloads=payloads, experts_TK=ids, weights_TK=ids.float(), runtime_max_tokens=4)
        problem = batch_problem(x, whole, ep_rank=0)
        assert (problem is None) == right
        assert right or "7 payloads with ids and weights: the kernels take at most 6" in problem


def test_load_statistics_need_the_room_that_was_reserved():
    x = exchange("one_sided", eplb_stats_experts=16)
    right = replace(batch(4, 16), payloads=batch(4, 16).payloads[:1], eplb_stats_E=torch.zeros(16, dtype=torch.int32))
    assert batch_problem(x, right, ep_rank=0) is None
    for wrong in (torch.zeros(15, dtype=torch.int32), torch.zeros(16), torch.zeros(1, 16, dtype=torch.int32)):
        assert "it must be [16] of int32" in batch_problem(x, replace(right, eplb_stats_E=wrong), ep_rank=0)
    unreserved = exchange("one_sided")
    assert "it must be [0] of int32" in batch_problem(unreserved, right, ep_rank=0)

"""Endurance rounds: right on sound transports, and every kind of wrong result is counted."""

from dataclasses import replace

import pytest
import torch

from mnnvl_lab.errors import Refused
from mnnvl_lab.exchange import Exchange
from mnnvl_lab.faults import endurance
from mnnvl_lab.faults.endurance_check import wrong_rounds
from mnnvl_lab.faults.endurance_load import KINDS, BlockTensors, Staged, Tables, routing
from mnnvl_lab.layout import Layout
from tests import ranks_helpers

CPU = torch.device("cpu")
SIZE, LIMIT = 2, 12


def exchange(mode="one_sided", *, size=SIZE, **more):
    return Exchange(mode=mode, layout=Layout(dp=size), max_tokens=24, hidden=256, experts=16 * size, top_k=4, **more)


VARIANTS = endurance.variants(exchange(size=4))


@pytest.mark.parametrize("name", VARIANTS)
def test_host_rounds_are_right(host_ranks, name):
    plan = endurance.Endurance(
        exchange=VARIANTS[name], rounds=64, graph_rounds=4, replays=4, masked="masks" in name, seed=3
    )
    host_ranks.use(Layout(dp=4))
    results = host_ranks.run(endurance.endure, plan, timeout_s=120)
    assert {result.blocks for result in results} == {4}
    assert all(not any(result.wrong.values()) for result in results), results
    assert max(result.rounds for result in results) == 64
    assert sum(result.tokens for result in results) > 64
    if "masks" not in name:
        assert {result.rounds for result in results} == {64}


def test_ranks_with_different_pasts_meet_in_a_group(host_ranks):
    """Rank 0 has seen no group but the world when it meets ranks 2 and 3, which have seen one and two."""
    host_ranks.use(Layout(dp=4))
    groups = [(1, 2), (2, 3), (0, 2, 3), (0, 1)]
    said = host_ranks.run(ranks_helpers.meet_in_turn, groups, timeout_s=30)
    assert said == [[group for group in groups if rank in group] for rank in range(4)]


def test_masks_leave_ranks_out():
    plan = endurance.Endurance(exchange=VARIANTS["one_sided masks"], rounds=1, masked=True)
    blocks = [endurance.draw_block(plan, number) for number in range(60)]
    assert 5 < sum(len(block.active) < 4 for block in blocks) < 40
    assert all(hot in (-1, *block.active) for block in blocks for hot in block.hot_G)
    assert {block.limit for block in blocks} > {1, 24}


def test_plans_that_cannot_be_drawn_are_refused():
    with pytest.raises(Refused, match="power of two"):
        endurance.Endurance(exchange=replace(exchange(), experts=24), rounds=1)
    with pytest.raises(Refused, match=r"max_tokens is 24, masked True: .* masks need enable_rank_mask"):
        endurance.Endurance(exchange=exchange(), rounds=1, masked=True)


@pytest.fixture(params=["one_sided", "two_sided"])
def received(request):
    """A block of two rounds as ep_rank 1 must receive it, and all that it is compared with."""
    x, me = exchange(request.param, format="fp8_block"), 1
    tables = Tables.of(x, CPU)
    shape = {"tokens_GR": [[5, LIMIT], [0, 7]], "hot_G": [-1, 1], "active": [0, 1], "limit": LIMIT}
    block = BlockTensors.of(**shape, ep_size=SIZE, device=CPU)
    routed = routing(x, torch.tensor([9]), block)
    staged = Staged.empty(x, 2, LIMIT, CPU)
    for index in range(2):
        start = 0
        for source in range(SIZE):
            start = source * LIMIT if x.mode == "one_sided" else start
            tokens = routed.present[index, source, :, me].nonzero()[:, 0].flip(0)
            rows = slice(start, start + len(tokens))
            for part, table in zip(staged.parts, tables.parts, strict=True):
                part[index, rows] = table[source, tokens]
            ids = routed.ids[index, source, tokens]
            own = ids // (x.experts // SIZE) == me
            staged.ids[index, rows] = ids if x.mode == "one_sided" else torch.where(own, ids, x.experts)
            staged.weights[index, rows] = routed.weights[index, source, tokens]
            staged.starts_GR[index, source], staged.counts_GR[index, source] = start, len(tokens)
            start += len(tokens)
        for token in range(shape["tokens_GR"][index][me]):
            served = [rank for rank in range(SIZE) if routed.present[index, me, token, rank]]
            staged.combined[index, token] = sum(tables.values[me, token] + rank + 1 for rank in served)
    return x, me, tables, block, routed, staged


def test_routing_is_fresh_distinct_and_in_range(received):
    x, _, _, block, routed, _ = received
    again = routing(x, torch.tensor([10]), block)
    assert (again.ids != routed.ids).any()
    for ids in (routed.ids, again.ids):
        assert ids.min() >= 0
        assert ids.max() < x.experts
        assert all(len(set(token)) == x.top_k for token in ids.flatten(0, 2).tolist())
    assert (routed.ids[1] // 16 == 1).all()  # the hot rank


def test_a_right_block_has_nothing_wrong(received):
    assert not wrong_rounds(*received).any()


def spoil_count(staged):
    staged.counts_GR[0, 1] -= 1


def spoil_token(staged):
    staged.parts[0][0, 0, 0] = (staged.parts[0][0, 0, 0].float() + 1) % 8


def spoil_row(staged):
    staged.parts[0][0, 0, 100] = 9 - staged.parts[0][0, 0, 100].float()


def spoil_scale(staged):
    staged.parts[1].view(torch.uint8)[0, 0, 3] ^= 1


def spoil_id(staged):
    staged.ids[0, 0, 2] ^= 1


def spoil_weight(staged):
    staged.weights[0, 0, 1] += 1 / 512


def spoil_sum(staged):
    staged.combined[0, 3, 77] += 1


@pytest.mark.parametrize(
    ("spoil", "kind"),
    [
        (spoil_count, "what came"),
        (spoil_token, "what came"),
        (spoil_row, "rows"),
        (spoil_scale, "rows"),
        (spoil_id, "ids"),
        (spoil_weight, "weights"),
        (spoil_sum, "sums"),
    ],
)
def test_each_kind_of_wrong_is_counted_in_its_round_alone(received, spoil, kind):
    *due, staged = received
    spoil(staged)
    wrong = wrong_rounds(*due, staged)
    assert wrong[0, KINDS.index(kind)]
    assert not wrong[1].any()


def test_stale_rows_behind_the_last_do_not_matter(received):
    *due, staged = received
    staged.parts[0][1, -1] = 7
    staged.ids[1, -1] = 5
    assert staged.starts_GR[1, -1] + staged.counts_GR[1, -1] < staged.ids.shape[1]
    assert not wrong_rounds(*due, staged).any()

"""Placements of experts: maps, EPLB against brute force and its published example, least redundancy, effects."""

from collections import Counter
from dataclasses import replace
from itertools import permutations, product

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import mnnvl_lab as lab
from mnnvl_lab.errors import Refused
from mnnvl_lab.exchange import ExchangeShape
from mnnvl_lab.layout import Layout
from mnnvl_lab.measure import Sampling, Sweep
from mnnvl_lab.measure.expert_loads import count_loads
from mnnvl_lab.measure.run import measure
from mnnvl_lab.placement import Placed, Placement, balanced, effects, least_redundant, logical_ids
from mnnvl_lab.placement.balance import packed, replicated
from mnnvl_lab.routing import Load, LogNormal, Replay, Uniform, Zipf, parse, traffic
from mnnvl_lab.workspace.kernel_limits import problems

# Maps.


def test_linear_and_round_robin_by_hand():
    linear = Placement.linear(6, 2, redundant=2)
    assert [linear.held_by(r) for r in range(2)] == [(0, 1, 2, 3), (4, 5, 0, 1)]
    dealt = Placement.round_robin(6, 2, redundant=2)
    assert [dealt.held_by(r) for r in range(2)] == [(0, 2, 4, 0), (1, 3, 5, 1)]
    assert (linear.physical, linear.redundant, linear.replicas_E.tolist()) == (8, 2, [2, 2, 1, 1, 1, 1])
    assert linear.load_R([8, 2, 1, 1, 1, 1]).tolist() == [7, 7]
    assert linear.to_frame()["replicas"].tolist() == [2, 2, 1, 1, 1, 1, 2, 2]


def test_replicas_of_an_expert_are_dealt_to_different_ranks():
    placement = Placement.of_replicas([3, 1, 1, 1], 3)
    assert placement.slots == (0, 1, 0, 2, 0, 3)
    assert all(0 in placement.held_by(rank) for rank in range(3))


def test_experts_that_do_not_divide_lie_as_the_kernel_divides_them():
    assert [len(Placement.linear(7, 3).held_by(rank)) for rank in range(3)] == [3, 2, 2]


def test_a_choice_finds_its_replica_by_token_by_position_or_nearby():
    placement = Placement.linear(4, 2, redundant=4)  # rank 0 and rank 1 hold every expert: slots e and 4 + e
    chosen = np.array([[0, 1], [2, 3], [0, 3]])
    assert placement.physical_ids(chosen, rank=0).tolist() == [[0, 1], [6, 7], [0, 3]]
    assert placement.physical_ids(chosen, rank=1).tolist() == [[4, 5], [2, 3], [4, 7]]
    assert placement.physical_ids(chosen, rank=0, first=1).tolist() == [[4, 5], [2, 3], [4, 7]]
    # vLLM: the flat index modulo the replicas, so with an even top_k a first choice always takes the first of two
    assert placement.physical_ids(chosen, rank=1, pick="by_position").tolist() == [[0, 5], [2, 7], [0, 7]]
    assert placement.physical_ids(chosen, rank=1, pick="nearest").tolist() == (chosen + 4).tolist()


@given(
    experts=st.integers(1, 12),
    ep_size=st.integers(1, 4),
    redundant=st.integers(0, 8),
    pick=st.sampled_from(["by_token", "by_position", "nearest"]),
    seed=st.integers(0, 99),
)
def test_every_pick_is_a_replica_of_what_was_chosen(experts, ep_size, redundant, pick, seed):
    placement = Placement.round_robin(experts, ep_size, redundant=redundant)
    chosen = np.random.default_rng(seed).integers(0, experts, (7, 3))
    physical = placement.physical_ids(chosen, rank=ep_size - 1, pick=pick)
    assert np.array_equal(np.array(placement.slots)[physical], chosen)


def test_what_has_to_be_loaded_when_experts_move():
    before, after = Placement.linear(6, 2), Placement(name="x", experts=6, ep_size=2, slots=(0, 4, 1, 2, 4, 5, 3, 0))
    assert after.loads_from(before)["experts"].tolist() == [1, 1]  # expert 4 on rank 0, expert 0 on rank 1
    assert before.loads_from(before)["experts"].tolist() == [0, 0]


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (lambda: Placement(name="x", experts=3, ep_size=1, slots=(0, 1)), r"experts \[2\] have no slot among 2"),
        (lambda: Placement(name="x", experts=2, ep_size=1, slots=(0, 1, 2)), "expert of a slot"),
        (lambda: Placement.linear(4, 0), "ep_size is 0"),
        (lambda: Placement.linear(4, 2, redundant=-1), "redundant is -1"),
        (lambda: Placement.linear(4, 2).physical_ids([[0]], rank=0, pick="any"), "pick of a replica 'any' is not kn"),
        (lambda: balanced([1.0] * 256, 3), "256 physical experts on 3 ranks: .*use redundant 2"),
        (lambda: balanced([1.0] * 256, 3, redundant=3), "259 physical experts on 3 ranks: .*use redundant 5"),
        (lambda: balanced([-1.0, 2.0], 1), "none negative"),
        (lambda: balanced([1.0] * 8, 4, groups=4, nodes=8), None),
        (lambda: balanced([1.0] * 12, 4, groups=8, nodes=2), "12 experts in 8 groups"),
    ],
)
def test_what_cannot_be_placed_is_refused_in_words(make, says):
    if says is None:
        make()  # nodes that do not divide the groups: the global policy, as in EPLB's README
        return
    with pytest.raises(Refused, match=says):
        make()


# EPLB.


def test_the_worked_example_of_eplbs_readme():
    """Two layers of 12 experts in 4 groups, 16 slots on 2 nodes of 4 GPUs (README of deepseek-ai/EPLB)."""
    layers = [
        ([90, 132, 40, 61, 104, 165, 39, 4, 73, 56, 183, 86], [5, 6, 5, 7, 8, 4, 3, 4, 10, 9, 10, 2, 0, 1, 11, 1]),
        ([20, 107, 104, 64, 19, 197, 187, 157, 172, 86, 16, 27], [7, 10, 6, 8, 6, 11, 8, 9, 2, 4, 5, 1, 5, 0, 3, 1]),
    ]
    for loads, expected in layers:
        assert balanced(loads, 8, redundant=4, groups=4, nodes=2).slots == tuple(expected)


@given(loads=st.lists(st.integers(0, 40), min_size=1, max_size=4), extra=st.integers(0, 5))
def test_no_other_replica_counts_have_a_smaller_largest_share(loads, extra):
    load_E, slots = np.array(loads, dtype=float), len(loads) + extra
    held = replicated(load_E, slots)
    assert len(held) == slots
    counts = [n for n in product(range(1, extra + 2), repeat=len(loads)) if sum(n) == slots]
    least = min(max(load_E / np.array(n)) for n in counts)
    assert max(load_E / np.bincount(held)) == pytest.approx(least)


def best_packing(loads, packs):
    """The least heaviest pack of equal counts, over all orders."""
    room = len(loads) // packs
    return min(
        max(sum(order[pack * room : (pack + 1) * room]) for pack in range(packs)) for order in permutations(loads)
    )


@given(loads=st.lists(st.integers(0, 30), min_size=6, max_size=6), packs=st.sampled_from([1, 2, 3, 6]))
def test_packs_have_equal_counts_and_lie_between_the_best_and_its_double(loads, packs):
    found = packed(loads, packs)
    assert sorted(item for pack in found for item in pack) == list(range(6))
    assert {len(pack) for pack in found} == {6 // packs}
    heaviest = max(sum(loads[item] for item in pack) for pack in found)
    assert best_packing(loads, packs) <= heaviest <= 2 * best_packing(loads, packs)


def test_packing_is_mostly_best_on_small_cases():
    rng = np.random.default_rng(0)
    cases = [(rng.integers(1, 50, 6).tolist(), packs) for _ in range(20) for packs in (2, 3)]
    heaviest = [max(sum(loads[i] for i in pack) for pack in packed(loads, packs)) for loads, packs in cases]
    ratios = [mine / best_packing(*case) for mine, case in zip(heaviest, cases, strict=True)]
    assert np.mean(ratios) < 1.05


def test_groups_of_experts_stay_on_one_node():
    rng = np.random.default_rng(1)
    placement = balanced(rng.integers(1, 99, 16).tolist(), 4, redundant=8, groups=4, nodes=2)
    nodes_of_group = {g: {int(r) // 2 for e, r in zip(placement.slots, placement.rank_P, strict=True) if e // 4 == g}
                      for g in range(4)}  # fmt: skip
    assert all(len(nodes) == 1 for nodes in nodes_of_group.values())
    assert Counter(min(nodes) for nodes in nodes_of_group.values()) == {0: 2, 1: 2}


# Least redundancy.


@given(experts=st.integers(1, 300), ep_size=st.integers(1, 40))
def test_the_least_redundancy_is_the_first_number_that_a_layer_takes(experts, ep_size):
    table = least_redundant(experts, ep_size).set_index(["layer", "mode"])["redundant"]
    more = range(10**4)
    assert table["FlashInfer kernel", "one_sided"] == next(n for n in more if experts + n >= ep_size)
    even = next(n for n in more if experts + n >= ep_size and (experts + n) % ep_size == 0)
    assert table["flashinfer.moe_ep", "one_sided"] == table["SGLang 0.5.23", "one_sided"] == even
    fours = next(n for n in more if n >= even and (experts + n) % ep_size == 0 and (experts + n) % 4 == 0)
    assert table["FlashInfer kernel", "two_sided"] == table["vLLM 0.33", "two_sided"] == fours


def test_256_experts_on_three_ranks_need_2_or_8_and_the_refusal_says_so():
    """vllm#52435."""
    table = least_redundant(256, 3).set_index(["layer", "mode"])["redundant"]
    assert (table["vLLM 0.33", "one_sided"], table["vLLM 0.33", "two_sided"]) == (2, 8)
    need = ExchangeShape(layout=Layout(dp=3), max_tokens=8, hidden=7168, experts=256, top_k=6)
    assert list(problems(need, "two_sided")) == [
        "experts is 256 and ep_size 3: two_sided needs experts to divide evenly; add 8 redundant experts (264 in all), "
        "or use one_sided"
    ]
    assert list(problems(replace(need, experts=264), "two_sided")) == []
    assert len(list(problems(replace(need, experts=258), "two_sided"))) == 1


def test_who_serves_says_how_many_redundant_experts_would_do():
    def words(dp):
        return str(lab.who_serves(lab.plan(Layout(dp=dp), model="deepseek-v3", max_tokens=8, gpu="h100")))

    assert "2 redundant experts, 258 in all, are the least that every layer of one_sided takes" in words(3)
    assert "8 redundant experts, 264 in all, are the least that every layer of two_sided takes" in words(3)
    assert "redundant" not in words(8)


# Placed routings.


def placed(routing="zipf:1.2", redundant=0, **more):
    return Placed(routing=parse(routing), placement=Placement.round_robin(16, 4, redundant=redundant), **more)


def test_a_placed_routing_sends_the_same_choices_elsewhere():
    load = Load(routing=placed(redundant=8), tokens=600)
    shape = {"top_k": 2, "ep_size": 4}
    logical = Load(routing=Zipf(exponent=1.2), tokens=600).experts_TK(1, experts=16, **shape)
    physical = load.experts_TK(1, experts=24, **shape)
    assert np.array_equal(np.array(load.routing.placement.slots)[physical], logical)
    assert np.array_equal(logical_ids(load, 1, experts=24, **shape), logical)
    short = replace(load, tokens=5).experts_TK(1, experts=24, **shape)
    assert np.array_equal(short, physical[:5])


def test_a_placed_routing_has_a_label_that_no_record_takes_for_another():
    labels = {str(placed()), str(placed("uniform")), str(placed(redundant=4)), str(placed(pick="nearest"))}
    assert len(labels) == 4
    with pytest.raises(Refused, match="is more than its label; pass Placed"):
        parse(str(placed()))
    with pytest.raises(Refused, match="asked for 32 experts on 4 ranks but the placement round_robin"):
        Load(routing=placed(), tokens=1).experts_TK(0, experts=32, top_k=2, ep_size=4)


def trace(seed):
    """Recorded choices of 512 tokens, popular experts first, as a router's trace has them."""
    return Load(routing=LogNormal(sigma=1.0), tokens=512, seed=seed).experts_TK(0, experts=64, top_k=4, ep_size=1)


@pytest.mark.parametrize("routing", ["zipf:1.2", "log_normal:1", Replay(trace(5))])
def test_a_balanced_placement_evens_the_experts_work_out_and_sends_each_token_as_often(routing):
    shape, load = {"top_k": 4, "ep_size": 8}, Load(routing=parse(routing), tokens=256)
    copies_E = traffic.copies_E(load, experts=64, **shape)
    before, after = Placement.linear(64, 8), balanced(copies_E, 8, redundant=16)
    busiest = {}
    for placement in (before, after):
        sent = Load(routing=Placed(routing=load.routing, placement=placement), tokens=256)
        copies_R = traffic.copies_RR(sent, experts=placement.physical, **shape).sum(axis=0)
        assert copies_R.sum() == copies_E.sum() == 8 * 256 * 4
        busiest[placement.name] = copies_R.max() / copies_R.mean()
        assert placement.load_R(copies_E).sum() == pytest.approx(copies_E.sum())
    assert busiest["balanced"] < 1.1 < busiest["linear"]
    assert max(after.load_R(copies_E)) < max(before.load_R(copies_E))


def test_effects_are_those_of_the_traffic_and_memory_counted_apart():
    layout, model = Layout(dp=8), lab.require_model("deepseek-v3")
    before = Placement.linear(256, 8)
    table = effects([before, Placement.linear(256, 8, redundant=32)], routing="zipf:1.2", tokens=32, layout=layout,
                    model=model)  # fmt: skip
    rows_RR = traffic.rows_RR(Load(routing=Zipf(exponent=1.2), tokens=32), experts=256, top_k=8, ep_size=8)
    wire_RR = rows_RR - np.diag(np.diag(rows_RR))
    fullest = max(wire_RR.sum(axis=0).max(), wire_RR.sum(axis=1).max())
    assert table["rows"][0] == rows_RR.sum()
    assert table["fullest_bytes"][0] == fullest * (2 * 7168 + 8 * 8)
    # 32 replicas on 8 ranks: 4 a layer and rank, 58 layers, three matrices of 7168 x 2048, a byte each
    assert table["replica_bytes"].tolist() == [0, 4 * 58 * 3 * 7168 * 2048]
    assert (table["bound_us"] <= table["low_us"]).all()
    assert (table["low_us"] <= table["predicted_us"]).all()


# Count, decide, move, measure again.

QUICK = Sampling(warmup=0, min_samples=1, max_samples=1, budget_s=0.0)
SMALL = {"layouts": Layout(dp=2, tp=2), "tokens": 64, "hidden": 64, "top_k": 2, "sampling": QUICK}


def test_the_statistics_that_travel_with_dispatch_are_the_loads(host_ranks):
    (point,) = Sweep(**SMALL, experts=16, routings="zipf:1.2", modes="one_sided").points()
    counted_RE = count_loads(point, host_ranks)
    shape = {"experts": 16, "top_k": 2, "ep_size": 4}
    assert counted_RE.sum(axis=0).tolist() == traffic.copies_E(point.load, **shape).tolist()
    moved = Placed(routing=point.load.routing, placement=balanced(counted_RE.sum(axis=0), 4, redundant=4))
    (after,) = Sweep(**SMALL, experts=20, routings=moved, modes="one_sided").points()
    assert np.array_equal(count_loads(after, host_ranks), counted_RE)


def test_placed_rounds_are_exact_in_both_modes(host_ranks):
    for point in Sweep(**SMALL, experts=24, routings=placed(redundant=8)).points():
        table = measure(point, host_ranks)
        assert table["checked"].isin(["exact"]).all()
        assert table["routing"].str.startswith("placed:zipf:1.2@round_robin.").all()


def test_only_one_sided_carries_statistics():
    (point,) = Sweep(**SMALL, experts=16, routings=Uniform(), modes="two_sided").points()
    with pytest.raises(Refused, match="mode two_sided carries no statistics"):
        count_loads(point, None)

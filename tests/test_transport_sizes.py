"""Rounds whose size changes: ranks meet before rows reach memory that a slow rank may still read."""

import pytest

from mnnvl_lab.exchange import Exchange
from mnnvl_lab.faults import hangs
from mnnvl_lab.layout import Layout
from mnnvl_lab.routing import Load, Uniform
from tests import transport_helpers as on

LAYOUT = Layout(dp=4)
CHANGING, CONSTANT = (2, 12, 2, 12), (12, 12, 12, 12)


def exchange(**more):
    shape = {"layout": LAYOUT, "max_tokens": 12, "hidden": 64, "experts": 16, "top_k": 4}
    return Exchange(mode="one_sided", **shape | more)


def loads(sizes):
    return [Load(routing=Uniform(), tokens=tokens, seed=seed) for seed, tokens in enumerate(sizes)]


@pytest.fixture
def four(host_ranks):
    host_ranks.use(LAYOUT)
    return host_ranks


@pytest.mark.parametrize("sizes", [CHANGING, CONSTANT])
@pytest.mark.parametrize("slow", [0, 2])
def test_the_living_wait_for_a_slow_pull_before_a_round_of_another_size(four, sizes, slow):
    masked = {"active_ranks": (0, 1, 2), "slow": slow, "pause_s": 0.1}
    assert four.run(on.slow_pulls, exchange(enable_rank_mask=True), loads(sizes), **masked) == [4, 4, 4, 0]


@pytest.mark.parametrize("sizes", [CHANGING, CONSTANT])
def test_batches_validated_ahead_may_change_the_size(four, sizes):
    assert four.run(on.slow_pulls, exchange(), loads(sizes * 5), slow=3, pause_s=0.03, ahead=True) == [20] * 4


@pytest.mark.parametrize(
    ("options", "made"),
    [
        ({"ahead": True}, [0, 1, 0, 1]),
        ({}, [1, 2, 1, 2]),  # `dispatch` admits the batch
        ({"active_ranks": (0, 1, 2)}, [1, 1, 0, 1]),  # nobody has agreed on a size before the first round
    ],
)
def test_only_a_change_of_size_costs_a_meeting(four, options, made):
    masked = "active_ranks" in options
    counted = four.run(on.collectives, exchange(enable_rank_mask=masked), loads((2, 12, 12, 2)), **options)
    assert counted == [made] * 3 + [[] if masked else made]


@pytest.mark.parametrize("mode", ["two_sided", "all_to_all", "allgather_reducescatter"])
def test_modes_whose_memory_does_not_move_with_the_size_meet_for_nothing(four, mode):
    x = Exchange(mode=mode, layout=LAYOUT, max_tokens=12, hidden=64, experts=16, top_k=4)
    assert four.run(on.collectives, x, loads((2, 12, 2)), ahead=True) == [[0, 0, 0]] * 4


def test_a_phase_that_cannot_wait_refuses_another_size_until_ranks_have_met(four):
    for said in four.run(on.enqueued_sizes, exchange(), loads((2, 12, 12, 2))):
        went = [message == "went through" for message in said]
        assert went == [True, True, False, True, True, True, False, True]
        assert said[2].startswith("Refused: runtime_max_tokens is 12 but ranks last agreed on 2: ")
        assert "call meet(batch) on all active ranks first" in said[2]


def test_ranks_that_bring_different_validated_batches_are_told(four):
    told = four.run(on.different_validated_sizes, exchange(), loads((2, 12, 5)), odd=1)
    assert told == [told[0]] * 4
    assert told[0].startswith("Refused: runtime_max_tokens is 12 on ep_rank 0 but 5 on ep_rank 1: ")


def test_the_living_change_the_size_although_a_rank_is_dead(four):
    points = [hangs.small_point(LAYOUT, tokens=tokens, enable_rank_mask=True) for tokens in (5, 9, 16, 1)]
    four.run(hangs.open_and_keep, points[0])
    four.kill(3)
    for point in points:
        latencies_us = four.run(hangs.live_on, point, (0, 1, 2), only=(0, 1, 2))
        assert [len(latencies) for latencies in latencies_us] == [3] * 3
    four.renew()

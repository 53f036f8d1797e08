"""Host transports under random delays; and broken ones, which must be caught, or these tests could not see a race."""

from itertools import chain

import pytest

from mnnvl_lab.faults.broken_protocols import VARIANTS
from mnnvl_lab.faults.races import challenge, stress
from mnnvl_lab.layout import Layout

NAMES = [variant.name for variant in VARIANTS]
ROUNDS = 12


@pytest.fixture
def ranks(host_ranks):
    host_ranks.use(Layout(dp=3))
    return host_ranks


@pytest.mark.parametrize("name", NAMES)
def test_a_broken_variant_is_caught_and_the_sound_one_passes(ranks, name):
    wrong = ranks.run(challenge, name)
    assert any(wrong), f"{name} went unnoticed"
    assert ranks.run(challenge, name, sound=True) == [[]] * 3


def test_what_each_variant_does_is_what_its_exercise_says(ranks):
    words = {name: "\n".join(chain(*ranks.run(challenge, name))) for name in NAMES[:5]}
    assert "got tokens" in words["FlagBeforePayload"]
    assert "hang" in words["NoBarrierAfterInitialising"]
    assert "combined row" in words["CombineWithoutWaiting"]
    assert "combined row" in words["ShapesThatChangeUnmet"]
    assert all(variant.question.endswith("?") and variant.explanation for variant in VARIANTS)


@pytest.mark.parametrize("mode", ["one_sided", "two_sided"])
@pytest.mark.parametrize("size", [1, 2, 4, 7])
def test_no_row_is_wrong_however_ranks_dawdle(host_ranks, mode, size):
    """More ranks and thousands of rounds: `tools.soak delays`."""
    host_ranks.use(Layout(dp=size))
    assert host_ranks.run(stress, mode, rounds=ROUNDS, seed=size) == [ROUNDS] * size

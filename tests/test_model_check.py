"""The model checker: exact on systems whose states can be counted by hand; finds every known mistake, and no other."""

from itertools import product

import pytest

from mnnvl_lab.errors import Refused
from mnnvl_lab.model_check import (
    FIFO_MISTAKES,
    MISTAKES,
    OneSided,
    Prepare,
    Protocol,
    Round,
    Step,
    TwoSidedFifo,
    search,
)

SAME = (Round(tokens_R=(1, 1), runtime_max_tokens=1),) * 3
RAGGED = (Round(tokens_R=(2, 1), runtime_max_tokens=2), Round(tokens_R=(1, 4), runtime_max_tokens=4))


def count_up(name, steps):
    return tuple(Step(label=f"{name} {i}", act=lambda m, i=i: m.__setitem__(name, i + 1)) for i in range(steps))


def test_independent_processes_have_the_product_of_their_states():
    programs = {"p": count_up("x", 3), "q": count_up("y", 5), "r": count_up("z", 2)}
    result = search(Protocol(name="counters", programs=programs, cells={"x": 0, "y": 0, "z": 0}))
    assert (result.states, result.complete, result.violation) == (4 * 6 * 3, True, None)


def message_passing(fence):
    """One process writes data, then a flag; the other waits for the flag and reads the data."""
    writer = (
        Step(label="write data", act=lambda m: m.put("data", 1)),
        Step(label="raise flag", act=lambda m: m.put("flag", 1), fence=fence),
    )
    reader = (
        Step(label="wait", guard=lambda m: m["flag"] == 1),
        Step(label="read", act=lambda m: m.require("data", 1)),
    )
    return Protocol(name="message passing", programs={"w": writer, "r": reader}, cells={"data": 0, "flag": 0})


def test_stores_to_two_cells_may_become_visible_in_either_order_unless_a_fence_is_between():
    assert search(message_passing(fence=True)).violation is None
    wrong = search(message_passing(fence=False))
    assert wrong.violation == "data holds 0 where 1 is expected"
    assert [event.label for event in wrong.trace] == [
        "write data",
        "raise flag",
        "flag becomes visible",
        "wait",
        "read",
    ]


def test_stores_to_one_cell_stay_in_order():
    writer = tuple(Step(label=f"put {i}", act=lambda m, i=i: m.put("x", i)) for i in (1, 2))
    reader = (Step(label="wait", guard=lambda m: m["x"] == 2), Step(label="read", act=lambda m: m.require("x", 2)))
    assert search(Protocol(name="order", programs={"w": writer, "r": reader}, cells={"x": 0})).violation is None


def test_a_deadlock_is_named_with_what_each_process_waits_for():
    wait = {name: (Step(label=f"wait for {other}", guard=lambda m, o=other: m[o]),) for name, other in ("ab", "ba")}
    result = search(Protocol(name="deadlock", programs=wait, cells={"a": False, "b": False}))
    assert result.violation == "deadlock: a waits at 'wait for b'; b waits at 'wait for a'"


def test_a_search_that_meets_its_limit_says_that_it_is_not_complete():
    programs = {"p": count_up("x", 50), "q": count_up("y", 50)}
    result = search(Protocol(name="counters", programs=programs, cells={"x": 0, "y": 0}), max_states=100)
    assert not result.complete
    assert result.violation is None


def lost(mistake):
    rounds = RAGGED if mistake == "size changes unmet" else SAME
    return search(OneSided(rounds=rounds, mistake=mistake).protocol)


@pytest.mark.parametrize("mistake", MISTAKES)
def test_every_mistake_in_the_one_sided_protocol_is_found(mistake):
    result = lost(mistake)
    assert result.violation
    assert ("deadlock" in result.violation) == (mistake == "no barrier after clearing")


@pytest.mark.parametrize(
    "rounds",
    [SAME, RAGGED, RAGGED[::-1], (Round(tokens_R=(1, 1, 1), runtime_max_tokens=1),) * 2],
    ids=["same size", "growing", "shrinking", "three ranks"],
)
def test_the_sound_one_sided_protocol_has_no_wrong_interleaving(rounds):
    result = search(OneSided(rounds=rounds).protocol)
    assert (result.violation, result.complete) == (None, True)


def test_the_overwritten_region_reads_a_row_of_the_next_round_where_a_sum_is_due():
    assert "row of round 1" in lost("size changes unmet").violation
    assert "sum of round 0" in lost("size changes unmet").violation


@pytest.mark.parametrize("cure", ["barrier", "constant runtime max", "fixed combine offset"])
def test_every_cure_of_rounds_that_change_size_leaves_no_wrong_interleaving(cure):
    constant = tuple(Round(tokens_R=each.tokens_R, runtime_max_tokens=4) for each in RAGGED)
    model = {
        "barrier": OneSided(rounds=RAGGED),
        "constant runtime max": OneSided(rounds=constant, mistake="size changes unmet"),
        "fixed combine offset": OneSided(rounds=RAGGED, mistake="size changes unmet", fixed_combine_offset=True),
    }[cure]
    result = search(model.protocol)
    assert (result.violation, result.complete) == (None, True)


@pytest.mark.parametrize("mistake", FIFO_MISTAKES)
def test_every_mistake_in_the_fifo_is_found(mistake):
    assert search(TwoSidedFifo(entries=6, mistake=mistake).protocol).violation


@pytest.mark.parametrize(("entries", "depth"), list(product((1, 5, 12), (1, 2, 8))))
def test_the_sound_fifo_has_no_wrong_interleaving(entries, depth):
    assert search(TwoSidedFifo(entries=entries, depth=depth).protocol).complete


def test_a_fifo_that_is_never_full_goes_unnoticed_up_to_its_depth():
    assert search(TwoSidedFifo(entries=8, depth=8, mistake="never full").protocol).violation is None
    assert search(TwoSidedFifo(entries=9, depth=8, mistake="never full").protocol).violation


@pytest.mark.parametrize("packets", range(1, 13))
def test_prepare_loses_a_step_exactly_where_the_last_step_is_full(packets):
    result = search(Prepare(packets=(packets, packets), packets_per_step=4).protocol)
    assert bool(result.violation) == (packets % 4 == 0)


def test_the_lost_step_shows_packets_of_the_round_before():
    result = search(Prepare(packets=(2, 2)).protocol)
    assert result.violation == "packet[0] holds 'packet 0 of round 0' where 'packet 0 of round 1' is expected"
    labels = [event.label for event in result.trace]
    assert labels.index("round 0: reset head and tail") < labels.index("round 0: publish head 2")


@pytest.mark.parametrize("cure", ["fixed", "reset_between_rounds"])
@pytest.mark.parametrize("packets", [(2, 2, 2), (4, 4, 4, 2, 3), (1, 6, 0, 2, 8)])
def test_either_cure_of_prepare_leaves_no_wrong_interleaving(cure, packets):
    result = search(Prepare(packets=packets, **{cure: True}).protocol)
    assert (result.violation, result.complete) == (None, True)


def test_an_unknown_mistake_is_refused_with_the_known_ones():
    with pytest.raises(Refused, match="no fence before flag"):
        OneSided(rounds=SAME, mistake="no fence")
    with pytest.raises(Refused, match="never full"):
        TwoSidedFifo(entries=1, mistake="nevr full")

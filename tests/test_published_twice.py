"""A full last step of prepare, published twice: wrong at once where the delays are, and right where it is mended."""

import numpy as np
import pytest

from mnnvl_lab.errors import Refused
from mnnvl_lab.exchange import Exchange
from mnnvl_lab.faults.prepare_blocks import PROTOCOLS, first_weights, prepare_rounds, prepare_table
from mnnvl_lab.faults.replay import replay_one_sided, replay_prepare, steps_of
from mnnvl_lab.layout import Layout
from mnnvl_lab.measure.point import Point
from mnnvl_lab.model_check import OneSided, Prepare, Round, search
from mnnvl_lab.routing import Load, Uniform
from mnnvl_lab.workspace.two_sided import fills_last_step

BROKEN = "StepPublishedTwice"
SOUND = [name for name in PROTOCOLS if name != BROKEN]
RAGGED = (Round(tokens_R=(2, 1), runtime_max_tokens=2), Round(tokens_R=(1, 4), runtime_max_tokens=4))


@pytest.fixture
def ranks(host_ranks):
    host_ranks.use(Layout(dp=2))
    return host_ranks


def point(tokens, *, top_k=8, experts=256):
    exchange = Exchange(
        mode="two_sided", layout=Layout(dp=2), max_tokens=max(tokens, 1), hidden=64, experts=experts, top_k=top_k
    )
    return Point(exchange=exchange, load=Load(routing=Uniform(), tokens=tokens, seed=11))


@pytest.mark.parametrize(("tokens", "top_k"), [(2048, 8), (4096, 8), (2750, 6)])
def test_ids_and_weights_of_the_round_before_come_from_the_own_rank(ranks, tokens, top_k):
    blocks_R = ranks.run(prepare_rounds, point(tokens, top_k=top_k), protocol=BROKEN, rounds=4)
    own = prepare_table(blocks_R).query("sender == receiver").sort_values(["receiver", "round"])
    own["before"] = own.groupby("receiver")["rows"].shift()
    first, later = own.query("round == 0"), own.query("round > 0")
    assert not first["wrong"].any()
    assert (later["wrong"] == later["rows"]).all()
    assert (later["of_last_round"] == later[["rows", "before"]].min(axis=1)).all()
    assert (own["head"] > 0).all()
    assert own["rows_right"].all()


@pytest.mark.parametrize("protocol", SOUND)
def test_both_cures_are_right_under_the_same_delays(ranks, protocol):
    table = prepare_table(ranks.run(prepare_rounds, point(2048), protocol=protocol, rounds=4))
    assert not table["wrong"].any()
    assert table["rows_right"].all()
    assert len(table) == 4 * 2 * 2


def test_with_the_condition_mended_head_and_tail_are_0_after_each_round(ranks):
    table = prepare_table(ranks.run(prepare_rounds, point(2048), protocol="PrepareInSteps"))
    assert not table[["head", "tail"]].any(axis=None)


@pytest.mark.parametrize("tokens", [1, 1900, 2100])
def test_without_a_full_last_step_the_mistake_does_nothing(ranks, tokens):
    table = prepare_table(ranks.run(prepare_rounds, point(tokens), protocol=BROKEN))
    assert not any(fills_last_step(rows, top_k=8, experts=256) for rows in table["rows"])
    assert not table[["wrong", "head"]].any(axis=None)


def test_the_first_weights_of_a_wrong_round_are_those_that_were_due_before(ranks):
    own = first_weights(ranks.run(prepare_rounds, point(2048))[0], sender=0).set_index(["round", "row"])
    assert (own.loc[0, "received"] == own.loc[0, "due"]).all()
    assert (own.loc[1, "received"] == own.loc[0, "due"]).all()
    assert (own.loc[1, "received"] != own.loc[1, "due"]).all()


def test_a_protocol_that_does_not_exist_is_refused(ranks):
    with pytest.raises(Refused, match="StepPublishedTwiceThenReset"):
        ranks.run(prepare_rounds, point(1), protocol="PublishedTwice")


@pytest.mark.parametrize("packets", [(2, 2), (3, 2, 4), (4, 2)])
def test_the_models_counterexample_happens_between_real_processes(ranks, packets):
    model = Prepare(packets=packets)
    result = search(model.protocol)
    blocks = ranks.run(replay_prepare, model, steps_of(result))[1]
    wrong = {(block.round, int(row)) for block in blocks if block.sender == 0 for row in np.flatnonzero(block.wrong)}
    number, packet = (int(word) for word in _numbers_of(result.trace[-1].label))
    assert min(wrong) == (number, packet)
    (block,) = [each for each in blocks if (each.round, each.sender) == (number, 0)]
    assert block.of_last_round[packet] == (packet < packets[number - 1])


def _numbers_of(label):
    """Round and packet of `round 1: read packet 0`."""
    words = label.replace(":", "").split()
    return words[1], words[-1]


def test_the_same_rounds_are_right_where_the_step_is_published_once(ranks):
    model = Prepare(packets=(2, 2))
    blocks_R = ranks.run(replay_prepare, model, steps_of(search(model.protocol)), sound=True)
    assert not prepare_table(blocks_R)["wrong"].any()


def test_the_overwritten_region_happens_between_real_processes_in_the_traces_order(ranks):
    model = OneSided(rounds=RAGGED, mistake="size changes unmet")
    result = search(model.protocol)
    late = int(result.trace[-1].process.removeprefix("rank "))
    wrong = ranks.run(replay_one_sided, model, steps_of(result))
    assert wrong[late]
    assert all("combined row" in words for words in wrong[late])
    assert ranks.run(replay_one_sided, model, steps_of(result), sound=True) == [[], []]


def test_a_replay_needs_a_counterexample_and_two_ranks(host_ranks):
    with pytest.raises(Refused, match="no counterexample to replay"):
        steps_of(search(Prepare(packets=(1, 1)).protocol))
    model = Prepare(packets=(2, 2))
    host_ranks.use(Layout(dp=1))
    with pytest.raises(Refused, match="two ranks"):
        host_ranks.run(replay_prepare, model, steps_of(search(model.protocol)))

"""Batches of a server: budgets, dummy batches, drafts and replicas, held against what the words promise."""

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mnnvl_lab.errors import Refused
from mnnvl_lab.routing import Server, traffic

KINDS = ("decode", "prefill", "chunked", "mixed")
servers = st.builds(
    Server,
    dp=st.integers(1, 9),
    running=st.integers(1, 300),
    prompt=st.integers(1, 5000),
    budget=st.integers(1, 9000),
    spread=st.sampled_from([0.0, 0.5, 2.0]),
    drafts=st.integers(0, 4),
    seed=st.integers(0, 50),
)


@given(server=servers, kind=st.sampled_from(KINDS), step=st.integers(0, 5))
def test_steps_are_of_their_kind_within_the_budget_and_drawn_again_alike(server, kind, step):
    batch = getattr(server, kind)(step)
    assert batch == getattr(server, kind)(step)
    assert len(batch.tokens_D) == server.dp
    assert min(batch.tokens_D) >= 1
    if kind != "decode":
        assert max(batch.tokens_D) <= server.budget
    if kind in ("prefill", "chunked"):
        assert set(batch.decode_D) == {0}
    if kind == "decode":
        assert set(batch.prefill_D) == {0}
        assert all(tokens % (1 + server.drafts) == 0 for tokens in batch.decode_D)
    assert set(batch.dummy_D) == {0}


def test_without_spread_numbers_are_those_given():
    server = Server(dp=2, running=7, prompt=100, budget=350, spread=0, drafts=2)
    assert server.decode().tokens_D == (21, 21)
    assert server.prefill().tokens_D == (300, 300)  # three whole prompts; a fourth would be 400
    assert server.chunked().tokens_D == (350, 350)
    assert server.chunked(waiting=2).tokens_D == (200, 200)
    mixed = server.mixed(waiting=9)
    assert (mixed.decode_D, mixed.prefill_D) == ((21, 21), (329, 329))
    assert replace(server, prompt=1000).prefill().tokens_D == (350, 350)  # longer than the budget: its first chunk


def test_medians_and_spread_are_those_asked_for():
    requests = Server(dp=4096 // 4, running=64, spread=0.5).decode().decode_D
    assert np.median(requests) == pytest.approx(64, rel=0.1)
    assert np.std(np.log(requests)) == pytest.approx(0.5, rel=0.1)


@given(idle=st.integers(0, 6), dummy=st.integers(0, 3), step=st.integers(0, 9))
def test_idle_ranks_run_a_dummy_batch_and_nothing_else(idle, dummy, step):
    batch = Server(dp=6, idle=idle, dummy=dummy).mixed(step)
    resting = [rank for rank in range(6) if not batch.prefill_D[rank] and not batch.decode_D[rank]]
    assert len(resting) == idle
    assert [batch.dummy_D[rank] for rank in range(6)] == [dummy if rank in resting else 0 for rank in range(6)]


def test_which_ranks_are_idle_changes_from_step_to_step():
    server = Server(dp=8, idle=4)
    assert len({server.decode(step).dummy_D for step in range(8)}) > 1


def test_tp_ranks_send_the_same_rows_or_their_shares():
    """Tokens 7, 3 on DP 2 x TP 2, as in vLLM's `_compute_sp_num_tokens`."""
    step = replace(Server(dp=2, spread=0).decode(), decode_D=(7, 3))
    shape = {"experts": 16, "top_k": 2, "ep_size": 4}
    whole, shares = step.load(tp=2), step.load(tp=2, sequence_parallel=True)
    assert (whole.tokens, whole.replicas) == ((7, 7, 3, 3), 2)
    assert (shares.tokens, shares.replicas) == ((4, 4, 2, 2), 1)
    rows_RR = traffic.rows_RR(whole, **shape)
    assert np.array_equal(rows_RR[0], rows_RR[1])
    assert np.array_equal(rows_RR[2], rows_RR[3])
    assert not np.array_equal(shares.experts_TK(0, **shape), shares.experts_TK(1, **shape))


def test_padding_brings_every_rank_to_the_fullest():
    step = Server(dp=4, idle=1).decode()
    padded = step.load(tp=2, pad_with=-1, invalid_ids="drop")
    assert len(set(padded.rows_R(8))) == 1
    assert padded.max_tokens == max(step.tokens_D)
    assert padded.padding.invalid_ids == "drop"
    table = step.to_frame()
    assert table.groupby("rank")["tokens"].sum().tolist() == [max(step.tokens_D)] * 4
    assert table.loc[table["part"] == "dummy", "tokens"].sum() == 1


@pytest.mark.parametrize(
    ("wrong", "says"),
    [
        ({"dp": 0}, "dp is 0"),
        ({"dp": 2, "idle": 3}, "idle is 3"),
        ({"dp": 2, "spread": -1}, "spread is -1"),
        ({"dp": 2, "budget": 0}, "budget is 0"),
        ({"dp": 2, "drafts": -1}, "drafts is -1"),
    ],
)
def test_impossible_servers_are_refused(wrong, says):
    with pytest.raises(Refused, match=says):
        Server(**wrong)

"""When FlashInfer's two-sided prepare publishes a step twice, and what the transport does about it; on the CPU."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from mnnvl_lab.errors import LabError, Refused
from mnnvl_lab.exchange import Batch, Exchange
from mnnvl_lab.layout import Layout
from mnnvl_lab.transport.flashinfer.mended import CONDITION, MENDED, mend
from mnnvl_lab.transport.flashinfer.step_guard import StepGuard, rows_to_targets
from mnnvl_lab.transport.validation import check_exchange
from mnnvl_lab.workspace.two_sided import fills_last_step, first_rows_that_fill, packets_per_step, prepare_packets
from tools.findings import two_sided_prepare as reproducer

TOP_KS = st.integers(1, 22)
EXPERTS = st.integers(1, 20_000).map(lambda n: 4 * n)


def publications(rows, top_k, experts):
    """How often the last step is published: the sender's loop of `allToAllMetadataDevice`, packet by packet."""
    per_step, unit = (16, 4) if top_k % 4 == 0 else (64, 1)
    units, published, packet, index, statistics = rows * top_k // unit, [], 0, 0, 0
    go_on = units > 0
    while go_on:
        index, statistics = index + 256, statistics + 512
        go_on = index < units or statistics < experts
        packet += 1  # finishSendPacket
        if packet == per_step:
            published.append("full")
            packet = 0 if go_on else packet
    if packet > 0:  # sendFinalize
        published.append("final")
    return published


@given(rows=st.integers(0, 9000), top_k=TOP_KS, experts=EXPERTS)
def test_the_arithmetic_is_that_of_the_sender_loop(rows, top_k, experts):
    seen = publications(rows, top_k, experts)
    steps = -(-prepare_packets(rows, top_k=top_k, experts=experts) // packets_per_step(top_k))
    twice = len(seen) == steps + 1
    assert twice == fills_last_step(rows, top_k=top_k, experts=experts)
    assert len(seen) == steps + twice


@given(top_k=TOP_KS, experts=EXPERTS)
def test_below_the_first_boundary_no_step_is_full(top_k, experts):
    first = first_rows_that_fill(top_k=top_k, experts=experts)
    assert fills_last_step(first, top_k=top_k, experts=experts)
    assert not any(fills_last_step(rows, top_k=top_k, experts=experts) for rows in range(first))


@pytest.mark.parametrize(
    ("top_k", "low", "high"), [(8, 1921, 2048), (8, 3969, 4096), (4, 3841, 4096), (6, 2689, 2730), (6, 5419, 5461)]
)
def test_the_boundaries_of_common_top_k(top_k, low, high):
    full = [rows for rows in range(low - 300, high + 300) if fills_last_step(rows, top_k=top_k, experts=256)]
    assert full == list(range(low, high + 1))


@given(rows=st.integers(0, 6000), top_k=TOP_KS, experts=st.sampled_from([64, 256, 384]))
def test_the_reproducer_knows_the_same_boundary(rows, top_k, experts):
    assert reproducer.publishes_twice(rows, top_k, experts) == fills_last_step(rows, top_k=top_k, experts=experts)


@given(st.integers(0, 60), st.sampled_from([2, 4, 8]), st.integers(1, 8), st.integers(0, 2**32 - 1))
def test_rows_are_counted_once_per_token_and_target(tokens, ep_size, top_k, seed):
    chosen = np.random.default_rng(seed).permuted(np.tile(np.arange(64), (tokens, 1)), axis=1)[:, :top_k]
    due = tuple(int((chosen // (64 // ep_size) == rank).any(axis=1).sum()) for rank in range(ep_size))
    assert rows_to_targets(torch.from_numpy(chosen.astype(np.int32)), experts=64, ep_size=ep_size) == due


class Group:
    """A group of equal ranks: what one says, all say."""

    size = 2

    def __init__(self, others=()):
        self.barriers, self.asked, self._others = 0, 0, list(others)

    def allgather(self, value, *, call=""):
        self.asked += 1
        return [value, *self._others]

    def barrier(self):
        self.barriers += 1


def batch(tokens, max_tokens=None, top_k=8):
    ids = torch.arange(top_k, dtype=torch.int32).repeat(tokens, 1)  # all experts of ep_rank 0
    weights = torch.zeros(tokens, top_k)
    return Batch(payloads=(), experts_TK=ids, weights_TK=weights, runtime_max_tokens=max_tokens or tokens)


@pytest.fixture
def words():
    return torch.zeros(2, 32, dtype=torch.int64)


def guard(words, group=None):
    exchange = Exchange(mode="two_sided", layout=Layout(dp=2), max_tokens=4096, hidden=256, experts=256, top_k=8)
    return StepGuard(exchange, words, group or Group())


def test_a_head_left_above_zero_is_set_back_after_combine_and_noted(words):
    guarded, full = guard(words), batch(2000)
    guarded.count(full)
    for _ in range(3):
        guarded.before_prepare(full)
        words[0, 0] = 2  # a step published after the receiver's reset
        assert "heads {0: 2}" in guarded.explanation()
        guarded.after_combine()
        assert not words.any()
    assert guarded.explanation() == ""
    assert guarded.lost_steps_R() == (3, 0)
    assert guarded.note().startswith("the last step of prepare is full to ep_ranks 0, and")
    assert guarded.note().endswith("set back: 3 to ep_rank 0")


def test_rounds_off_the_boundary_are_left_alone(words):
    group = Group()
    guarded = guard(words, group)
    for tokens in (1, 1920, 2049, 3968):
        small = batch(tokens)
        guarded.count(small)
        guarded.before_prepare(small)
        words[:, 2] = 7  # the count is in use
        guarded.after_combine()
        guarded.before_prepare(small)  # no combine between: nothing to wait for either
        assert (words[:, 2] == 7).all()
    assert guarded.note() == ""
    assert group.barriers == 0
    assert group.asked == 2  # for the two whose size may be on the boundary


def test_a_round_that_was_not_validated_is_guarded_by_its_size(words):
    guarded = guard(words)
    guarded.before_prepare(batch(100))
    guarded.after_combine()
    assert guarded.note() == ""
    guarded.before_prepare(batch(3000))
    words[1, 0] = 3
    guarded.after_combine()
    assert guarded.lost_steps_R() == (0, 1)


def test_prepare_after_prepare_waits_for_all_ranks_where_one_of_them_is_full(words):
    group = Group(others=[True])
    guarded = guard(words, group)
    mine = batch(10, max_tokens=2000)
    guarded.count(mine)
    guarded.before_prepare(mine)
    words[1, 0] = 2
    assert group.barriers == 0
    guarded.before_prepare(mine)
    assert group.barriers == 2
    assert not words.any()


def test_only_two_sided_takes_the_mended_prepare():
    shape = {"layout": Layout(dp=2), "max_tokens": 8, "hidden": 256, "experts": 16, "top_k": 4}
    check_exchange(Exchange(mode="two_sided", mended_prepare=True, **shape))
    with pytest.raises(Refused, match="mended_prepare asked of mode one_sided"):
        check_exchange(Exchange(mode="one_sided", mended_prepare=True, **shape))


def test_mending_changes_one_condition_or_says_why_not():
    source = f"a\n{CONDITION}\nb\n"
    assert mend(source) == reproducer.mended(source) == f"a\n{MENDED}\nb\n"
    for other in ("a\n", source + source, mend(source)):
        with pytest.raises(LabError, match="it must be there once"):
            mend(other)
        with pytest.raises(SystemExit):
            reproducer.mended(other)

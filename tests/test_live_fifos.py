"""A two-sided round in slow motion: heads and tails as the counts of rows have them, and the figure of them."""

import numpy as np
import pandas as pd
import pytest

from mnnvl_lab.errors import Refused
from mnnvl_lab.exchange import Exchange
from mnnvl_lab.layout import Layout
from mnnvl_lab.measure import Point
from mnnvl_lab.measure.capture import received_blocks, snapshots_table, step_rounds
from mnnvl_lab.plots import fifos
from mnnvl_lab.plots.workspace import last_steps
from mnnvl_lab.routing import Load, Uniform, traffic

TOKENS, SHAPE = (200, 0, 21), {"experts": 12, "top_k": 6}
ROWS_AN_ENTRY = 16  # 128 packets of 1920 bytes, a row of 7168 bf16 numbers takes 8


def point(mode="two_sided"):
    exchange = Exchange(mode=mode, layout=Layout(dp=3), max_tokens=200, hidden=7168, **SHAPE)
    return Point(exchange=exchange, load=Load(routing=Uniform(), tokens=TOKENS, seed=1))


def test_heads_and_tails_follow_from_the_rows(host_ranks):
    host_ranks.use(Layout(dp=3))
    watched = host_ranks.run(step_rounds, point())
    rows_RR = traffic.rows_RR(point().load, ep_size=3, **SHAPE)
    out_RR, back_RR = (-(-table_RR // ROWS_AN_ENTRY) for table_RR in (rows_RR, rows_RR.T))
    assert out_RR.max() > 8  # else no sender ever waits
    table = snapshots_table(watched)
    ends = table.groupby(["sender", "receiver"])[["head", "tail"]].last()
    assert (ends["head"] == ends["tail"]).all()
    assert np.array_equal(ends["head"].to_numpy().reshape(3, 3), out_RR + back_RR)
    first = table[table["moment"] == "dispatch, turn 1: sent"]
    assert np.array_equal(first["head"].to_numpy().reshape(3, 3), np.minimum(out_RR, 8))
    assert (table["head"] - table["tail"]).between(0, 8).all()
    assert [len(tokens) for tokens in watched[2].tokens_R] == list(watched[2].counts_R) == rows_RR[:, 2].tolist()


def test_rows_lie_where_they_lay_in_slow_motion(host_ranks):
    host_ranks.use(Layout(dp=3))
    for stepped, blocks in zip(
        host_ranks.run(step_rounds, point()), host_ranks.run(received_blocks, point()), strict=True
    ):
        assert (blocks.ep_rank, blocks.counts_R) == (stepped.ep_rank, stepped.counts_R)
        assert blocks.starts_R == (0, *np.cumsum(blocks.counts_R)[:-1])
        assert all(map(np.array_equal, blocks.tokens_R, stepped.tokens_R))


def test_one_sided_rounds_have_no_turns(host_ranks):
    host_ranks.use(Layout(dp=3))
    with pytest.raises(Refused, match="one_sided on host"):
        host_ranks.run(step_rounds, point("one_sided"))


def test_an_entry_shows_the_step_that_filled_it_last():
    assert last_steps(np.array([0, 3, 12]), 8).tolist() == [
        [-1] * 8,
        [0, 1, 2, -1, -1, -1, -1, -1],
        [8, 9, 10, 11, 4, 5, 6, 7],
    ]


def test_the_figure_says_who_must_wait():
    looks = {"moment": ["a", "b"], "sender": [0, 0], "receiver": [1, 1], "head": [8, 12], "tail": [0, 11]}
    ax = fifos(pd.DataFrame(looks))
    words = {gid: [t.get_text().strip() for t in ax.texts if t.get_gid() == gid] for gid in ("step", "counters")}
    assert words["counters"] == ["head 8, tail 0: full", "head 12, tail 11"]
    assert words["step"] == ["0", "1", "2", "3", "4", "5", "6", "7", "8", "9", "10", "11", "4", "5", "6", "7"]
    assert ax.get_title(loc="left") == "FIFO from rank 0 to rank 1"
    assert fifos(pd.DataFrame(looks).assign(sender=[0, 1])).get_title(loc="left") == "FIFOs to rank 1"

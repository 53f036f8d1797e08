"""Bars per rank: every amount is drawn once, parts add up, and the fullest rank is named."""

import matplotlib as mpl
import pandas as pd
import pytest

from mnnvl_lab import plots
from mnnvl_lab.errors import Refused
from mnnvl_lab.placement import Placement, per_rank
from mnnvl_lab.routing import Load, Server, parse, traffic

mpl.use("Agg")


def bars(ax, name):
    return [bar for bar in ax.patches if bar.get_gid() == name]


def test_parts_stand_on_each_other_and_reach_the_fullest_rank():
    step = Server(dp=3, idle=1, running=40).mixed()
    ax = plots.parts(step.to_frame())
    assert [bar.get_height() for bar in bars(ax, "decode")] == list(step.decode_D)
    tops = [[bar.get_y() + bar.get_height() for bar in bars(ax, part)] for part in ("prefill", "decode", "dummy")]
    assert [max(of_rank) for of_rank in zip(*tops, strict=True)] == list(step.tokens_D)
    assert [bar.get_y() + bar.get_height() for bar in bars(ax, "padding")] == [max(step.tokens_D)] * 3


def test_parts_without_any_amount_are_left_out():
    ax = plots.parts(Server(dp=2, spread=0).decode().to_frame())
    assert {bar.get_gid() for bar in ax.patches} == {"decode"}


def test_placements_stand_beside_each_other_with_their_mean():
    placements = [Placement.linear(16, 4), Placement.round_robin(16, 4, redundant=4)]
    table = per_rank(placements, routing="zipf:1.2", tokens=32, top_k=2)
    ax = plots.per_rank(table)
    load = Load(routing=parse("zipf:1.2"), tokens=32)
    copies_R = traffic.copies_RR(load, experts=16, top_k=2, ep_size=4).sum(axis=0)
    assert [bar.get_height() for bar in bars(ax, "linear")] == copies_R.tolist()
    (mean,) = [line for line in ax.lines if line.get_gid() == "mean"]
    assert mean.get_ydata()[0] == 32 * 4 * 2 / 4
    names = [text.get_text() for text in ax.get_legend().get_texts()]
    assert names[0] == f"linear: fullest {copies_R.max() / copies_R.mean():.2f} x mean"
    assert names[1].startswith("round_robin + 4: fullest ")


def test_a_rank_that_comes_twice_is_refused():
    table = pd.DataFrame({"rank": [0, 0], "part": ["decode"] * 2, "tokens": [1, 2]})
    with pytest.raises(Refused, match="2 rows for 1 ranks: pass one row per rank and part"):
        plots.parts(table)
    with pytest.raises(Refused, match="0 rows"):
        plots.per_rank(table.head(0), y="tokens", hue="part")

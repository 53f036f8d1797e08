"""Simulated rounds: bytes are conserved, fair shares are fair, and skew costs what it must."""

import time

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import mnnvl_lab as lab
from mnnvl_lab import datasets
from mnnvl_lab.errors import Refused
from mnnvl_lab.layout import Layout
from mnnvl_lab.prediction import predicted_crossings, table_crossings
from mnnvl_lab.prediction.crossings import figure_spread
from mnnvl_lab.simulate import BYTES_PER_US, fair_rates, finish_times, simulate_round

V3 = {"model": "deepseek-v3"}
TABLE = "aiconfigurator_gb200"


@given(ranks=st.integers(2, 8), seed=st.integers(0, 100))
def test_fair_rates_fill_links_and_never_more(ranks, seed):
    """Max-min: no link carries more than it has, and each flow crosses a full link on which none is faster."""
    draw = np.random.default_rng(seed)
    active = draw.random((ranks, ranks)) < 0.7
    np.fill_diagonal(active, False)
    out_R, in_R = draw.uniform(1, 10, ranks), draw.uniform(1, 10, ranks)
    rates = fair_rates(active, out_R, in_R)
    assert (rates[~active] == 0).all()
    sent, received = rates.sum(axis=1), rates.sum(axis=0)
    assert (sent <= out_R * (1 + 1e-9)).all()
    assert (received <= in_R * (1 + 1e-9)).all()
    for source, target in np.argwhere(active):
        rate = rates[source, target]
        by_source = sent[source] >= out_R[source] * (1 - 1e-9) and rate >= rates[source].max() * (1 - 1e-9)
        by_target = received[target] >= in_R[target] * (1 - 1e-9) and rate >= rates[:, target].max() * (1 - 1e-9)
        assert by_source or by_target


@given(ranks=st.integers(2, 9), seed=st.integers(0, 50))
def test_no_flow_ends_before_its_fullest_link_allows(ranks, seed):
    bytes_RR = np.random.default_rng(seed).integers(0, 10**6, (ranks, ranks))
    rate = np.full(ranks, 100.0)
    ends = finish_times(bytes_RR, out_R=rate, in_R=rate)
    wire = bytes_RR - np.diag(np.diag(bytes_RR))
    fullest = max(wire.sum(axis=0).max(), wire.sum(axis=1).max())
    least_us = fullest / (100.0 * BYTES_PER_US)
    assert ends.max() >= least_us * (1 - 1e-9)
    assert ends.max() <= 2.5 * least_us  # two links per flow, each shared fairly
    assert (np.diag(ends) == 0).all()


def test_equal_flows_take_the_time_of_their_bytes():
    bytes_RR = np.full((8, 8), 10**6)
    rate = np.full(8, 50.0)
    assert finish_times(bytes_RR, out_R=rate, in_R=rate).max() == pytest.approx(7 * 10**6 / 50e3)


@pytest.mark.parametrize("tokens", [128, 1024, 8192])
@pytest.mark.parametrize("ep_size", [4, 8, 32])
def test_without_skew_a_simulated_round_is_the_predicted_one(ep_size, tokens):
    simulated = simulate_round(ep_size, **V3, tokens=tokens, routing="balanced", format="nvfp4")
    layout = Layout(dp=ep_size, gpus_per_node=4)
    load = {"tokens": tokens, "format": "nvfp4", "routing": "balanced"}
    predicted = lab.predict(layout, **V3, **load, gpu="gb200", mode="one_sided")["one_sided"]
    assert simulated.latency_us == pytest.approx(predicted.latency_us, rel=0.25)


def test_a_hot_rank_makes_all_others_wait():
    load = {**V3, "tokens": 256, "format": "nvfp4", "expert_us_per_row": 0.05}
    even, hot = (simulate_round(64, **load, routing=routing) for routing in ("uniform", "hot_rank:0.3:5"))
    assert hot.fullest_rank == 5
    assert hot.latency_us > 3 * even.latency_us
    experts = hot.table[hot.table["phase"] == "experts"].set_index("rank")
    assert experts.loc[5, "idle_us"] == 0
    assert experts["idle_us"].median() > 0.8 * hot.phases_us["experts"]
    assert set(hot.table["kind"]) == {"simulation"}
    assert "simulated, not measured" in str(hot)
    assert "simulated, not measured" in hot._repr_html_()


def test_one_slow_link_slows_the_whole_round():
    load = {**V3, "tokens": 1024, "routing": "balanced"}
    even, slow = simulate_round(16, **load), simulate_round(16, **load, slow_links={3: 0.5})
    assert 1.5 * even.latency_us < slow.latency_us < 2.2 * even.latency_us
    others = slow.table.query("phase == 'dispatch' and rank != 3")["end_us"]
    assert others.min() > 1.5 * even.phases_us["dispatch"]  # every rank exchanges rows with the slow one


def test_seventy_two_ranks_take_seconds():
    begin = time.perf_counter()
    found = simulate_round(72, **V3, tokens=128, routing="zipf:1.0", format="nvfp4")
    assert found.table["rank"].nunique() == 72
    assert time.perf_counter() - begin < 30


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"ep_size": 73}, "ep_size is 73: it must be at most 72"),
        ({"ep_size": 1}, "ep_size is 1"),
        ({"gpu": "h100", "ep_size": 16}, "at most 8"),
        ({"tokens": 0}, "tokens is 0"),
        ({"routing": "hot"}, "routing 'hot' is not known"),
        ({"format": "int4"}, "format 'int4' is not known"),
        ({"expert_us_per_row": -1}, "expert_us_per_row is -1"),
        ({"slow_links": {9: 0.5}}, "a rank of slow_links is 9"),
        ({"slow_links": {0: 0}}, "a fraction of slow_links is 0"),
        ({"slow_links": [0.5]}, "pass fractions by rank"),
    ],
)
def test_bad_input_is_refused(changes, message):
    given_values = {"ep_size": 8, **V3, "tokens": 8} | changes
    with pytest.raises(Refused, match=message):
        simulate_round(given_values.pop("ep_size"), **given_values)


# Where modes change places


def test_one_sided_overtakes_two_sided_where_the_table_says():
    found = table_crossings(datasets.load_published(TABLE)).set_index("ep_size")
    assert list(found.index) == [2, 4, 8, 16, 32]
    assert found.loc[[2, 4], "tokens"].tolist() == [1, 1]
    assert 20 < found.loc[8, "tokens"] < 64
    assert 64 < found.loc[32, "tokens"] < 160
    assert (found["tokens_low"] <= found["tokens"]).all()
    assert (found["tokens"] <= found["tokens_high"]).all()
    assert 0.005 < figure_spread(datasets.load_published(TABLE)) < 0.1


def test_a_table_of_one_mode_has_no_crossing():
    table = datasets.load_published(TABLE)
    with pytest.raises(Refused, match="must hold one_sided and two_sided"):
        table_crossings(table, form="fp8")


def test_predicted_crossings_hold_the_tables():
    layouts = [Layout(dp=n, gpus_per_node=4) for n in (8, 32, 64)]
    found = predicted_crossings(layouts, **V3, gpu="gb200", format="nvfp4").set_index("ep_size")
    table = table_crossings(datasets.load_published(TABLE)).set_index("ep_size")
    for size in (8, 32):
        assert found.loc[size, "tokens_low"] <= table.loc[size, "tokens"] <= found.loc[size, "tokens_high"]
    assert set(found["basis"]) == {"prediction"}


def test_on_an_h100_pair_one_sided_is_ahead_from_the_first_token():
    found = predicted_crossings([Layout(dp=2)], **V3, gpu="h100", routing="uniform")
    assert found.loc[0, "tokens_high"] == 1


@pytest.mark.parametrize(("gpu", "words"), [("b200", "choose h100, h200 or gb200"), ("h100", "spans 2 NVLink domains")])
def test_no_crossing_without_a_model(gpu, words):
    with pytest.raises(Refused, match=words):
        predicted_crossings([Layout(dp=8 if gpu == "b200" else 16)], **V3, gpu=gpu)

"""Routings against counts worked out another way, and against the laws that they promise."""

import itertools
import math
import subprocess
import sys

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from mnnvl_lab.errors import Refused
from mnnvl_lab.routing import Balanced, HotExpert, HotRank, Load, LogNormal, Replay, Uniform, Zipf, parse, traffic
from mnnvl_lab.routing.random_bits import Purpose, bits, uniform

RANDOM = (Uniform(), Zipf(exponent=1.2), LogNormal(sigma=1.5), HotExpert(share=0.4, expert=3), HotRank(share=0.6))
ALL = (*RANDOM, Balanced())


def owner_of(expert, experts, ep_size):
    """The first `experts % ep_size` ranks own one expert more: counted off, not computed."""
    sizes = [experts // ep_size + (rank < experts % ep_size) for rank in range(ep_size)]
    return next(rank for rank in range(ep_size) if expert < sum(sizes[: rank + 1]))


@st.composite
def shapes(draw):
    ep_size = draw(st.integers(1, 8))
    experts = draw(st.integers(ep_size, 30))
    top_k = draw(st.integers(1, min(experts, 12)))
    return {"experts": experts, "top_k": top_k, "ep_size": ep_size}


@pytest.mark.parametrize("routing", ALL, ids=str)
@settings(max_examples=25, deadline=None)
@given(shape=shapes(), tokens=st.integers(0, 9), more=st.integers(0, 1100), rank=st.integers(0, 7))
def test_choices_are_distinct_in_range_and_stable(routing, shape, tokens, more, rank):
    rank %= shape["ep_size"]
    if isinstance(routing, HotExpert) and routing.expert >= shape["experts"]:
        routing = HotExpert(share=routing.share)
    few = routing.experts(seed=5, rank=rank, tokens=tokens, **shape)
    assert few.shape == (tokens, shape["top_k"])
    assert few.dtype == np.int32
    assert all(len({*row} & {*range(shape["experts"])}) == shape["top_k"] for row in few.tolist())
    many = routing.experts(seed=5, rank=rank, tokens=tokens + more, **shape)
    np.testing.assert_array_equal(many[:tokens], few)


@pytest.mark.parametrize("routing", RANDOM, ids=str)
def test_seed_and_rank_change_the_choices(routing):
    def draw(seed, rank):
        return routing.experts(seed=seed, rank=rank, tokens=40, experts=32, top_k=4, ep_size=4).tolist()

    assert draw(1, 2) == draw(1, 2)
    different = [draw(1, 2), draw(2, 2), draw(1, 3)]
    assert all(a != b for a, b in itertools.combinations(different, 2))


def test_blocks_of_tokens_differ():
    chosen = Uniform().experts(seed=0, rank=0, tokens=1024, experts=64, top_k=6, ep_size=1)
    assert (chosen[:512] != chosen[512:]).any(axis=1).mean() > 0.9


def test_another_process_draws_the_same():
    code = (
        "from mnnvl_lab.routing import LogNormal; "
        "print(LogNormal().experts(seed=9, rank=3, tokens=600, experts=48, top_k=6, ep_size=4)[-5:].tolist())"
    )
    there = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    here = LogNormal().experts(seed=9, rank=3, tokens=600, experts=48, top_k=6, ep_size=4)
    assert there.strip() == str(here[-5:].tolist())


def test_streams_of_different_purposes_share_nothing():
    streams = [
        bits(50, seed=3, purpose=purpose, rank=r, block=b) for purpose in Purpose for r in (0, 1) for b in (0, 9)
    ]
    assert len(np.unique(np.concatenate(streams))) == 50 * len(streams)
    assert 0 < uniform(np.array([0], dtype=np.uint64))[0] < uniform(np.array([2**64 - 1], dtype=np.uint64))[0] < 1


def chi_square(observed, expected):
    """Standardised: about normal(0, 1) for many cells; 6 is one in a thousand million."""
    cells = len(observed)
    statistic = ((observed - expected) ** 2 / expected).sum()
    return (statistic - (cells - 1)) / math.sqrt(2 * (cells - 1))


def test_uniform_chooses_every_set_equally_often_and_in_every_order():
    chosen = Uniform().experts(seed=11, rank=0, tokens=20_000, experts=6, top_k=3, ep_size=1)
    places = {p: i for i, p in enumerate(itertools.permutations(range(6), 3))}
    observed = np.bincount([places[tuple(row)] for row in chosen.tolist()], minlength=120)
    assert abs(chi_square(observed, np.full(120, 20_000 / 120))) < 6


@pytest.mark.parametrize("routing", [Zipf(exponent=1.3), LogNormal(sigma=1.0)], ids=str)
def test_weighted_choices_follow_drawing_without_replacement(routing):
    p = routing.popularity(seed=4, experts=5)
    chosen = routing.experts(seed=4, rank=1, tokens=30_000, experts=5, top_k=3, ep_size=2)
    orders = list(itertools.permutations(range(5), 3))
    law = np.array([p[a] * p[b] / (1 - p[a]) * p[c] / (1 - p[a] - p[b]) for a, b, c in orders])
    assert law.sum() == pytest.approx(1)
    places = {order: i for i, order in enumerate(orders)}
    observed = np.bincount([places[tuple(row)] for row in chosen.tolist()], minlength=len(orders))
    often = law * 30_000 > 10
    assert abs(chi_square(observed[often], law[often] * 30_000)) < 6


def test_zipf_popularities_are_powers_in_an_order_of_the_seed():
    p = Zipf(exponent=1.5).popularity(seed=0, experts=50)
    np.testing.assert_allclose(np.sort(p)[::-1] / p.max(), [1 / n**1.5 for n in range(1, 51)], rtol=1e-12)
    assert np.argmax(p) != np.argmax(Zipf(exponent=1.5).popularity(seed=1, experts=50))


def test_log_normal_popularities_have_normal_logarithms():
    logs = np.sort(np.log(LogNormal(sigma=2.0).popularity(seed=0, experts=4000))) / 2
    logs -= logs.mean()
    cdf = np.array([0.5 * (1 + math.erf(x / math.sqrt(2))) for x in logs])
    assert np.abs(cdf - (np.arange(4000) + 0.5) / 4000).max() < 2 / math.sqrt(4000)  # Kolmogorov and Smirnov


def test_no_skew_is_uniform():
    np.testing.assert_allclose(Zipf(exponent=0).popularity(seed=3, experts=9), 1 / 9)
    np.testing.assert_allclose(LogNormal(sigma=0).popularity(seed=3, experts=9), 1 / 9)


def test_hot_expert_has_its_share_of_tokens_and_the_rest_is_even():
    load = Load(routing=HotExpert(share=0.3, expert=7), tokens=5000, seed=2)
    counts = traffic.copies_E(load, experts=32, top_k=4, ep_size=4)
    assert abs(counts[7] / 20_000 - 0.3) < 5 * math.sqrt(0.3 * 0.7 / 20_000)
    others = np.delete(counts, 7)
    assert abs(chi_square(others, np.full(31, (80_000 - counts[7]) / 31))) < 6


def test_hot_rank_has_its_share_of_choices():
    load = Load(routing=HotRank(share=0.4, rank=2), tokens=5000, seed=2)
    copies = traffic.copies_RR(load, experts=64, top_k=4, ep_size=4).sum(axis=0)
    assert abs(copies[2] / 80_000 - 0.4) < 5 * math.sqrt(0.4 * 0.6 / 80_000)
    assert np.ptp(np.delete(copies, 2)) / copies[0] < 0.05


@pytest.mark.parametrize("share", [0.0, 1.0])
def test_an_exhausted_pool_leaves_its_choices_to_the_other(share):
    shape = {"experts": 6, "top_k": 5, "ep_size": 3}
    chosen = HotRank(share=share, rank=1).experts(seed=0, rank=0, tokens=50, **shape)
    hot = ((chosen == 2) | (chosen == 3)).sum(axis=1)
    assert set(hot.tolist()) == {2 if share else 1}
    everywhere = HotExpert(share=0.0, expert=1).experts(seed=0, rank=0, tokens=9, experts=3, top_k=3, ep_size=1)
    assert np.sort(everywhere).tolist() == [[0, 1, 2]] * 9


@settings(max_examples=150, deadline=None)
@example(shape={"experts": 12, "top_k": 9, "ep_size": 5}, tokens=11)  # 3: the most that was found
@given(shape=shapes(), tokens=st.integers(1, 13))
def test_balanced_rows_are_equal_and_loads_as_even_as_they_can_be(shape, tokens):
    experts, top_k, ep_size = shape.values()
    load = Load(routing=Balanced(), tokens=tokens)
    rows = traffic.rows_RR(load, **shape)
    assert rows.sum(axis=0).tolist() == [tokens * min(top_k, ep_size)] * ep_size
    loads = traffic.copies_E(load, **shape)
    if experts % ep_size == 0:
        assert np.ptp(loads) <= 1
    elif top_k >= ep_size and experts // ep_size * top_k >= experts:
        assert np.ptp(loads) <= 3
    else:
        owners = np.array([owner_of(e, experts, ep_size) for e in range(experts)])
        assert max(np.ptp(loads[owners == rank]) for rank in range(ep_size)) <= 1


@pytest.mark.parametrize(("experts", "ep_size", "top_k"), [(7, 2, 4), (10, 4, 8), (11, 3, 6)])
def test_balanced_loads_are_equal_over_a_cycle_of_experts(experts, ep_size, top_k):
    load = Load(routing=Balanced(), tokens=experts)
    assert traffic.copies_E(load, experts=experts, top_k=top_k, ep_size=ep_size).tolist() == [top_k * ep_size] * experts


def test_replay_deals_the_table_out_to_the_ranks():
    table = np.arange(14).reshape(7, 2)
    deal = [Replay(table).experts(seed=1, rank=r, tokens=4, experts=14, top_k=2, ep_size=2) for r in (0, 1)]
    assert deal[0].tolist() == table[[0, 2, 4, 6]].tolist()
    assert deal[1].tolist() == table[[1, 3, 5, 0]].tolist()
    assert Replay(table) == Replay(table.tolist()) != Replay(table[::-1])
    assert str(Replay(table)) != str(Replay(table[::-1]))


@pytest.mark.parametrize("table", [[1, 2], [[1, 1]], [[-1, 2]], [[0.5, 1.5]], np.empty((0, 2), dtype=int)])
def test_replay_refuses_what_is_no_table(table):
    with pytest.raises(Refused, match="replay table"):
        Replay(table)


def test_replay_refuses_another_shape():
    with pytest.raises(Refused, match="top_k 2 and experts up to 5"):
        Replay([[4, 5]]).experts(seed=0, rank=0, tokens=1, experts=5, top_k=2, ep_size=1)


@pytest.mark.parametrize("routing", ALL, ids=str)
def test_label_and_back(routing):
    assert parse(str(routing)) == routing


def test_labels_in_records():
    assert [str(r) for r in (Uniform(), Zipf(exponent=2), HotRank(share=0.5))] == [
        "uniform",
        "zipf:2",
        "hot_rank:0.5:0",
    ]
    assert parse("hot_rank:0.5") == HotRank(share=0.5, rank=0)
    assert parse("zipf") == Zipf()


@given(exponent=st.floats(0, 10))
def test_labels_keep_every_bit(exponent):
    assert parse(str(Zipf(exponent=exponent))).exponent == exponent


def test_labels_in_any_case_and_without_the_underscore():
    assert parse("LogNormal:1") == parse("log_normal:1") == parse("log-normal:1")
    assert parse("hotrank:0.5") == parse("Hot_Rank:0.5") == HotRank(share=0.5)
    assert parse(Zipf(exponent=1.2)) == parse("ZIPF:1.2")


@pytest.mark.parametrize("text", [None, 3, ["uniform"], b"zipf"])
def test_what_is_no_label_is_refused(text):
    with pytest.raises(Refused, match="a name is a string"):
        parse(text)


@pytest.mark.parametrize(
    "text", ["", "uniforms", "uniform:1", "zipf:a", "zipf:1:2", "hot_rank", "hot_rank:2", "replay:ab"]
)
def test_labels_that_mean_nothing_are_refused(text):
    with pytest.raises(Refused):
        parse(text)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"top_k": 9}, "top_k is 9"),
        ({"ep_size": 9}, "ep_size is 9"),
        ({"rank": 2}, "rank is 2"),
        ({"tokens": -1}, "tokens is -1"),
        ({"seed": -1}, "seed is -1"),
    ],
)
def test_impossible_requests_are_refused(change, words):
    with pytest.raises(Refused, match=words):
        Uniform().experts(**{"seed": 0, "rank": 0, "tokens": 1, "experts": 8, "top_k": 2, "ep_size": 2} | change)


def test_hot_spots_must_exist():
    shape = {"seed": 0, "rank": 0, "tokens": 1, "experts": 8, "top_k": 2, "ep_size": 2}
    with pytest.raises(Refused, match="hot expert is 8"):
        HotExpert(share=0.5, expert=8).experts(**shape)
    with pytest.raises(Refused, match="hot rank is 2"):
        HotRank(share=0.5, rank=2).experts(**shape)


def test_tokens_of_a_load():
    ragged = Load(routing=Uniform(), tokens=(3, 0, 5))
    assert ragged.tokens_R(3) == (3, 0, 5)
    assert ragged.max_tokens == 5
    assert Load(routing=Uniform(), tokens=4).tokens_R(3) == (4, 4, 4)
    assert [len(ragged.experts_TK(r, experts=6, top_k=2, ep_size=3)) for r in range(3)] == [3, 0, 5]
    assert [len(ragged.weights_TK(r, top_k=2)) for r in range(3)] == [3, 0, 5]
    with pytest.raises(Refused, match="3 counts but ep_size is 4"):
        ragged.tokens_R(4)
    for wrong in (-1, (), (2, -1)):
        with pytest.raises(Refused, match="tokens is"):
            Load(routing=Uniform(), tokens=wrong)


def test_weights_are_normalised_and_none_is_negligible():
    load = Load(routing=Uniform(), tokens=300, seed=6)
    weights = load.weights_TK(1, top_k=8)
    assert weights.dtype == np.float32
    np.testing.assert_allclose(weights.sum(axis=1), 1, rtol=1e-6)
    assert weights.min() > 1 / 40
    np.testing.assert_array_equal(Load(routing=Uniform(), tokens=20, seed=6).weights_TK(1, top_k=8), weights[:20])
    assert (load.weights_TK(0, top_k=8) != weights).any()


@settings(max_examples=40, deadline=None)
@given(shape=shapes(), data=st.data())
def test_traffic_equals_a_count_by_hand(shape, data):
    experts, ep_size = shape["experts"], shape["ep_size"]
    tokens = tuple(data.draw(st.lists(st.integers(0, 6), min_size=ep_size, max_size=ep_size)))
    load = Load(routing=Uniform(), tokens=tokens, seed=data.draw(st.integers(0, 99)))
    rows = [[0] * ep_size for _ in range(ep_size)]
    copies = [[0] * ep_size for _ in range(ep_size)]
    for source in range(ep_size):
        for chosen in load.experts_TK(source, **shape).tolist():
            owners = [owner_of(e, experts, ep_size) for e in chosen]
            for target in range(ep_size):
                rows[source][target] += target in owners
                copies[source][target] += owners.count(target)
    assert traffic.rows_RR(load, **shape).tolist() == rows
    assert traffic.copies_RR(load, **shape).tolist() == copies
    for rank in range(ep_size):
        rows[rank][rank] = copies[rank][rank] = 0
    assert traffic.rows_RR(load, **shape, logical=False).tolist() == rows
    assert traffic.copies_RR(load, **shape, logical=False).tolist() == copies
    in_bytes = traffic.to_bytes(traffic.rows_RR(load, **shape, logical=False), bytes_per_token=14_336)
    assert in_bytes.tolist() == [[14_336 * n for n in row] for row in rows]


def test_uniform_traffic_meets_its_expectation():
    """A token reaches 8 ranks x (1 - C(224, 8) / C(256, 8)) = 5.295 ranks (peers.md, section 2c)."""
    load = Load(routing=Uniform(), tokens=4000, seed=1)
    rows = traffic.rows_RR(load, experts=256, top_k=8, ep_size=8)
    expected = 8 * (1 - math.comb(224, 8) / math.comb(256, 8))
    assert round(expected, 3) == 5.295
    assert rows.sum() / 32_000 == pytest.approx(expected, abs=0.03)

"""Bounds against what was worked out for the measured pair, and against plain recomputation."""

from math import comb

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from mnnvl_lab.bounds import LINKS, Link, combine_bound, dispatch_bound, fullest_bytes, host_bound, round_bound
from mnnvl_lab.errors import Refused
from mnnvl_lab.hardware import GPUS

PAIR = LINKS["h100_pair"]
tables = st.integers(1, 8).flatmap(lambda ranks: arrays(np.int64, (ranks, ranks), elements=st.integers(0, 10**9)))


def measured_traffic():
    """4096 tokens a rank of 14,336 bytes, EP2, top-8 of 256: a token stays at home with C(128, 8) / C(256, 8)."""
    away = 1 - comb(128, 8) / comb(256, 8)
    bytes_away = round(4096 * 14336 * away)
    return np.array([[4096 * 14336, bytes_away], [bytes_away, 4096 * 14336]])


def test_the_pair_at_4096_tokens_by_kernels():
    rows = measured_traffic()
    dispatch, combine = dispatch_bound(rows, link=PAIR), combine_bound(rows, link=PAIR)
    assert dispatch.fullest_bytes == pytest.approx(58.5e6, rel=1e-3)
    assert (round(dispatch.latency_us), round(combine.latency_us)) == (159, 174)
    assert round(round_bound(rows, rows, link=PAIR).latency_us) == 333


def test_the_pair_at_4096_tokens_by_the_copy_engine_and_on_paper():
    rows = measured_traffic()
    assert round(round_bound(rows, rows, link=PAIR, rate="copy").latency_us) == 298
    assert round_bound(rows, rows, link=PAIR, rate="nominal").latency_us == pytest.approx(2 * 58.52e6 / 450e3, rel=1e-3)


@given(table=tables)
def test_the_fullest_link_by_counting(table):
    ranks = range(len(table))
    sent = [sum(int(table[r][peer]) for peer in ranks if peer != r) for r in ranks]
    received = [sum(int(table[peer][r]) for peer in ranks if peer != r) for r in ranks]
    assert fullest_bytes(table) == max(sent + received)


@given(table=tables)
def test_direction_and_what_stays_at_home_do_not_matter(table):
    at_home = table + np.diag(np.full(len(table), 7))
    assert fullest_bytes(table) == fullest_bytes(table.T) == fullest_bytes(at_home)


def test_the_callers_table_is_left_alone():
    table = np.full((2, 2), 5)
    fullest_bytes(table)
    assert (table == 5).all()


def test_one_hot_receiver_sets_the_time():
    table = np.zeros((4, 4), dtype=int)
    table[1:, 0] = 450_000
    bound = dispatch_bound(table, link=Link.on_paper(GPUS["h100"]))
    assert bound.latency_us == pytest.approx(3.0)
    assert str(bound) == "dispatch: at least 3.0 µs for 1.4 MB (H100 SXM, nominal, kernel rate)"


def test_a_link_on_paper_has_the_gpus_rate_for_everything():
    link = Link.on_paper(GPUS["gb200"])
    rates = {link.gigabytes_per_s(phase, rate) for phase in ("dispatch", "combine") for rate in ("kernel", "copy")}
    assert rates == {900}


def test_on_the_host_all_bytes_share_one_memory():
    bound = host_bound(np.array([[1, 2], [3, 4]]) * 10**6, phase="dispatch", memory_copy_gigabytes_per_s=5)
    assert (bound.fullest_bytes, bound.latency_us) == (10**7, pytest.approx(2000))


def test_refusals():
    with pytest.raises(Refused, match=r"\(2, 3\).*\[R, R\]"):
        fullest_bytes(np.zeros((2, 3)))
    with pytest.raises(Refused, match="none negative"):
        fullest_bytes(np.array([[0, -1], [0, 0]]))
    with pytest.raises(Refused, match=r"'fast'.*kernel, copy, nominal"):
        dispatch_bound(np.ones((2, 2)), link=PAIR, rate="fast")
    with pytest.raises(Refused, match="0 GB/s"):
        host_bound(np.ones((2, 2)), phase="combine", memory_copy_gigabytes_per_s=0)

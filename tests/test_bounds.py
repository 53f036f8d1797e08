"""Bounds against what was worked out for the measured pair, and against plain recomputation."""

from math import comb

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from mnnvl_lab import datasets
from mnnvl_lab.bounds import Link, combine_bound, dispatch_bound, fullest_bytes, host_bound, round_bound
from mnnvl_lab.errors import Refused
from mnnvl_lab.hardware import GPUS
from mnnvl_lab.link_rates import NVLINK_GIGABYTES_PER_S, measured_link, nominal_link

PAIR = measured_link(datasets.load_recorded("h100x2_nvlink_links", kind="links"))
H100_PAIR = ("2 x NVIDIA H100 80GB HBM3", "NVLink x 18, 1 of 1 pairs peer to peer")
tables = st.integers(1, 8).flatmap(lambda ranks: arrays(np.int64, (ranks, ranks), elements=st.integers(0, 10**9)))


def measured_traffic():
    """4096 tokens per rank of 14,336 bytes, EP2, top-8 of 256: a token stays at home with C(128, 8) / C(256, 8)."""
    away = 1 - comb(128, 8) / comb(256, 8)
    bytes_away = round(4096 * 14336 * away)
    return np.array([[4096 * 14336, bytes_away], [bytes_away, 4096 * 14336]])


def test_the_pair_at_4096_tokens_by_kernels():
    rows = measured_traffic()
    dispatch, combine = dispatch_bound(rows, link=PAIR), combine_bound(rows, link=PAIR)
    assert dispatch.fullest_bytes == pytest.approx(58.5e6, rel=1e-3)
    assert (round(dispatch.latency_us), round(combine.latency_us)) == (164, 179)
    assert round(round_bound(rows, rows, link=PAIR).latency_us) == 344


def test_the_pair_at_4096_tokens_by_the_copy_engine_and_on_paper():
    rows = measured_traffic()
    assert round(round_bound(rows, rows, link=PAIR, rate="copy").latency_us) == 306
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
    assert str(bound) == "dispatch: at least 3.0 µs for 1.4 MB (H100 SXM, nominal: 450 GB/s)"


def test_a_link_on_paper_has_the_gpus_rate_for_everything():
    link = Link.on_paper(GPUS["gb200"])
    rates = {link.gigabytes_per_s(phase, rate) for phase in ("dispatch", "combine") for rate in ("kernel", "copy")}
    assert rates == {900}


def test_on_the_host_all_bytes_share_one_memory():
    bound = host_bound(np.array([[1, 2], [3, 4]]) * 10**6, phase="dispatch", memory_copy_gigabytes_per_s=5)
    assert (bound.fullest_bytes, bound.latency_us) == (10**7, pytest.approx(2000))


def test_the_recorded_link_is_the_median_of_its_samples():
    samples = datasets.load_recorded("h100x2_nvlink_links", kind="links").query("direction == 'both_ways'")
    latency_us = samples.groupby("quantity")["latency_us"].median()
    assert PAIR.stores_gigabytes_per_s == pytest.approx(2**28 / latency_us["kernel_stores"] / 1e3)
    assert PAIR.loads_gigabytes_per_s == pytest.approx(2**28 / latency_us["kernel_loads"] / 1e3)
    assert PAIR.nominal_gigabytes_per_s == 450


@pytest.mark.parametrize(
    ("device", "links", "rate"),
    [
        ("NVIDIA H100 80GB HBM3", 18, GPUS["h100"].nvlink_gigabytes_per_s),
        ("NVIDIA H200", 18, GPUS["h200"].nvlink_gigabytes_per_s),
        ("NVIDIA B200", 18, GPUS["b200"].nvlink_gigabytes_per_s),
        ("NVIDIA GB200", 18, GPUS["gb200"].nvlink_gigabytes_per_s),
        ("NVIDIA H100 NVL", 12, 300),
    ],
)
def test_on_paper_the_topology_gives_the_rate(device, links, rate):
    link = nominal_link(f"8 x {device}", f"NVLink x {links}, 28 of 28 pairs peer to peer")
    assert link.nominal_gigabytes_per_s == link.stores_gigabytes_per_s == rate
    assert f"{links} NVLinks" in link.name


@pytest.mark.parametrize(
    ("device", "topology"),
    [
        ("2 x NVIDIA H100 PCIe", "NVLink x 0, 0 of 1 pairs peer to peer"),
        (H100_PAIR[0], "NVLink x 18, 0 of 1 pairs peer to peer"),
        ("2 x NVIDIA H100 of tomorrow", H100_PAIR[1]),
        ("1 x NVIDIA H100 80GB HBM3 + 1 x NVIDIA H200", H100_PAIR[1]),
        (H100_PAIR[0], "one GPU"),
        ("", ""),
    ],
)
def test_without_links_or_with_unknown_ones_there_is_no_rate(device, topology):
    assert nominal_link(device, topology) is None


def test_rates_on_paper_go_by_whole_names():
    assert all(nominal_link(f"2 x {name}", H100_PAIR[1]) for name in NVLINK_GIGABYTES_PER_S)
    assert nominal_link("2 x H100", H100_PAIR[1]) is None


def test_refusals():
    with pytest.raises(Refused, match=r"\(2, 3\).*\[R, R\]"):
        fullest_bytes(np.zeros((2, 3)))
    with pytest.raises(Refused, match="none negative"):
        fullest_bytes(np.array([[0, -1], [0, 0]]))
    with pytest.raises(Refused, match=r"'fast'.*kernel, copy, nominal"):
        dispatch_bound(np.ones((2, 2)), link=PAIR, rate="fast")
    with pytest.raises(Refused, match="0 GB/s"):
        host_bound(np.ones((2, 2)), phase="combine", memory_copy_gigabytes_per_s=0)

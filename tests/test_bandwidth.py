import doctest
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from mnnvl_lab import datasets
from mnnvl_lab.analysis import bandwidth
from mnnvl_lab.errors import Refused
from mnnvl_lab.layout import expert_owner
from mnnvl_lab.routing import HotRank, Load, Uniform

PAGE = Path(__file__).resolve().parents[1] / "docs" / "bandwidth.md"


def transfer(**changes) -> bandwidth.Transfer:
    given = {
        "rows_RR": np.array([[5, 3], [1, 2]]),
        "copies_RR": np.array([[6, 4], [1, 3]]),
        "bytes_per_token": 1000,
        "top_k": 2,
        "tokens_R": (5, 2),
        "latency_us": 4.0,
    }
    return bandwidth.Transfer(**given | changes)


def test_the_page_computes_what_it_says():
    result = doctest.testfile(str(PAGE), module_relative=False, optionflags=doctest.NORMALIZE_WHITESPACE)
    assert result.attempted >= 8
    assert result.failed == 0


def test_uneven_traffic_by_hand():
    counted = bandwidth.table(transfer()).set_index("convention")["counted_bytes"].to_dict()
    assert counted == {
        "wire": 2000,  # (3 + 1) rows over 2 ranks
        "deepep": 5500,
        "collectivex": 5500,
        "deepep_low_latency": 7000,
        "nccl_bus": 2750,
        "flashinfer": 4000,
        "blog18": 7000,  # 3.5 tokens to 2 ranks
    }


def test_a_rate_is_bytes_over_time():
    rates = bandwidth.table(transfer(latency_us=2.0)).set_index("convention")["gigabytes_per_s"]
    assert rates["wire"] == pytest.approx(2000 / 2e-6 / 1e9)


def test_a_load_is_counted_token_by_token():
    load = Load(routing=HotRank(share=0.5), tokens=(7, 0, 30), seed=3)
    shape = {"experts": 12, "top_k": 4, "ep_size": 3}
    rows = copies = wire = 0
    for rank in range(3):
        for chosen in load.experts_TK(rank, **shape):
            owners = [int(o) for o in expert_owner(chosen, experts=12, ep_size=3)]
            rows, copies, wire = rows + len(set(owners)), copies + len(owners), wire + len(set(owners) - {rank})
    moved = bandwidth.Transfer.of(load, **shape, bytes_per_token=6, latency_us=1.0)
    counted = bandwidth.table(moved).set_index("convention")["counted_bytes"]
    assert counted["deepep"] == pytest.approx(rows * 6 / 3)
    assert counted["deepep_low_latency"] == pytest.approx(copies * 6 / 3)
    assert counted["flashinfer"] == pytest.approx(wire * 6)


def test_collectivex_figures_follow_from_their_latencies():
    """DeepEP V2 on H100: 6 of 384 experts, uniform; the routing is another, the traffic of 4096 tokens nearly equal."""
    table = datasets.load_published("collectivex_h100").query(
        "library == 'DeepEP V2' and format == 'bf16' and tokens == 4096 and percentile == 'p50' and phase != 'round'"
    )
    figures = table.pivot_table(index="phase", columns="quantity", values="value")
    load = Load(routing=Uniform(), tokens=4096)
    moved = bandwidth.Transfer.of(load, experts=384, top_k=6, ep_size=8, bytes_per_token=7168 * 2, latency_us=1.0)
    for _, figure in figures.iterrows():
        ours = bandwidth.CONVENTIONS["collectivex"].gigabytes_per_s(replace(moved, latency_us=figure["latency"]))
        assert ours == pytest.approx(figure["bandwidth"], rel=0.005)


def test_published_conventions_are_known():
    names = {
        c
        for name in datasets.load_published()["name"]
        for c in datasets.load_published(name)["bandwidth_convention"]
        if c
    }
    assert names - set(bandwidth.CONVENTIONS) == {"algorithm"}  # Hybrid-EP does not say more


@pytest.mark.parametrize("latency_us", [0, -1.0, float("nan")])
def test_no_time_is_refused(latency_us):
    with pytest.raises(Refused, match="above 0"):
        transfer(latency_us=latency_us)


def test_tables_of_other_sizes_are_refused():
    with pytest.raises(Refused, match="3 ranks"):
        transfer(tokens_R=(1, 2, 3))

"""Limits of the machine: what is derived from samples, what a host can measure, and on GPUs that bytes really move."""

import pandas as pd
import pytest

from mnnvl_lab import bounds
from mnnvl_lab.errors import Refused
from mnnvl_lab.hardware import require_gpu
from mnnvl_lab.layout import Layout
from mnnvl_lab.measure.links import (
    QUANTITIES,
    limits,
    measure_links,
    measured_link,
    memory_copy_gigabytes_per_s,
    require_limit,
)
from mnnvl_lab.ranks import Ranks

# GB/s of a recorded H100 pair: both ways summed for kernels, one way for the copy engine.
PAIR = {
    ("copy_engine", "one_way"): 393,
    ("copy_engine", "both_ways"): 699,
    ("kernel_stores", "one_way"): 373,
    ("kernel_stores", "both_ways"): 737,
    ("kernel_loads", "both_ways"): 672,
}


def samples_of(rates, moved_bytes=10**9):
    """Three samples each, of which the middle one has the rate: a mean would miss it."""
    rows = [
        {
            "quantity": quantity,
            "direction": direction,
            "moved_bytes": moved_bytes,
            "iteration": iteration,
            "latency_us": moved_bytes / rate / 1e3 * factor,
        }
        for (quantity, direction), rate in rates.items()
        for iteration, factor in enumerate((0.9, 1.0, 5.0))
    ]
    table = pd.DataFrame(rows)
    table.attrs = {"mnnvl_lab": {"device": "2 x H100", "created_at": "2026-11-24"}}
    return table


def test_a_measured_link_gives_the_bound_of_the_recorded_pair():
    link = measured_link(samples_of(PAIR), gpu=require_gpu("h100"))
    rows = [[0, 58_500_000], [58_500_000, 0]]  # 4096 tokens of hidden 7168, EP2: 159 us by stores, 174 by loads
    assert bounds.dispatch_bound(rows, link=link).latency_us == pytest.approx(158.8, abs=0.1)
    assert bounds.combine_bound(rows, link=link).latency_us == pytest.approx(174.1, abs=0.1)
    assert link.copy_gigabytes_per_s == pytest.approx(393)
    assert "2 x H100" in link.name
    assert "2026-11-24" in link.source


def test_limits_are_medians_and_latencies_have_no_rate():
    table = limits(samples_of({("copy_engine", "one_way"): 100}, moved_bytes=1000))
    assert table.loc[0, ["latency_us", "gigabytes_per_s", "samples"]].tolist() == pytest.approx([0.01, 100, 3])
    flags = samples_of({("flag_round_trip", "there_and_back"): 100}).assign(moved_bytes=0)
    assert limits(flags)["gigabytes_per_s"].isna().all()


def test_the_largest_copy_stands_for_the_rate():
    small, large = (samples_of({("copy_engine", "one_way"): rate}, moved_bytes=n) for rate, n in ((9, 10), (90, 1000)))
    found = require_limit(pd.concat([large, small], ignore_index=True), "copy_engine", "one_way")
    assert found["gigabytes_per_s"] == pytest.approx(90)


def test_a_link_that_was_not_measured_is_refused_with_what_was():
    with pytest.raises(Refused, match=r"kernel_stores both_ways was not measured, only copy_engine one_way"):
        measured_link(samples_of({("copy_engine", "one_way"): 393}), gpu=require_gpu("h100"))


def test_a_host_measures_copies_and_flags(host_ranks):
    host_ranks.use(Layout(dp=3))
    table = measure_links(host_ranks, size_bytes=1 << 20, samples=2, provenance={"device": "here"})
    found = table.groupby(["quantity", "direction"])["moved_bytes"].agg(["size", "first"]).to_dict("index")
    assert found == {
        ("memory_copy", "one_rank"): {"size": 2, "first": 1 << 20},
        ("memory_copy", "all_ranks"): {"size": 2, "first": 3 << 20},
        ("flag_round_trip", "there_and_back"): {"size": 2, "first": 0},
    }
    assert (table["latency_us"] > 0).all()
    assert memory_copy_gigabytes_per_s(table) > 0
    assert table.attrs["mnnvl_lab"]["device"] == "here"


@pytest.mark.gpu
def test_a_pair_of_gpus_measures_everything():
    """Copies are compared with their source, and flags counted, where they are measured."""
    with Ranks(Layout(dp=2), fabric="nvlink") as ranks:
        table = measure_links(ranks, size_bytes=64 << 20, samples=3)
    assert set(table["quantity"]) == set(QUANTITIES)
    assert measured_link(table, gpu=require_gpu("h100")).stores_gigabytes_per_s > 0

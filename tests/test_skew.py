"""Waiting and moving on timelines written by hand, and a straggler on real processes."""

import pandas as pd
import pytest

from mnnvl_lab.analysis.skew import entries, straggler_effect
from mnnvl_lab.errors import Refused
from mnnvl_lab.exchange import Exchange
from mnnvl_lab.layout import Layout
from mnnvl_lab.measure import Delay, Point, Sampling, measure
from mnnvl_lab.plots.samples import others_wait, timeline
from mnnvl_lab.routing import Load, Uniform

POINT = {
    "mode": "one_sided",
    "fabric": "host",
    "clock": "eager",
    "tp": 1,
    "dp": 3,
    "pcp": 1,
    "pp": 1,
    "ep_size": 3,
    "tokens": 4,
    "delay_us": 0.0,
    "delayed_rank": 0,
    "checked": "exact",
}


def samples(*rows, **point):
    """Rows `(rank, iteration, start_us, latency_us)` of one phase."""
    columns = ("rank", "iteration", "start_us", "latency_us")
    return pd.DataFrame([dict(zip(columns, row, strict=True)) for row in rows]).assign(
        **POINT | {"phase": "dispatch"} | point
    )


def test_waiting_ends_when_the_last_rank_enters():
    split = entries(samples((0, 0, 100.0, 50.0), (1, 0, 130.0, 22.0), (2, 0, 110.0, 41.0)))
    assert split["entered_us"].tolist() == [0, 30, 10]
    assert split["wait_us"].tolist() == [30, 0, 20]
    assert split["moving_us"].tolist() == [20, 22, 21]


def test_a_rank_that_ends_before_the_last_enters_waited_all_its_time():
    """Combine of a rank that owes nothing to the late one may end early; more than its latency it cannot wait."""
    split = entries(samples((0, 0, 0.0, 5.0), (1, 0, 100.0, 9.0), dp=2))
    assert split["wait_us"].tolist() == [5, 0]
    assert split["moving_us"].tolist() == [0, 9]


def test_pipeline_stages_do_not_wait_for_each_other():
    """DP 2 x PP 2: EP groups are ranks 0, 2 and 1, 3 of the grid [dp, pp, pcp, tp]."""
    rows = [(rank, 0, start, 50.0) for rank, start in enumerate((0.0, 40.0, 3.0, 41.0))]
    split = entries(samples(*rows, dp=2, pp=2))
    assert split["wait_us"].tolist() == [3, 1, 0, 0]
    assert split["ep_rank"].tolist() == [0, 0, 1, 1]


def test_iterations_and_phases_are_apart():
    first, second = samples((0, 0, 0.0, 9.0), (1, 0, 4.0, 9.0)), samples((0, 1, 50.0, 9.0), (1, 1, 52.0, 9.0))
    combine = samples((0, 0, 20.0, 9.0), (1, 0, 21.0, 9.0), phase="combine")
    assert entries(pd.concat([first, second, combine]))["wait_us"].tolist() == [4, 0, 2, 0, 1, 0]


@pytest.mark.parametrize("clock", ["graph", "kernel"])
def test_other_clocks_do_not_say_when_ranks_enter(clock):
    with pytest.raises(Refused, match=rf"clock {clock}.*measure with clock eager"):
        entries(samples((0, 0, 0.0, 1.0), clock=clock))


def delayed(delay_us, noise_us):
    """Three iterations in which rank 1 is late, and the others wait for it."""
    rows = []
    for iteration, extra in enumerate(noise_us):
        rows += [(rank, iteration, 0.0, 20.0 + extra + delay_us) for rank in (0, 2)]
        rows.append((1, iteration, delay_us, 20.0))
    return samples(*rows, delay_us=float(delay_us), delayed_rank=1)


def test_the_others_grow_by_the_delay():
    table = pd.concat([delayed(0, (0, 1, 2)), delayed(100, (0, 3, 9)), delayed(500, (1, 1, 1))])
    effect = straggler_effect(table)
    assert effect["delay_us"].tolist() == [0, 100, 500]
    assert effect["growth_us"].tolist() == [0, 102, 500]
    assert effect["excess_us"].tolist() == [0, 2, 0]
    assert effect["delayed_p50_us"].tolist() == [20, 20, 20]
    assert effect["n"].tolist() == [3, 3, 3]


def test_growth_needs_a_point_without_delay():
    with pytest.raises(Refused, match="none of 0"):
        straggler_effect(delayed(100, (0,)))
    with pytest.raises(Refused, match="phase combine"):
        straggler_effect(delayed(0, (0,)), phase="combine")


def test_figures_show_who_waits_and_the_line_of_equal_growth():
    table = pd.concat([delayed(0, (0, 1, 2)), delayed(100, (0, 3, 9))])
    ax = timeline(table[table["delay_us"] == 100], iteration=1)
    assert [label.get_text() for label in ax.get_yticklabels()] == ["rank 0", "rank 1", "rank 2"]
    widths = [round(bar.get_width()) for bar in ax.patches]
    assert widths == [100, 0, 100, 23, 20, 23]  # waiting, then moving
    ax = others_wait(straggler_effect(table))
    lines = {line.get_gid(): line.get_xydata().tolist() for line in ax.lines}
    assert lines["growth one_sided"] == [[0, 0], [100, 102]]
    assert lines["identity"] == [[0, 0], [100, 100]]


def test_a_straggler_on_host_makes_the_others_wait(host_ranks):
    exchange = Exchange(mode="one_sided", layout=Layout(dp=2), max_tokens=4, hidden=64, experts=4, top_k=2)
    points = [
        Point(
            exchange=exchange,
            load=Load(routing=Uniform(), tokens=4),
            sampling=Sampling(min_samples=6, max_samples=6, warmup=1),
            delay=Delay(ep_rank=1, delay_us=delay_us),
        )
        for delay_us in (0.0, 20_000.0)
    ]
    table = pd.concat([measure(point, host_ranks) for point in points], ignore_index=True)
    effect = straggler_effect(table).set_index("delay_us")
    assert effect.loc[20_000.0, "growth_us"] > 10_000  # the delay is far above what any scheduler adds or takes
    late = entries(table).query("delay_us > 0 and phase == 'dispatch'").groupby("ep_rank")
    assert late["wait_us"].median()[0] > 10_000
    assert late["wait_us"].median()[1] < late["wait_us"].median()[0]

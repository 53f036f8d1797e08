import numpy as np
import pytest

from mnnvl_lab import datasets, plots
from mnnvl_lab.errors import Refused
from mnnvl_lab.plots import samples


@pytest.fixture(scope="module")
def recordings():
    return datasets.load_recorded("h100x2_nvlink_ep2_bf16").query("routing == 'uniform' and mode == 'one_sided'")


@pytest.fixture(scope="module")
def elsewhere():
    table = datasets.load_published("collectivex_h100")
    return table.query("phase == 'round' and quantity == 'latency' and percentile == 'p50' and format == 'bf16'")


def _texts(ax, gid):
    return [text for text in ax.texts if text.get_gid() == gid]


def test_every_iteration_is_a_dot_and_the_median_a_line(recordings):
    point = recordings.query("tokens == 128")
    ax = samples.every_sample(point)
    assert [label.get_text() for label in ax.get_yticklabels()] == [
        "graph · round",
        "eager · dispatch",
        "eager · combine",
        "eager · round",
    ]
    medians = [line.get_xdata()[0] for line in ax.lines if line.get_gid() == "median"]
    slowest = point.groupby(["clock", "phase", "iteration"])["latency_us"].max()
    right = slowest.groupby(["clock", "phase"]).median()
    assert medians[0] == pytest.approx(right["graph", "round"])
    assert sorted(medians[1:]) == pytest.approx(sorted(right["eager"]))
    dots = sum(len(line.get_xdata()) for line in ax.lines if line.get_gid() != "median")
    assert dots == len(point) + len(slowest)


def test_points_do_not_share_a_row(recordings):
    with pytest.raises(Refused, match="several points"):
        samples.every_sample(recordings.query("clock == 'graph'"))


def test_published_figures_stand_behind_the_measured(recordings, elsewhere):
    ax = plots.latency(recordings.query("clock == 'eager' and phase == 'round'"))
    before = len(ax.lines)
    plots.context(ax, elsewhere, by=("library", "mode"))
    added = ax.lines[before:]
    assert np.concatenate([line.get_ydata() for line in added]).tolist() == pytest.approx(
        [
            y
            for _, line in elsewhere.groupby(["library", "mode"], sort=False)
            for y in line.sort_values("tokens")["value"]
        ]
    )
    assert "H100 SXM, EP 8" in ax.get_legend().get_title().get_text()
    assert "CollectiveX" in _texts(ax, "caption")[0].get_text()


def test_names_stay_at_the_ends_of_their_lines(recordings, elsewhere):
    table = recordings.query("clock == 'eager' and phase == 'round'")
    ax = plots.context(plots.latency(table), elsewhere, by=("library", "mode"))
    (name,) = _texts(ax, "label")
    end_us = ax.lines[0].get_ydata()[-1]
    low, high = np.log10(ax.get_ylim())
    assert name.xy[1] == pytest.approx((np.log10(end_us) - low) / (high - low), abs=0.01)


def test_published_figures_of_several_kinds_are_refused(recordings):
    ax = plots.latency(recordings.query("clock == 'eager' and phase == 'round'"))
    with pytest.raises(Refused, match="quantity has the values"):
        plots.context(ax, datasets.load_published("collectivex_h100"))

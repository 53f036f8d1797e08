"""Figures of predictions, of their errors and of simulated rounds: named as what they are."""

import pandas as pd
import pytest
from matplotlib.colors import to_hex

import mnnvl_lab as lab
from mnnvl_lab import datasets, plots
from mnnvl_lab.errors import Refused
from mnnvl_lab.layout import Layout

V3 = {"model": "deepseek-v3"}


def words(ax):
    return " ".join(text.get_text() for text in [ax.title, *ax.texts, *ax.get_legend().get_texts()])


def test_predictions_are_dashed_with_a_band_and_say_so():
    found = lab.predict(Layout(dp=8), **V3, tokens=(1, 64, 1024))
    ax = plots.predictions(found.to_frame())
    styles = [line.get_linestyle() for line in ax.lines]
    assert set(styles) == {"--", ":"}
    assert styles.count("--") == len(ax.collections) == 4
    assert not [line for line in ax.lines if line.get_marker() not in ("None", "", None)]
    assert "predicted, not measured" in words(ax)
    assert "EP8 extrapolated" in words(ax).replace("\n", " ")


def test_the_line_is_the_prediction():
    found = lab.predict(Layout(dp=2), **V3, tokens=(1, 64), mode="one_sided")
    line = plots.predictions(found.to_frame()).lines[0]
    assert line.get_ydata().tolist() == [round(one.latency_us, 2) for one in found.rounds]


def test_other_tables_are_not_drawn_as_predictions():
    table = pd.DataFrame({"kind": ["record"], "tokens": [1], "mode": ["one_sided"], "latency_us": [1.0]})
    with pytest.raises(Refused, match="no predictions"):
        plots.predictions(table)
    with pytest.raises(Refused, match="no simulation"):
        plots.simulated_round(table)


def test_errors_of_left_out_ep_sizes_with_median_and_worst():
    errors = lab.prediction.left_out_errors(datasets.load_published("aiconfigurator_gb200"))
    ax = plots.left_out_errors(errors)
    sizes = errors["error_percent"].abs()
    assert f"median {sizes.median():.1f} %, worst {sizes.max():.0f} %" in words(ax)
    drawn = sum(len(points.get_offsets()) for points in ax.collections)
    assert drawn == len(errors)
    assert "EP 64" in words(ax)


def test_a_simulated_round_shows_work_and_waiting_of_every_rank():
    found = lab.simulate_round(8, **V3, tokens=16, routing="hot_rank:0.5:2", expert_us_per_row=1.0)
    ax = plots.simulated_round(found.table)
    ends = max(bar.get_x() + bar.get_width() for bar in ax.patches)
    assert ends == pytest.approx(found.latency_us)
    assert len(ax.patches) == 2 * len(found.table)
    assert len({to_hex(bar.get_facecolor()) for bar in ax.patches}) == 3
    assert "simulated, not measured" in words(ax)

"""A caption names what is drawn, and nothing else: every figure that has one, with and without each part."""

import numpy as np
import pandas as pd
import pytest
from matplotlib.collections import PathCollection, PolyCollection
from matplotlib.figure import Figure

from mnnvl_lab import datasets, plots, records
from mnnvl_lab.analysis import latency_model
from mnnvl_lab.errors import Refused
from mnnvl_lab.plots import compare as who_is_ahead
from mnnvl_lab.plots import samples as every_sample
from mnnvl_lab.plots.compare import prediction_errors
from mnnvl_lab.plots.samples import others_wait
from tests.test_records import origin, samples

TOKENS = (1, 16, 256)


@pytest.fixture
def ax():
    return Figure(figsize=(7, 4), layout="constrained").subplots()


@pytest.fixture(scope="module")
def rounds():
    return datasets.load_recorded("h100x2_nvlink_ep2_bf16").query("clock == 'graph' and phase == 'round'")


def caption(ax) -> str:
    (text,) = (text.get_text() for text in ax.texts if text.get_gid() == "caption")
    return text.replace("\n", " ")


def labels(ax) -> list[str]:
    return [text.get_text() for text in ax.texts if text.get_gid() == "label"]


def drawn_bounds(ax) -> list[str]:
    """Names of the bounds of which a point lies within the axes."""
    (left, right), (low, high) = ax.get_xlim(), ax.get_ylim()
    return [
        line.get_label()
        for line in ax.lines
        if line.get_gid() == "bound"
        and any(left <= x <= right and low <= y <= high for x, y in zip(*line.get_data(), strict=True))
    ]


def measured(tokens=TOKENS, **fields):
    rows = [row for n in tokens for row in samples(50.0 + n + np.zeros((20, 4)), tokens=n, **fields)]
    return records.new_table(rows, origin())


def bound_table(**lines):
    """Bounds in µs at `TOKENS`, each with a basis that its name is in."""
    return pd.DataFrame(
        {"tokens": TOKENS, "latency_us": latency_us, "bound": name, "basis": f"as {name} says"}
        for name, latency_us in lines.items()
    ).explode(["tokens", "latency_us"])


class TestBounds:
    """A bound below the axis has no line: its name and basis must not stand there either."""

    @pytest.mark.parametrize(
        ("lines", "seen"),
        [
            ({"near": (20.0, 30.0, 200.0)}, {"near"}),
            ({"far": (0.001, 0.01, 0.1)}, set()),
            ({"near": (20.0, 30.0, 200.0), "far": (0.001, 0.01, 0.1)}, {"near"}),
            ({"rising": (0.001, 0.01, 60.0)}, {"rising"}),
            ({"none": (0.0, 0.0, 0.0)}, set()),
        ],
    )
    def test_only_bounds_in_view_are_named(self, ax, lines, seen):
        plots.latency(measured(), bounds=bound_table(**lines), ax=ax)
        assert set(drawn_bounds(ax)) == seen
        for name in lines:
            assert (f"{name}: as {name} says" in caption(ax)) == (name in seen)
            assert (name in labels(ax)) == (name in seen)

    def test_a_machine_without_bounds_has_none_in_its_caption(self, ax):
        table = measured(fabric="shared_gpu")
        plots.latency(table, bounds=plots.lower_bounds(table), ax=ax)
        assert "least for the bytes" not in caption(ax)
        assert not drawn_bounds(ax)

    @pytest.mark.parametrize("rate", [10.0, 1e6])
    def test_a_fast_host_whose_bound_is_far_below(self, ax, rate):
        table = records.new_table(measured(), origin(memory_copy_gigabytes_per_s=rate))
        plots.latency(table, bounds=plots.lower_bounds(table), ax=ax)
        assert ("GB/s copied" in caption(ax)) == bool(drawn_bounds(ax))

    def test_recorded_rounds_name_their_bound(self, ax, rounds):
        uniform = rounds.query("routing == 'uniform'")
        plots.latency(uniform, bounds=plots.lower_bounds(uniform), ax=ax)
        assert drawn_bounds(ax) == ["least for the bytes"]
        assert "least for the bytes: 2 x NVIDIA H100 80GB HBM3, bare kernels measured" in caption(ax)


class TestWhoIsAhead:
    @pytest.mark.parametrize("modes", [["one_sided", "two_sided"], ["two_sided", "all_to_all"]])
    def test_grey_is_named_where_modes_change_places(self, ax, rounds, modes):
        who_is_ahead.fastest(rounds[(rounds["routing"] == "uniform") & rounds["mode"].isin(modes)], ax=ax)
        crossings = [patch for patch in ax.patches if patch.get_gid() == "crossing"]
        assert ("grey: where two change places" in caption(ax)) == bool(crossings)
        assert bool(crossings) == ("all_to_all" in modes)
        assert any(isinstance(band, PolyCollection) for band in ax.collections)


class TestPredictionErrors:
    @pytest.mark.parametrize("fabrics", [["nvlink"], ["shared_gpu"], ["nvlink", "shared_gpu"]])
    def test_markers_are_named_that_are_there(self, ax, fabrics):
        point = {"mode": "one_sided", "ep_size": 2, "format": "bf16", "routing": "uniform"}
        rows = [point | {"fabric": f, "latency_us": us, "error_percent": 1.0} for f in fabrics for us in (10.0, 90.0)]
        prediction_errors(pd.DataFrame(rows), device="2 x H100", ax=ax)
        drawn = {artist.get_gid() for artist in ax.collections if isinstance(artist, PathCollection)}
        assert {word for word in ("filled", "hollow") if f"{word}: " in caption(ax)} == drawn
        assert [text.get_text() for text in ax.get_legend().get_texts()] == ["one-sided"]

    def test_of_the_model_itself(self, ax, rounds):
        some = rounds[(rounds["mode"] == "one_sided") & (rounds["routing"] == "uniform")]
        prediction_errors(latency_model.leave_one_out(latency_model.observations(some)), device="2 x H100", ax=ax)
        assert "hollow" not in caption(ax)


class TestComparison:
    @pytest.mark.parametrize(("factor", "n"), [(1.0, 20), (2.0, 20), (2.0, 2)])
    def test_markers_are_named_that_are_there(self, ax, factor, n):
        noise = np.random.default_rng(0).gamma(50, 0.02, (n, 4))
        one, other = (records.new_table(samples(50 * f * noise, tokens=16), origin()) for f in (1.0, factor))
        plots.comparison(records.compare(one, other), ax=ax)
        for gid, word in (("different", "filled: "), ("same", "hollow: ")):
            points = sum(len(line.get_xdata()) for line in ax.lines if line.get_gid() == gid)
            assert (word in caption(ax)) == bool(points), word
        bars = sum(len(bar.get_segments()) for bar in ax.collections)
        assert ("bar: changes" in caption(ax)) == bool(bars)


class TestSamples:
    @pytest.mark.parametrize("ranks", [1, 4])
    def test_other_ranks_are_named_where_there_are_some(self, ax, ranks):
        table = records.new_table(samples(ranks=ranks, ep_size=ranks, tp=1, dp=ranks), origin())
        every_sample.every_sample(table, ax=ax)
        assert ("pale: other ranks" in caption(ax)) == (ranks > 1)


class TestRegions:
    @pytest.mark.parametrize("gap", [0, 128])
    def test_gaps_are_named_where_there_are_some(self, ax, gap):
        sizes = [1024, 2048]
        table = pd.DataFrame({"region": ["a", "b"], "offset_bytes": [0, 1024 + gap], "size_bytes": sizes})
        plots.region_map(table, ax=ax)
        assert ("pale: gaps" in caption(ax)) == bool(gap)


class TestContext:
    def figures(self):
        table = datasets.load_published("collectivex_h100")
        return table.query("phase == 'round' and quantity == 'latency' and percentile == 'p50' and format == 'bf16'")

    def test_only_sources_of_drawn_lines_are_named(self, ax):
        drawn = self.figures().assign(source="drawn elsewhere")
        without_place = drawn.head(2).assign(source="cannot be placed", tokens=pd.NA)
        plots.latency(measured(), ax=ax)
        plots.context(ax, pd.concat([drawn, without_place]), by=("library", "mode"))
        assert "drawn elsewhere" in caption(ax)
        assert "cannot be placed" not in caption(ax)

    def test_nothing_to_draw_is_refused(self, ax):
        plots.latency(measured(), ax=ax)
        with pytest.raises(Refused, match="nothing to draw"):
            plots.context(ax, self.figures().assign(tokens=pd.NA))


def test_what_stays_at_home_is_hatched(ax):
    plots.traffic(plots.traffic_table(np.ones((3, 3), dtype=int)), ax=ax)
    assert "hatched: stays on its rank" in caption(ax)
    assert sum(patch.get_hatch() is not None for patch in ax.patches) == 3


def test_the_late_rank_is_dotted(ax):
    rows = {"delay_us": [0.0, 100.0], "growth_us": [0.0, 90.0], "delayed_p50_us": [50.0, 40.0], "mode": "one_sided"}
    others_wait(pd.DataFrame(rows), ax=ax)
    assert "dotted: latency of the late rank" in caption(ax)
    assert sum(line.get_linestyle() == ":" for line in ax.lines) == 1


def test_a_number_of_a_hue_is_named_by_its_column_and_a_word_stands_alone():
    from mnnvl_lab.plots.style import line_styles

    assert [stroke.label for stroke in line_styles([2, 8], "ep_size").values()] == ["EP 2", "EP 8"]
    assert [stroke.label for stroke in line_styles(["uniform"], "routing").values()] == ["uniform"]
    assert [stroke.label for stroke in line_styles([3.5], "phase").values()] == ["3.5"]

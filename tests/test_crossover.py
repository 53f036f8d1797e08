import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mnnvl_lab import datasets, records
from mnnvl_lab.analysis import crossover
from mnnvl_lab.errors import Refused

ORIGIN = {"schema": 1, "created_at": "2026-11-24", "device": "2 x H100", "topology": "NVLink"}
POINT = {
    "fabric": "nvlink",
    "clock": "graph",
    "phase": "round",
    "tp": 1,
    "dp": 2,
    "pcp": 1,
    "pp": 1,
    "ep_size": 2,
    "hidden": 7168,
    "experts": 256,
    "top_k": 8,
    "format": "bf16",
    "routing": "uniform",
    "seed": 0,
    "checked": "exact",
}
TOKENS = (1, 4, 16, 64, 256)


def samples(lines: dict[str, list[float]], *, noise: float = 0.001, **changes) -> pd.DataFrame:
    """Eleven iterations around each latency, on two ranks of which rank 1 is the slower."""
    rows = [
        POINT
        | {"mode": mode, "tokens": tokens, "rank": rank, "iteration": i}
        | {"latency_us": latency * (1 + noise * (i - 5)) * (0.9 + 0.1 * rank)}
        | changes
        for mode, latencies in lines.items()
        for tokens, latency in zip(TOKENS, latencies, strict=True)
        for i in range(11)
        for rank in range(2)
    ]
    return records.new_table(rows, ORIGIN)


class TestTable:
    def test_the_fastest_leads_by_the_runner_up(self):
        table = crossover.table(
            samples({"one_sided": [10, 12, 20, 50, 150], "two_sided": [9, 12, 24, 100, 300], "all_to_all": [99] * 5})
        )
        assert table["fastest"].tolist() == ["two_sided", "no difference", "one_sided", "one_sided", "all_to_all"]
        assert table["lead_percent"].round(6).tolist() == [
            pytest.approx(v, abs=1e-5) for v in (100 / 9, 0, 20, 98, 100 * 51 / 99)
        ]
        assert table.loc[4, "runner_up"] == "one_sided"

    def test_wide_samples_make_no_winner(self):
        lines = {"one_sided": [10.0] * 5, "two_sided": [10.5] * 5}
        assert set(crossover.table(samples(lines))["fastest"]) == {"one_sided"}
        assert set(crossover.table(samples(lines, noise=0.05))["fastest"]) == {crossover.NO_DIFFERENCE}

    def test_options_of_a_mode_compete(self):
        plain = samples({"one_sided": [20.0] * 5})
        in_place = samples({"one_sided": [15.0] * 5}, payload_in_workspace=True)
        table = crossover.table(records.join([plain, in_place]))
        assert set(table["fastest"]) == {"one_sided, in place"}

    def test_capacities_of_a_mode_compete_where_there_are_several(self):
        fitted = samples({"one_sided": [20.0] * 5, "two_sided": [30.0] * 5})
        large = samples({"one_sided": [15.0] * 5}, max_tokens=8192)
        assert set(crossover.table(fitted)["fastest"]) == {"one_sided"}
        table = crossover.table(records.join([fitted, large]))
        assert set(table["fastest"]) == {"one_sided, capacity 8192"}
        assert table["runner_up"].tolist() == [f"one_sided, capacity {n}" for n in TOKENS]

    def test_loads_are_kept_apart(self):
        both = [
            samples({"one_sided": [10.0] * 5, "two_sided": [v] * 5}, format=f)
            for f, v in (("bf16", 9.0), ("mxfp8", 11.0))
        ]
        table = crossover.table(records.join(both))
        assert table.groupby("format")["fastest"].first().to_dict() == {"bf16": "two_sided", "mxfp8": "one_sided"}

    def test_what_cannot_be_compared_is_refused(self):
        alone = samples({"one_sided": [10.0] * 5})
        with pytest.raises(Refused, match="two contenders"):
            crossover.table(alone)
        with pytest.raises(Refused, match="has graph round"):
            crossover.table(alone, clock="eager")
        with pytest.raises(Refused, match="needs 6"):
            crossover.table(alone[alone["iteration"] < 5])


class TestCrossings:
    def test_two_crossings_of_one_pair(self):
        found = crossover.crossings(samples({"one_sided": [20.0, 20, 10, 20, 20], "two_sided": [15.0] * 5}))
        assert found[["below", "above"]].to_numpy().tolist() == [["two_sided", "one_sided"], ["one_sided", "two_sided"]]
        assert 4 < found["tokens"][0] < 16 < found["tokens"][1] < 64

    @settings(max_examples=25, deadline=None)
    @given(meet=st.floats(2, 200), slope=st.floats(0.2, 1.0))
    def test_power_laws_meet_where_they_meet(self, meet, slope):
        tokens = np.array(TOKENS, dtype=float)
        flat, steep = [100.0] * 5, list(100 * (tokens / meet) ** slope)
        found = crossover.crossings(samples({"all_to_all": flat, "one_sided": steep}, noise=1e-5))
        assert len(found) == 1
        row = found.iloc[0]
        assert (row["below"], row["above"]) == ("one_sided", "all_to_all")
        assert row["tokens"] == pytest.approx(meet, rel=0.02)
        assert row["tokens_low"] <= row["tokens"] <= row["tokens_high"]

    def test_noise_widens_the_place(self):
        lines = {"one_sided": [10.0, 20, 40, 80, 160], "two_sided": [50.0] * 5}
        widths = [
            float(found["tokens_high"].iloc[0] / found["tokens_low"].iloc[0])
            for noise in (0.001, 0.02)
            for found in [crossover.crossings(samples(lines, noise=noise))]
        ]
        assert 1 < widths[0] < widths[1]

    def test_no_crossing_where_one_is_always_ahead_or_none_surely(self):
        ahead = samples({"one_sided": [10.0] * 5, "two_sided": [20.0] * 5})
        assert crossover.crossings(ahead).empty
        tangled = samples(
            {"one_sided": [10.0, 10.1, 10, 10.1, 10], "two_sided": [10.1, 10, 10.1, 10, 10.1]}, noise=0.05
        )
        assert crossover.crossings(tangled).empty


class TestFigure:
    def test_lines_are_relative_to_the_fastest(self):
        from mnnvl_lab.plots.compare import fastest

        lines = {"one_sided": [10.0, 20, 40, 80, 160], "two_sided": [50.0] * 5}
        ax = fastest(samples(lines))
        drawn = {line.get_label(): list(line.get_ydata()) for line in ax.get_lines()}
        assert drawn["one-sided"] == pytest.approx([1, 1, 1, 1.6, 3.2])
        assert drawn["two-sided"] == pytest.approx([5, 2.5, 1.25, 1, 1])
        (band,) = [patch for patch in ax.patches if patch.get_gid() == "crossing"]
        assert band.get_x() < 25 < band.get_x() + band.get_width()

    def test_several_loads_are_refused(self):
        from mnnvl_lab.plots.compare import fastest

        lines = {"one_sided": [10.0] * 5, "two_sided": [9.0] * 5}
        with pytest.raises(Refused, match="format has the values bf16, mxfp8"):
            fastest(records.join([samples(lines), samples(lines, format="mxfp8")]))


def test_the_recorded_pair_is_judged_by_its_own_samples():
    samples = datasets.load_recorded("h100x2_nvlink_ep2_bf16").query("clock == 'graph' and routing == 'uniform'")
    slowest = samples.groupby(["tokens", "mode", "iteration"])["latency_us"].max()
    medians = slowest.groupby(["tokens", "mode"]).median().unstack()
    judged = crossover.table(samples).set_index("tokens")
    assert judged["p50_us"].tolist() == pytest.approx(medians.min(axis=1).tolist())
    assert judged["runner_up_us"].tolist() == pytest.approx(np.sort(medians.to_numpy(), axis=1)[:, 1].tolist())
    assert set(judged["fastest"]) == {"one_sided, in place"}
    changes = crossover.crossings(samples)
    crossing = changes[(changes["below"] == "two_sided") & (changes["above"] == "all_to_all")]
    behind = medians["two_sided"] > medians["all_to_all"]
    assert medians.index[~behind].max() < crossing["tokens"].item() < medians.index[behind].min()


def test_the_clock_is_the_only_one_of_the_samples_or_graph():
    eager = samples({"one_sided": [10] * 5, "two_sided": [20] * 5}, clock="eager")
    assert crossover.usual_clock(eager) == "eager"
    assert set(crossover.table(eager)["clock"]) == {"eager"}
    both = pd.concat([eager, eager.assign(clock="graph")])
    assert crossover.usual_clock(both) == "graph"

"""Records: statistics against plain numpy, files against every way to break one."""

import json
import multiprocessing
import os
import pickle
import signal
import sys
from itertools import combinations
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pandas.testing import assert_frame_equal
from pyarrow.parquet import ParquetFile, read_schema
from scipy.stats import mannwhitneyu, rankdata

from mnnvl_lab import records
from mnnvl_lab.errors import RecordError, Refused
from mnnvl_lab.records.compare import TOO_FEW, verdicts
from mnnvl_lab.records.provenance import command
from mnnvl_lab.records.statistics import least_p, p_value, ratio_interval

DATA = Path(__file__).parents[1] / "data"
ORIGIN = {"device": "2-core Test Processor", "topology": "shared memory of one machine"}
POINT = {
    "mode": "one_sided",
    "fabric": "host",
    "clock": "eager",
    "phase": "round",
    "tp": 2,
    "dp": 2,
    "pcp": 1,
    "pp": 1,
    "ep_size": 4,
    "tokens": 16,
    "hidden": 64,
    "experts": 8,
    "top_k": 2,
    "format": "bf16",
    "routing": "uniform",
    "seed": 0,
    "checked": "exact",
}


def origin(**further):
    return records.provenance(fabric="host", clocks=("eager",), **(ORIGIN | further))


def samples(latency_us=None, *, iterations=8, ranks=4, **fields):
    """One row per rank and iteration; `latency_us` `[iterations, ranks]`."""
    if latency_us is None:
        latency_us = 10.0 + np.arange(iterations * ranks).reshape(iterations, ranks)
    return [
        POINT | fields | {"rank": rank, "iteration": i, "latency_us": float(value)}
        for i, row in enumerate(latency_us)
        for rank, value in enumerate(row)
    ]


def table(latency_us=None, *, provenance=None, **fields):
    return records.new_table(samples(latency_us, **fields), provenance or origin())


def key_of(made):
    """Key of the only point of a table."""
    return records.point_key(made.iloc[0])


class TestColumns:
    def test_every_number_with_a_unit_names_it(self):
        suffix = {"µs": "_us", "B": "_bytes"}
        for column in records.COLUMNS.values():
            assert not column.unit or column.name.endswith(suffix[column.unit]), column.name

    def test_label_and_unit_make_the_axis_label(self):
        assert records.require_column("latency_us").axis_label == "Latency (µs)"
        assert records.require_column("tokens").axis_label == "Tokens per rank"

    def test_unknown_names_get_near_ones(self):
        with pytest.raises(Refused, match="column 'latency_ms' is not known: did you mean latency_us"):
            records.require_column("latency_ms")


class TestTables:
    def test_columns_come_in_the_registry_order_and_types(self):
        made = table()
        assert list(made.columns) == list(records.SAMPLE_COLUMNS)
        assert made["latency_us"].dtype == "float64"
        assert made["l2"].unique() == ["warm"]

    @pytest.mark.parametrize(
        ("change", "words"),
        [
            ({"latency_us": "fast"}, "column latency_us"),
            ({"tokens": 1.5}, "column tokens"),
            ({"bandwidth": 3}, "unknown column 'bandwidth'"),
            ({"latency_us": float("nan")}, "latency_us holds nan: a time is at least 0"),
            ({"latency_us": -1.0}, "latency_us holds -1"),
        ],
    )
    def test_wrong_columns_are_refused(self, change, words):
        with pytest.raises(RecordError, match=words):
            records.new_table([row | change for row in samples()], origin())

    def test_a_missing_column_is_refused(self):
        with pytest.raises(RecordError, match="no column routing"):
            records.new_table(pd.DataFrame(samples()).drop(columns="routing"), origin())

    def test_provenance_names_the_run(self):
        found = records.provenance(fabric="host", clocks=["eager"], warmup=3, samples=10, seed=7)
        for field in (
            "created_at",
            "command",
            "commit",
            "dirty",
            "python",
            "torch",
            "cpu",
            "cores",
            "device",
            "driver",
        ):
            assert field in found
        assert found["warmup"] == 3
        assert str(found["cores"]) in found["device"]

    def test_tables_share_a_provenance_that_cannot_be_changed(self):
        first = table()
        again = pickle.loads(pickle.dumps(first))
        origin_of = records.provenance_of(first)
        assert records.provenance_of(first.query("tokens > 0")) is origin_of
        assert records.provenance_of(again) == origin_of
        for change in (
            lambda: origin_of.update(device="another"),
            lambda: origin_of.pop("device"),
            lambda: origin_of.__setitem__("device", "another"),
            lambda: origin_of.__ior__({"device": "another"}),
        ):
            with pytest.raises(TypeError, match="provenance is never changed: make another"):
                change()

    def test_provenance_measures_nothing_and_rates_are_measured_on_request(self, monkeypatch):
        def measured(*args, **options):
            raise AssertionError("a benchmark ran")

        module = sys.modules[records.provenance.__module__]
        monkeypatch.setattr(module, "memory_copy_gigabytes_per_s", measured)
        assert "memory_copy_gigabytes_per_s" not in records.provenance(fabric="host")
        assert records.measured_rates("nvlink") == {}
        monkeypatch.undo()
        assert records.measured_rates("host")["memory_copy_gigabytes_per_s"] > 0

    @pytest.mark.parametrize(
        ("argv", "typed"),
        [
            (["/a/mnnvl_lab/__main__.py", "sweep", "--tp", "2"], "python -m mnnvl_lab sweep --tp 2"),
            (["/a/ipykernel_launcher.py", "-f", "/home/x/kernel.json"], "notebook"),
            (["/a/bin/mnnvl-lab", "plan"], "mnnvl-lab plan"),
        ],
    )
    def test_the_command_is_what_was_typed(self, argv, typed):
        assert command(argv) == typed


class TestOlderRecords:
    """Files of schema 1 say less; what they lack is what they implicitly had."""

    def test_what_they_lack_is_filled_in(self):
        row = records.new_table(samples(tokens=16) + samples(tokens=0), origin()).iloc[[0, -1]]
        assert row["token_counts"].tolist() == ["equal"] * 2
        assert row["max_tokens"].tolist() == row["runtime_max_tokens"].tolist() == [16, 1]
        assert row[["repeat", "ep_group", "sm_limit", "eplb_stats_experts"]].to_numpy().tolist() == [[0] * 4] * 2
        assert set(row["combine_dtype"]) == {"bf16"}
        assert set(row["workspace_group"]) == {"ep"}

    def test_points_that_were_merged_are_repeats(self):
        made = records.new_table([row for start in (10, 50, 90) for row in samples(np.full((3, 4), start))], origin())
        assert records.summary(made)[["repeat", "p50_us", "n"]].to_numpy().tolist() == [
            [0, 10, 3],
            [1, 50, 3],
            [2, 90, 3],
        ]

    def test_figures_of_the_recorded_data_are_the_same(self):
        path = DATA / "h100x2_nvlink_ep2_bf16.parquet"
        made = records.load(path)
        before = ["mode", "clock", "phase", "tokens", "format", "routing", "payload_in_workspace"]
        slowest = (
            pd.read_parquet(DATA / "h100x2_nvlink_ep2_bf16.parquet").groupby([*before, "iteration"])["latency_us"].max()
        )
        medians = slowest.groupby(before).median()
        found = records.summary(made).set_index(before)["p50_us"].sort_index()
        assert found.to_dict() == medians.sort_index().to_dict()


class TestPipelineStages:
    """DP 2 x PP 2: ranks 0 and 2 are the first EP group, 1 and 3 the second; each stops sampling by itself."""

    def made(self):
        layout = {"tp": 1, "dp": 2, "pp": 2, "ep_size": 2}
        rows = [
            POINT | layout | {"rank": rank, "iteration": i, "latency_us": 100.0 * (1 + rank % 2) + rank + i}
            for rank in range(4)
            for i in range(6 if rank % 2 else 3)
        ]
        return records.new_table(rows, origin())

    def test_each_is_a_group_of_its_own(self):
        made = self.made()
        assert made.groupby("rank")["ep_group"].unique().map(list).tolist() == [[0], [1], [0], [1]]
        found = records.summary(made)[["ep_group", "p50_us", "n"]]
        assert found.to_numpy().tolist() == [[0, 103, 3], [1, 205.5, 6]]

    def test_statistics_never_mix_them(self):
        with pytest.raises(RecordError, match=r"ep_group has the values 0, 1: .* add ep_group to by"):
            records.summary(self.made(), by=["mode"])
        assert len(records.summary(self.made().query("ep_group == 0"), by=["mode"])) == 1

    def test_they_are_told_apart_where_the_column_is_missing(self):
        raw = self.made().drop(columns="ep_group")
        assert sorted(records.slowest_rank(raw).groupby("ep_group").size()) == [3, 6]

    def test_comparing_them_goes_stage_by_stage(self):
        made = self.made()
        assert records.compare(made, made)["ep_group"].tolist() == [0, 1]

    def test_a_rank_outside_its_layout_is_refused(self):
        raw = pd.DataFrame(self.made().drop(columns="ep_group").assign(rank=9))
        with pytest.raises(RecordError, match=r"rank is 9: it must lie in \[0, 4\)"):
            records.new_table(raw, origin())


class TestJoin:
    def test_equal_origins_join(self):
        joined = records.join([table(), table(tokens=32)])
        assert sorted(joined["tokens"].unique()) == [16, 32]
        assert records.provenance_of(joined)["device"] == ORIGIN["device"]

    @pytest.mark.parametrize("field", ["fabric", "clock"])
    def test_different_fabric_or_clock_is_refused_until_named(self, field):
        pair = [table(), table(**{field: "other"})]
        with pytest.raises(RecordError, match=f"{field} differs"):
            records.join(pair)
        assert records.join(pair, by=(field,))[field].nunique() == 2

    def test_different_devices_are_refused_until_named_and_are_a_column_then(self):
        pair = [table(), table(provenance=origin(device="H100"))]
        with pytest.raises(RecordError, match="device differs"):
            records.join(pair)
        joined = records.join(pair, by=("device",))
        assert joined.groupby("device", sort=False).size().to_dict() == {ORIGIN["device"]: 32, "H100": 32}

    def test_provenance_keeps_what_differs_by_run_and_joins_again(self):
        one, two, three = (table(tokens=n, provenance=origin(warmup=n)) for n in (1, 2, 3))
        joined = records.join([records.join([one, two]), three])
        assert [part["warmup"] for part in records.provenance_of(joined)["joined"]] == [1, 2, 3]

    def test_nothing_to_join(self):
        with pytest.raises(RecordError, match="no tables"):
            records.join([])


class TestStatistics:
    def test_the_slowest_rank_of_an_iteration_counts(self):
        latency_us = np.random.default_rng(0).gamma(3, 10, (20, 4))
        slowest = records.slowest_rank(table(latency_us))
        np.testing.assert_array_equal(slowest["latency_us"], latency_us.max(axis=1))
        np.testing.assert_array_equal(slowest["rank"], latency_us.argmax(axis=1))

    @settings(max_examples=20, deadline=None)
    @given(st.integers(0, 10_000), st.integers(1, 60), st.integers(1, 5))
    def test_summary_equals_numpy(self, seed, iterations, ranks):
        latency_us = np.random.default_rng(seed).gamma(3, 10, (iterations, ranks))
        row = records.summary(table(latency_us)).iloc[0]
        slowest = latency_us.max(axis=1)
        q25, q50, q75, q90, q99 = np.percentile(slowest, [25, 50, 75, 90, 99])
        expected = [q50, q90, q99, slowest.min(), (q75 - q25) / q50, iterations]
        np.testing.assert_allclose(list(row[["p50_us", "p90_us", "p99_us", "min_us", "spread", "n"]]), expected)

    def test_points_and_phases_stay_apart(self):
        rows = samples() + samples(phase="dispatch") + samples(tokens=32)
        summed = records.summary(records.new_table(rows, origin()), by=["phase", "tokens"])
        assert set(zip(summed["phase"], summed["tokens"], strict=True)) == {
            ("round", 16),
            ("dispatch", 16),
            ("round", 32),
        }


class TestRankTest:
    @pytest.mark.parametrize("sizes", [(1, 1), (1, 5), (5, 5), (7, 7), (10, 10), (20, 33), (60, 60), (5, 100)])
    @pytest.mark.parametrize("factor", [1, 1.1, 3])
    def test_without_ties_it_is_the_exact_test_of_scipy(self, sizes, factor):
        random = np.random.default_rng(sum(sizes))
        a, b = random.gamma(50, 2, sizes[0]), factor * random.gamma(50, 2, sizes[1])
        assert p_value(a, b) == pytest.approx(mannwhitneyu(a, b, method="exact").pvalue, rel=1e-9)

    @settings(max_examples=40, deadline=None)
    @given(st.lists(st.integers(0, 4), min_size=1, max_size=7), st.lists(st.integers(0, 4), min_size=1, max_size=7))
    def test_with_ties_it_is_the_share_of_all_splits_of_the_pool(self, a, b):
        pool = np.concatenate([a, b]).astype(float)
        ranks = rankdata(pool)
        mean = len(a) * ranks.mean()
        splits = [abs(sum(chosen) - mean) for chosen in combinations(ranks, len(a))]
        exact = np.mean(np.array(splits) >= abs(ranks[: len(a)].sum() - mean) - 1e-9)
        assert p_value(pool[: len(a)], pool[len(a) :]) == pytest.approx(exact)
        assert p_value(pool[len(a) :], pool[: len(a)]) == pytest.approx(exact)

    @pytest.mark.parametrize("sizes", [(5, 5), (8, 8), (10, 10), (3, 40), (60, 60), (200, 200)])
    @pytest.mark.parametrize("digits", [0, 9])
    def test_complete_separation_has_the_least_p(self, sizes, digits):
        """Also where samples of one side are equal; with many of them the normal law takes over, and is far below."""
        random = np.random.default_rng(3)
        a, b = random.gamma(50, 2, sizes[0]).round(digits), 10 * random.gamma(50, 2, sizes[1]).round(digits)
        if len(a) == 200 and digits == 0:
            assert p_value(a, b) < 1e-60
        elif len(a) == 60 and digits == 0:
            assert p_value(a, b) < 1e-20
        else:
            assert p_value(a, b) == pytest.approx(least_p(*sizes), rel=1e-9)

    def test_many_samples_with_ties_are_near_the_exact_test(self):
        random = np.random.default_rng(4)
        a, b = random.integers(0, 500, 55).astype(float), random.integers(0, 550, 54).astype(float)
        tied = mannwhitneyu(a, b, method="asymptotic").pvalue
        assert p_value(a, b) == pytest.approx(tied, rel=0.02)
        assert p_value(np.full(99, 3.0), np.full(99, 3.0)) == 1

    @settings(deadline=None)
    @given(st.integers(0, 2**32), st.floats(0.9, 1.1), st.integers(2, 40), st.integers(2, 40), st.floats(1e-4, 0.3))
    def test_an_interval_leaves_out_what_the_test_rejects(self, seed, factor, n, m, alpha):
        random = np.random.default_rng(seed)
        a, b = random.gamma(400, 0.25, n), factor * random.gamma(400, 0.25, m)
        low, high = ratio_interval(a, b, alpha=alpha)
        assert (low > 1 or high < 1) == (p_value(a, b) < alpha)
        assert ratio_interval(a, 2 * b, alpha=alpha) == pytest.approx((2 * low, 2 * high))

    def test_few_samples_leave_every_ratio_open(self):
        assert ratio_interval(np.arange(1.0, 5), np.arange(10.0, 14), alpha=0.01) == (0, np.inf)

    def test_the_interval_holds_the_true_ratio_as_often_as_it_says(self):
        random = np.random.default_rng(11)
        pairs = random.gamma(20, 1, (2000, 2, 12))
        found = np.array([ratio_interval(a, 1.5 * b, alpha=0.1) for a, b in pairs])
        covered = np.mean((found[:, 0] <= 1.5) & (found[:, 1] >= 1.5))
        assert 0.89 < covered < 0.93


class TestCompare:
    def test_equal_and_shifted_distributions(self):
        random = np.random.default_rng(1)
        base = random.gamma(50, 2, 60)
        assert not records.is_different(base, random.permutation(base))
        assert records.is_different(base, base * 1.3)
        assert not records.is_different(np.full(9, 3.0), np.full(9, 3.0))
        assert records.is_different(np.arange(10.0, 15), np.arange(100.0, 105))

    def test_too_few_samples_are_refused(self):
        with pytest.raises(RecordError, match=r"4 and 4 samples: .* p = 0\.029, .* measure at least 5 per side"):
            records.is_different([1, 2, 3, 4], [5, 6, 7, 8])
        with pytest.raises(RecordError, match="0 and 4 samples"):
            records.is_different([], [5, 6, 7, 8])

    @pytest.mark.parametrize("alpha", [0, 1, 2, -1, float("nan"), float("inf"), "0.01", None, True])
    def test_alpha_is_a_chance(self, alpha):
        with pytest.raises(Refused, match=r"alpha is .*: it is the chance of a false alarm"):
            records.compare(table(), table(), alpha=alpha)
        with pytest.raises(Refused, match="alpha is"):
            records.is_different(np.arange(9.0), np.arange(9.0), alpha=alpha)

    @pytest.mark.parametrize("count", [5, 8, 10])
    @pytest.mark.parametrize("rows", [1, 2, 10, 11, 54, 55, 500, 5000])
    def test_a_tenfold_slowdown_is_never_the_same(self, count, rows):
        """One point is ten times slower, and all others are as they were."""
        random = np.random.default_rng(rows)
        a = random.gamma(50, 2, count)
        slow = {"p_value": p_value(a, 10 * a), "least_p": least_p(count, count), "change_percent": 900.0}
        calm = {"p_value": 0.7, "least_p": least_p(count, count), "change_percent": 0.1}
        judged = verdicts(pd.DataFrame([slow, *[calm] * (rows - 1)]), alpha=0.01)
        can_tell = least_p(count, count) < 0.01 / rows
        assert judged[0] == ("slower" if can_tell else "too few samples")
        assert set(judged[1:]) <= {"same" if can_tell and least_p(count, count) < 0.01 / max(rows - 1, 1) else TOO_FEW}

    @pytest.mark.parametrize(("count", "verdict"), [(4, TOO_FEW), (5, "slower"), (10, "slower")])
    def test_two_records_of_few_samples(self, count, verdict):
        latency_us = np.random.default_rng(count).gamma(400, 0.25, (count, 4))
        (row,) = records.compare(table(latency_us), table(10 * latency_us)).to_dict("records")
        assert row["verdict"] == verdict
        assert (row["low_percent"] == -100) == (row["high_percent"] == np.inf) == (verdict == TOO_FEW)

    def test_rows_that_fall_make_it_easier_for_the_others(self):
        """Eight against eight reach 0.01 / 64 and no less: of 65 rows none falls alone, beside one of many samples all
        do."""
        eight = {"p_value": least_p(8, 8), "least_p": least_p(8, 8), "change_percent": 900.0}
        many = {"p_value": 1e-30, "least_p": 1e-40, "change_percent": -50.0}
        assert set(verdicts(pd.DataFrame([eight] * 65), alpha=0.01)) == {TOO_FEW}
        assert verdicts(pd.DataFrame([*[eight] * 64, many]), alpha=0.01).tolist() == ["slower"] * 64 + ["faster"]

    @pytest.mark.parametrize("digits", [0, 9])
    def test_false_alarms_in_a_whole_table_are_as_rare_as_alpha(self, digits):
        """Of 400 tables of 10 rows in which nothing changed, one in ten may have an alarm; with and without ties."""
        random = np.random.default_rng(7)
        alarms = 0
        for _ in range(400):
            sides = random.gamma(50, 1, (10, 2, 9)).round(digits)
            rows = [{"p_value": p_value(a, b), "least_p": least_p(9, 9), "change_percent": 1.0} for a, b in sides]
            alarms += "slower" in verdicts(pd.DataFrame(rows), alpha=0.1)
        assert 10 <= alarms <= 40 + 3 * 6  # three standard deviations above; not zero, or the test would tell nothing

    def test_points_are_matched_and_judged(self):
        random = np.random.default_rng(2)
        a, b, c = (random.gamma(400, 0.25, (40, 4)) for _ in range(3))
        before = records.join([table(a), table(b, tokens=32)])
        after = records.join([table(c), table(b / 2, tokens=32), table(b, tokens=64)])
        compared = records.compare(before, after).set_index("tokens")
        assert compared["verdict"].to_dict() == {16: "same", 32: "faster"}
        assert compared.loc[32, "change_percent"] == pytest.approx(-50)
        assert (compared.attrs["only_a"], compared.attrs["only_b"]) == (0, 1)
        assert compared.attrs["origin_b"] == records.provenance_of(after)

    def test_nothing_in_common(self):
        with pytest.raises(RecordError, match=r"no point in common \(tokens is 16 and 99\)"):
            records.compare(table(), table(tokens=99))


class TestFiles:
    def test_round_trip(self, tmp_path):
        saved = table()
        path = records.save(saved, tmp_path / "deep" / "records.parquet")
        loaded = records.load(path)
        assert_frame_equal(loaded, saved)
        assert records.provenance_of(loaded) == records.provenance_of(saved)
        assert [entry.name for entry in path.parent.iterdir()] == ["records.parquet"]

    @pytest.mark.parametrize("keep", [0, 3, 100, 0.5, 0.99])
    def test_truncated_files_are_refused(self, tmp_path, keep):
        path = records.save(table(), tmp_path / "records.parquet")
        content = path.read_bytes()
        path.write_bytes(content[: keep if keep > 1 or keep == 0 else int(len(content) * keep)])
        with pytest.raises(
            RecordError, match=r"records\.parquet: (holds no point yet|not a record file|truncated or damaged)"
        ):
            records.load(path)

    @pytest.mark.parametrize("share", [0.3, 0.5, 0.9])
    def test_a_flipped_byte_in_a_column_is_found(self, tmp_path, share):
        path = records.save(table(np.random.default_rng(0).random((500, 4))), tmp_path / "records.parquet")
        group = ParquetFile(path).metadata.row_group(0)
        chunks = [group.column(i) for i in range(group.num_columns)]
        latency = next(chunk for chunk in chunks if chunk.path_in_schema == "latency_us")
        content = bytearray(path.read_bytes())
        begin = latency.dictionary_page_offset or latency.data_page_offset
        content[begin + int(share * latency.total_compressed_size)] ^= 0xFF
        path.write_bytes(content)
        with pytest.raises(RecordError, match="truncated or damaged"):
            records.load(path)

    def test_foreign_files_are_refused(self, tmp_path):
        foreign = tmp_path / "foreign.parquet"
        foreign.write_text("mode,latency_us\none_sided,3\n")
        with pytest.raises(RecordError, match=r"foreign\.parquet: not a record file"):
            records.load(foreign)

    @pytest.mark.parametrize(
        ("attrs", "words"),
        [
            ({}, "no provenance"),
            ({"mnnvl_lab": {"schema": 99}}, "schema 99: this package reads up to"),
            ({"mnnvl_lab": {"schema": 1, "created_at": "today"}}, "provenance lacks device"),
            ({"mnnvl_lab": [1]}, "no provenance"),
        ],
    )
    def test_parquet_of_other_origin_is_refused(self, tmp_path, attrs, words):
        bare = pd.DataFrame(samples())
        bare.attrs = attrs
        bare.to_parquet(tmp_path / "other.parquet")
        with pytest.raises(RecordError, match=rf"other\.parquet: {words}"):
            records.load(tmp_path / "other.parquet")

    def test_columns_of_a_file_are_checked(self, tmp_path):
        lacking = pd.DataFrame(samples()).drop(columns="mode")
        lacking.attrs = {"mnnvl_lab": origin()}
        lacking.to_parquet(tmp_path / "lacking.parquet")
        with pytest.raises(RecordError, match=r"lacking\.parquet: no column mode"):
            records.load(tmp_path / "lacking.parquet")

    def test_a_missing_file_is_named(self, tmp_path):
        with pytest.raises(RecordError, match=r"nowhere\.parquet: no such file"):
            records.load(tmp_path / "nowhere.parquet")

    def test_tables_without_provenance_are_not_saved(self, tmp_path):
        with pytest.raises(RecordError, match="no provenance"):
            records.save(pd.DataFrame(samples()), tmp_path / "records.parquet")
        assert not list(tmp_path.iterdir())

    def test_provenance_that_is_no_json_is_refused(self):
        with pytest.raises(RecordError, match="plain JSON"):
            table(provenance=origin(device=object()))


class TestAppender:
    def test_points_accumulate_and_are_found_again(self, tmp_path):
        path = tmp_path / "sweep.parquet"
        assert records.done_points(path) == set()
        with records.Appender(path, origin()) as out:
            out.add(samples())
            assert len(records.load(path)) == 32
            out.add(samples(tokens=32))
        assert records.done_points(path) == {key_of(table(**more)) for more in ({}, {"tokens": 32})}
        assert [entry.name for entry in tmp_path.iterdir()] == ["sweep.parquet"]

    def test_a_second_sweep_is_refused(self, tmp_path):
        path = tmp_path / "sweep.parquet"
        with records.Appender(path, origin()), pytest.raises(RecordError, match="another sweep is writing it"):
            records.Appender(path, origin(), resume=True)
        records.Appender(path, origin()).close()

    def test_an_existing_file_is_kept_unless_resumed(self, tmp_path):
        path = records.save(table(), tmp_path / "sweep.parquet")
        with pytest.raises(RecordError, match="exists already"):
            records.Appender(path, origin())
        with records.Appender(path, origin(), resume=True) as out:
            assert len(out.done) == 1
            out.add(samples(tokens=32))
        assert records.load(path)["tokens"].nunique() == 2

    def test_another_device_does_not_resume(self, tmp_path):
        path = records.save(table(), tmp_path / "sweep.parquet")
        with pytest.raises(RecordError, match="device differs"):
            records.Appender(path, origin(device="H100"), resume=True)
        records.Appender(path, origin(), resume=True).close()

    def test_a_killed_sweep_leaves_a_sound_file_that_resumes(self, tmp_path):
        path = tmp_path / "sweep.parquet"
        context = multiprocessing.get_context("spawn")
        ready = context.Event()
        sweep = context.Process(target=_append_and_wait, args=(path, ready))
        sweep.start()
        assert ready.wait(60)
        os.kill(sweep.pid, signal.SIGKILL)
        sweep.join()
        (tmp_path / f".sweep.parquet.{'0' * 32}.partial").write_bytes(b"half")
        with records.Appender(path, origin(), resume=True) as out:
            assert len(out.done) == 1
        assert [entry.name for entry in tmp_path.iterdir()] == ["sweep.parquet"]


def _append_and_wait(path, ready):
    with records.Appender(path, origin()) as out:
        out.add(samples())
        ready.set()
        signal.pause()


def test_a_file_holds_json_and_no_code(tmp_path):
    metadata = read_schema(records.save(table(), tmp_path / "records.parquet")).metadata
    assert all(json.loads(value) is not None for value in metadata.values())

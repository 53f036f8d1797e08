import json
import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mnnvl_lab import datasets, records
from mnnvl_lab.analysis import latency_model as lm
from mnnvl_lab.analysis.latency_model import solve
from mnnvl_lab.analysis.latency_model.evaluate import gpu_count
from mnnvl_lab.analysis.latency_model.work import per_gpu
from mnnvl_lab.errors import RecordError, Refused
from mnnvl_lab.plots.compare import prediction_errors
from tools import evaluate, latency_report, predict, report_data

MEDIANS = Path(__file__).parent / "data" / "graph_medians.csv"  # two H100 over NVLink, November 2026
SHAPE = {"hidden": 7168, "experts": 256, "top_k": 8}
SETS = sorted(path for path in (datasets.DATA / "predictions").iterdir() if path.is_dir())
FIRST_SET = {"model.json": "6b7417cdcd43", "nvlink-h100-ep4.csv": "45f696b3497c", "nvlink-h100-ep8.csv": "f5fccbe6cc6c"}

pytestmark = pytest.mark.xdist_group("latency_model")  # side by side, another process would fit the models again


def point(**changes) -> lm.Point:
    return lm.Point(
        **{"mode": "one_sided", "ep_size": 2, "tokens": 128, "payload_in_workspace": True} | SHAPE | changes
    )


@pytest.fixture(scope="module")
def observed() -> list[lm.Observation]:
    rows = pd.read_csv(MEDIANS).to_dict("records")
    return [lm.Observation.of(point(**row), latency_us) for row in rows for latency_us in [row.pop("latency_us")]]


@pytest.fixture(scope="module")
def models() -> dict[str, lm.LatencyModel]:
    return {model.mode: model for model in report_data.fitted()[0]}


@pytest.fixture(scope="module")
def left_out(observed) -> pd.DataFrame:
    return lm.leave_one_out(observed)


def samples(medians: pd.DataFrame, **changes) -> pd.DataFrame:
    """Records with these medians: five iterations of two ranks around each."""
    shared = {"tp": 1, "pcp": 1, "pp": 1, "format": "bf16", "routing": "uniform", "seed": 0, "checked": "exact"}
    rows = [
        row
        | SHAPE
        | shared
        | {"dp": row["ep_size"], "clock": "graph", "phase": "round", "rank": rank, "iteration": i}
        | {"latency_us": row["latency_us"] * (1 + 0.01 * (i - 2)) - (1 - rank), "payload_in_workspace": True}
        | changes
        for row in medians.drop(columns="ranks_per_gpu").to_dict("records")
        for i in range(5)
        for rank in range(2)
    ]
    origin = {"schema": 1, "created_at": "2026-11-24", "device": "2 x NVIDIA H100 80GB HBM3", "topology": "NVLink"}
    return records.new_table(rows, origin)


class TestWork:
    def test_bytes_of_a_pair_of_gpus(self):
        """4096 tokens carry 58.5 MB each way (measured.md): nearly all tokens go to both ranks."""
        work = lm.work_of(point(tokens=4096))
        assert work.combine_link_bytes == pytest.approx(58.5e6, rel=0.005)
        assert work.dispatch_link_bytes / work.combine_link_bytes == pytest.approx(1 + 64 / 14336)
        assert work.slot_bytes == 2 * 4096 * 8 * 7168 * 2
        assert work.staged_bytes == 0
        assert lm.work_of(point(tokens=4096, payload_in_workspace=False)).staged_bytes > 2 * 2 * 58.0e6

    def test_ranks_that_share_gpus_share_links(self):
        """Four of eight ranks per GPU: 16 pairs of ranks cross each way."""
        work = lm.work_of(point(ep_size=8, fabric="shared_gpu", ranks_per_gpu=4, tokens=64, routing="balanced"))
        assert work.combine_link_bytes == 4 * 4 * 64 * 14336
        alone = lm.work_of(point(ep_size=8, fabric="shared_gpu", ranks_per_gpu=8, tokens=64))
        assert alone.dispatch_link_bytes == alone.combine_link_bytes == 0

    @given(st.integers(1, 5), st.integers(1, 4), st.integers(0, 2**32))
    def test_gpus_sum_their_ranks(self, gpus, each, seed):
        matrix = np.random.default_rng(seed).integers(0, 100, (gpus * each, gpus * each))
        blocks = matrix.reshape(gpus, each, gpus, each)
        assert (per_gpu(matrix, each) == blocks.sum(axis=(1, 3))).all()

    def test_fp8_dispatch_halves_the_link(self):
        bf16, fp8 = (lm.work_of(point(tokens=512, format=name)) for name in ("bf16", "fp8_block"))
        assert fp8.dispatch_link_bytes / bf16.dispatch_link_bytes == pytest.approx((7168 + 224 + 64) / (14336 + 64))
        assert fp8.combine_link_bytes == bf16.combine_link_bytes

    def test_host_and_shared_nvlink_are_refused(self):
        with pytest.raises(Refused, match="fabric is host"):
            point(fabric="host")
        with pytest.raises(Refused, match="GPU of its own"):
            point(ranks_per_gpu=2)


class TestFit:
    @pytest.mark.parametrize("mode", list(lm.TERMS))
    def test_points_of_a_known_model_are_predicted(self, mode):
        truth = {p.name: p.prior * p.factor**0.7 for p in lm.TERMS[mode].parameters}
        places = [point(mode=mode, ep_size=ep, tokens=t) for ep in (2, 8) for t in (1, 32, 256, 700, 2048, 6000)]
        made = [lm.Observation.of(p, lm.TERMS[mode].latency_us(truth, lm.work_of(p))) for p in places]
        model = lm.fit(made)
        new = point(mode=mode, ep_size=4, tokens=1000)
        predicted = model.predict(new)
        latency_us = lm.TERMS[mode].latency_us(truth, lm.work_of(new))
        assert predicted.latency_us == pytest.approx(latency_us, rel=0.05)
        assert predicted.low_us < latency_us < predicted.high_us

    def test_recorded_points_left_out_are_predicted(self, left_out):
        assert len(left_out) == 34
        errors = left_out.assign(size=left_out["error_percent"].abs()).groupby("fabric")["size"]
        assert errors.median()["nvlink"] < 10
        assert errors.max()["nvlink"] < 25
        assert errors.max()["shared_gpu"] < 25

    def test_twice_as_many_ranks_are_predicted(self, observed):
        """Fitted without EP8, its interval holds the recorded latencies of EP8."""
        for mode in ("one_sided", "two_sided"):
            of_mode = [o for o in observed if o.point.mode == mode]
            model = lm.fit([o for o in of_mode if o.point.ep_size < 8])
            for seen in (o for o in of_mode if o.point.ep_size == 8):
                predicted = model.predict(seen.point)
                assert predicted.low_us < seen.latency_us < predicted.high_us

    def test_what_no_record_tells_stays_as_wide_as_its_prior(self, observed):
        model = lm.fit([o for o in observed if o.point.mode == "allgather_reducescatter"])
        table = model.table().set_index("parameter")
        assert table.loc["hop_us", "factor"] == pytest.approx(table.loc["hop_us", "prior_factor"], rel=1e-3)
        assert table.loc["eager_us", "factor"] < 1.1
        widths = []
        for ep_size in (2, 8):
            p = model.predict(point(mode="allgather_reducescatter", ep_size=ep_size, tokens=1))
            widths.append(p.high_us / p.low_us)
        assert widths[1] > 1.2 * widths[0]

    def test_how_much_of_a_parameter_is_from_data(self, observed):
        two = lm.fit([o for o in observed if o.point.mode == "allgather_reducescatter"]).table().set_index("parameter")
        assert two.loc["hop_us", "from_data"] == pytest.approx(0, abs=0.01)
        assert two.loc["eager_us", "from_data"] > 0.9

    def test_points_held_against_a_model_leave_it_as_it_is(self, observed):
        of_mode = [o for o in observed if o.point.mode == "one_sided"]
        model = lm.fit(of_mode[:-1])
        table = lm.holdout_errors(model, [*of_mode[-1:], *(o for o in observed if o.point.mode == "two_sided")])
        assert table["predicted_us"].tolist() == pytest.approx([model.predict(of_mode[-1].point).latency_us])
        assert table["latency_us"].tolist() == [of_mode[-1].latency_us]

    def test_mixed_or_few_points_are_refused(self, observed):
        with pytest.raises(Refused, match="one by one"):
            lm.fit(observed)
        with pytest.raises(Refused, match="three or more"):
            lm.fit(observed[:2])
        with pytest.raises(Refused, match="of mode two_sided"):
            lm.fit(observed[:6]).predict(point(mode="two_sided"))


class TestMinima:
    """The records that the committed predictions were fitted to; one start finds a worse minimum of both NCCL modes."""

    @staticmethod
    def problem(model) -> solve.Problem:
        recorded_logs = np.log([o.latency_us for o in model.observations])
        works = [o.work for o in model.observations]
        return solve.Problem(terms=model.terms, works=works, recorded=recorded_logs)

    @pytest.mark.parametrize(("mode", "one_start"), [("allgather_reducescatter", 10.65), ("all_to_all", 17.04)])
    def test_the_fit_is_better_than_that_from_the_priors_alone(self, models, mode, one_start):
        problem = self.problem(models[mode])
        alone = solve.least_squares(problem.residuals(), problem.prior, x_scale=problem.width)
        assert models[mode].optima[0].objective < 2 * alone.cost - 1
        assert models[mode].optima[0].objective < one_start - 1

    @pytest.mark.parametrize("mode", list(lm.TERMS))
    def test_other_starting_points_find_nothing_better(self, models, mode):
        problem = self.problem(models[mode])
        others = solve.minima(problem, solve.starting_points(problem, starts=200, seed=7))
        assert models[mode].optima[0].objective == pytest.approx(others[0].objective, abs=0.01)

    @pytest.mark.parametrize("mode", list(lm.TERMS))
    def test_each_rival_fits_as_well_and_is_in_the_range_that_the_table_gives(self, models, mode):
        model = models[mode]
        residuals, table = self.problem(model).residuals(), model.table()
        found = solve.rivals(model.optima)
        for optimum in found:
            r = residuals(optimum.logs)
            assert r @ r == pytest.approx(optimum.objective)
            assert optimum.objective - model.optima[0].objective <= solve.RIVAL
        values = np.exp([o.logs for o in found])
        assert table["low"].tolist() == pytest.approx(values.min(axis=0))
        assert table["high"].tolist() == pytest.approx(values.max(axis=0))
        assert table["value"].tolist() == pytest.approx(values[0])

    def test_a_rate_that_several_minima_disagree_about_is_shown_as_uncertain(self, models):
        """13 points do not say whether NCCL's low-latency protocol moves 37 or 92 GB/s."""
        row = models["all_to_all"].table().set_index("parameter").loc["eager_gigabytes_per_s"]
        assert row["high"] / row["low"] > 2
        assert (models["one_sided"].table()["low"] == models["one_sided"].table()["high"]).all()

    def test_an_interval_holds_what_every_rival_predicts(self, models):
        model = models["all_to_all"]
        for tokens in (1, 128, 4096):
            p = point(mode="all_to_all", ep_size=4, tokens=tokens)
            log = solve.log_latencies(model.terms, [lm.work_of(p)])
            predicted = model.predict(p)
            for optimum in solve.rivals(model.optima):
                assert predicted.low_us < np.exp(log(optimum.logs)[0]) < predicted.high_us

    def test_a_fit_repeats_to_the_last_digit(self, models):
        again = lm.fit(models["all_to_all"].observations)
        assert again.minima().equals(models["all_to_all"].minima())

    def test_works_of_several_rounds_are_computed_together(self):
        works = [lm.work_of(point(mode="two_sided", tokens=tokens)) for tokens in (1, 100, 4096)]
        for terms in lm.TERMS.values():
            values = {p.name: p.prior for p in terms.parameters}
            together = terms.latency_us(values, solve.stacked(works))
            assert together == pytest.approx([terms.latency_us(values, work) for work in works])


@settings(max_examples=20)
@given(st.integers(1, 2000), st.sampled_from(list(lm.TERMS)), st.sampled_from(["bf16", "fp8_block", "nvfp4"]))
def test_more_tokens_never_take_less(tokens, mode, form):
    """For the same ranks per token: these are drawn, so a larger batch may need fewer on average."""
    values = {p.name: p.prior for p in lm.TERMS[mode].parameters}
    few, many = (lm.work_of(point(mode=mode, tokens=n, format=form, ep_size=4)) for n in (tokens, 2 * tokens))
    many = replace(many, targets=few.targets)
    assert lm.TERMS[mode].latency_us(values, few) <= lm.TERMS[mode].latency_us(values, many)


class TestData:
    def test_records_become_observations(self, observed):
        medians = pd.read_csv(MEDIANS).query("mode == 'one_sided'").reset_index(drop=True)
        found = lm.observations(samples(medians))
        assert [(o.point, pytest.approx(o.latency_us)) for o in found] == [
            (o.point, o.latency_us) for o in observed if o.point.mode == "one_sided"
        ]

    def test_the_record_says_how_many_ranks_share_a_gpu(self):
        table = samples(pd.read_csv(MEDIANS).query("fabric == 'shared_gpu'").head(1))
        assert lm.observations(table)[0].point.ranks_per_gpu == 2
        table.attrs["mnnvl_lab"] = table.attrs["mnnvl_lab"] | {"ranks_per_gpu": 4}
        assert lm.observations(table)[0].point.ranks_per_gpu == 4

    def test_other_clocks_are_left_out(self):
        medians = pd.read_csv(MEDIANS).head(3)
        with pytest.raises(Refused, match="graph clock"):
            lm.observations(samples(medians, clock="eager"))

    def test_gpus_are_counted_by_the_device(self):
        assert gpu_count("8 x NVIDIA H100 80GB HBM3") == 8
        assert gpu_count("NVIDIA H100") is None

    def test_predictions_never_join_records(self, observed):
        model = lm.fit([o for o in observed if o.point.mode == "one_sided"])
        table = lm.frame([model.predict(point())])
        assert table.loc[0, "kind"] == "prediction"
        assert "latency_us" not in table.columns
        with pytest.raises(RecordError):
            records.join([samples(pd.read_csv(MEDIANS).head(1)), table])


class TestTool:
    def test_predictions_say_what_they_come_from(self, tmp_path):
        medians = pd.read_csv(MEDIANS).query("mode in ('one_sided', 'two_sided')")
        path = records.save(samples(medians[medians["fabric"] == "nvlink"]), tmp_path / "pair.parquet")
        predict.main([str(path), "--out", str(tmp_path / "out"), "--ep-sizes", "4", "8", "--tokens", "1", "512"])
        for ep_size in (4, 8):
            table = pd.read_csv(tmp_path / "out" / f"nvlink-h100-ep{ep_size}.csv")
            assert set(table["kind"]) == {"prediction"}
            assert set(table["ep_size"]) == {ep_size}
            assert (table["low_us"] < table["predicted_us"]).all()
            assert (table["predicted_us"] < table["high_us"]).all()
        about = json.loads((tmp_path / "out" / "model.json").read_text())
        assert about["kind"] == "prediction"
        assert about["training"][0]["sha256"] == predict.sha256(path)
        assert {row["mode"] for row in about["leave_one_out"]} == {"one_sided", "two_sided"}
        assert max(row["worst_percent"] for row in about["leave_one_out"]) < 25
        assert set(about["parameters"]) == {"one_sided", "two_sided"}

    def test_what_is_predicted_was_not_trained_on(self, observed):
        eight = replace(observed[0].point, ep_size=8)
        seen = [*observed, lm.Observation.of(eight, 1.0)]
        assert predict.training(seen, [4, 8], "h100") == observed

    def test_other_routings_and_formats_test_the_model_alone(self, observed):
        others = [replace(observed[0].point, **change) for change in ({"format": "fp8_block"}, {"routing": "zipf:1.2"})]
        tests = [lm.Observation.of(other, 1.0) for other in others]
        assert predict.training([*observed, *tests], [4], "h100") == observed
        assert predict.testing([*observed, *tests], [4], "h100") == tests
        everything = [*observed, *tests]
        assert predict.training(everything, [2], "h200") == [o for o in everything if o not in tests]

    def test_files_without_rounds_of_graphs_are_left_out_aloud(self, tmp_path, capsys):
        eager = records.save(samples(pd.read_csv(MEDIANS).head(3), clock="eager"), tmp_path / "eager.parquet")
        aside = records.save_auxiliary(
            samples(pd.read_csv(MEDIANS).head(3)).assign(knob=1), tmp_path / "x", kind="knobs"
        )
        assert predict.read([eager, aside]) == {}
        assert capsys.readouterr().err.count("left out") == 2


class TestJudge:
    """Synthetic records of eight GPUs against predictions that are wrong by known amounts."""

    @pytest.fixture
    def eight(self) -> pd.DataFrame:
        tokens, mode = [1, 64, 4096], "one_sided"
        return pd.DataFrame(
            {"mode": mode, "fabric": "nvlink", "ep_size": 8, "tokens": tokens, "ranks_per_gpu": 1}
        ).assign(latency_us=[20.0, 50.0, 1000.0])

    @staticmethod
    def predictions(eight, factors) -> pd.DataFrame:
        made = [
            lm.Prediction(
                point=point(ep_size=8, tokens=t), latency_us=us * f, low_us=us * f * 0.9, high_us=us * f * 1.1
            )
            for t, us, f in zip(eight["tokens"], eight["latency_us"], factors, strict=True)
        ]
        return lm.frame(made)

    def test_errors_are_those_that_were_made(self, eight):
        table = lm.evaluated(self.predictions(eight, (1.0, 1.2, 0.95)), lm.observations(samples(eight)))
        assert table["error_percent"].tolist() == pytest.approx([0, 20, -5], abs=0.1)
        assert table["inside"].tolist() == [True, False, True]
        (line,) = lm.score(table).to_dict("records")
        assert (line["points"], line["inside_percent"]) == (3, pytest.approx(200 / 3))
        assert [line[f"{n}_percent"] for n in ("median", "worst", "bias")] == pytest.approx([5, 20, 0], abs=0.1)

    def test_only_what_was_predicted_is_judged(self, eight):
        predictions = self.predictions(eight, (1, 1, 1))
        with pytest.raises(Refused, match="was predicted"):
            lm.evaluated(predictions, lm.observations(samples(eight, routing="zipf:1.2")))
        with pytest.raises(Refused, match="kind 'prediction'"):
            lm.evaluated(eight, lm.observations(samples(eight)))

    def test_records_of_another_gpu_are_compared_with_its_own_predictions(self, tmp_path, capsys):
        pair = samples(pd.read_csv(MEDIANS).query("fabric == 'nvlink'"))
        pair.attrs["mnnvl_lab"] = pair.attrs["mnnvl_lab"] | {"device": "2 x NVIDIA H200"}
        assert evaluate.main([str(records.save(pair, tmp_path / "pair.parquet"))]) == 0
        said = capsys.readouterr().out
        assert "predicted for H200; recorded on 2 x NVIDIA H200" in said
        assert said.count("\n## ") == 1

    def test_every_committed_set_of_predictions_is_judged(self, eight, tmp_path, capsys):
        path = records.save(samples(eight), tmp_path / "eight.parquet")
        assert evaluate.main([str(path)]) == 0
        sections = capsys.readouterr().out.split("\n## ")[1:]
        sets = [folder for folder in SETS if (folder / "nvlink-h100-ep8.csv").exists()]
        assert len(sections) == len(sets) == 2
        for folder, text in zip(sets, sections, strict=True):
            table = pd.read_csv(folder / "nvlink-h100-ep8.csv")
            (row,) = table.query("mode == 'one_sided' and tokens == 4096 and format == 'bf16'").to_dict("records")
            assert text.startswith(folder.name)
            assert f"| one_sided | 4096 | bf16 | 1000.0 | {row['predicted_us']:.1f} |" in text
            assert "0 recorded points were not predicted" in text

    def test_what_cannot_be_judged_is_said(self, tmp_path, capsys):
        pair = str(datasets.DATA / f"{report_data.PAIR}.parquet")
        assert evaluate.main([pair]) == 1
        assert evaluate.main([pair, "--predictions", str(tmp_path)]) == 1
        assert "no CSV files" in capsys.readouterr().err


class TestCommitted:
    """What `data/predictions/` says of itself."""

    @pytest.mark.parametrize("folder", SETS, ids=lambda folder: folder.name)
    def test_each_set_names_the_records_it_was_fitted_to(self, folder):
        about = json.loads((folder / "model.json").read_text())
        names = {f"{name}.parquet": datasets.DATA / f"{name}.parquet" for name in report_data.FITTED_TO}
        assert {o["file"]: o["sha256"] for o in about["training"]} == {n: predict.sha256(p) for n, p in names.items()}
        assert about["created_at"].startswith(folder.name[:10])

    def test_the_latest_set_is_what_the_model_predicts(self, models):
        for ep_size in report_data.PREDICTED:
            committed = pd.read_csv(report_data.LATEST / f"nvlink-h100-ep{ep_size}.csv")
            made = predict.predictions(
                list(models.values()), ep_size=ep_size, tokens=predict.TOKENS, model="deepseek-v3"
            )
            for name in ("predicted_us", "low_us", "high_us"):
                assert committed[name].to_numpy() == pytest.approx(made[name].to_numpy(), rel=1e-3), name

    def test_the_first_set_is_as_it_was_before_anything_was_measured(self):
        """Its digests, from the commit that brought it."""
        first = datasets.DATA / "predictions" / "2026-11-24-one-start"
        digests = {path.name: predict.sha256(path)[:12] for path in sorted(first.iterdir())}
        assert digests == FIRST_SET


class TestReport:
    def test_every_error_is_a_point(self, left_out):
        ax = prediction_errors(left_out, device="2 x H100")
        drawn = np.concatenate([points.get_offsets() for points in ax.collections])
        assert sorted(map(tuple, drawn)) == sorted(zip(left_out["latency_us"], left_out["error_percent"], strict=True))
        legend = [text.get_text() for text in ax.get_legend().get_texts()]
        assert legend == ["one-sided", "two-sided", "all-gather / reduce-scatter", "all-to-all"]

    def test_parts_are_replaced_and_the_rest_stays(self, monkeypatch, capsys):
        def absent():
            raise Refused("no record")

        parts = {"one": lambda: "new \\1", "two": absent}
        monkeypatch.setattr(latency_report, "PARTS", parts)
        page = "a\n<!-- one -->\nold\n<!-- /one -->\nb\n<!-- two -->\nkept\n<!-- /two -->\n"
        assert latency_report.filled(page) == page.replace("old", "new \\1")
        assert "two: left as it is: no record" in capsys.readouterr().err

    def test_pages_name_parts_that_exist(self):
        for page in ("latency.md", "method.md"):
            text = (latency_report.DOCS / page).read_text()
            names = re.findall("<!-- (\\w+) -->", text)
            assert names
            assert set(names) <= set(latency_report.PARTS)
            assert all(f"<!-- /{name} -->" in text for name in names)

    def test_later_records_do_not_enter_the_fit(self):
        assert not set(report_data.FITTED_TO) & set(report_data.RECORDED_LATER)

    def test_a_round_is_its_bytes_and_what_they_leave(self):
        lines = latency_report.budget().splitlines()[2:]
        values = [float(line.split("|")[2]) for line in lines]
        assert values[0] == pytest.approx(values[1] + values[2] + values[3], abs=0.16)
        megabytes, rate = (float(re.search(rf"([\d.]+) {unit}", lines[1])[1]) for unit in ("MB", "GB/s"))
        assert values[1] == pytest.approx(1e3 * megabytes / rate, rel=2e-3)

    def test_results_are_medians_of_the_slowest_rank(self):
        samples = datasets.load_recorded(report_data.PAIR)
        chosen = samples.query("mode == 'two_sided' and clock == 'graph' and tokens == 4096 and routing == 'uniform'")
        expected = np.median(chosen.pivot(index="iteration", columns="rank", values="latency_us").max(axis=1))
        row = next(line for line in latency_report.results().splitlines() if line.startswith("| two_sided | 4096 "))
        assert float(row.split("|")[5]) == pytest.approx(expected, abs=0.051)

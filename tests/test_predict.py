"""Predictions: marked as such, above their bounds, within what was measured, and refused where nothing can be said."""

import json
import math
import shutil
import subprocess
import sys

import numpy as np
import pandas as pd
import pytest

import mnnvl_lab as lab
from mnnvl_lab import datasets, records
from mnnvl_lab.__main__ import main
from mnnvl_lab.analysis import latency_model as lm
from mnnvl_lab.errors import RecordError, Refused
from mnnvl_lab.hardware import GPUS, require_gpu
from mnnvl_lab.layout import Layout
from mnnvl_lab.prediction import calibration, load_calibration
from mnnvl_lab.prediction.parts import CAUSES
from mnnvl_lab.prediction.phase_costs import PHASE_PARTS
from mnnvl_lab.prediction.round_costs import ROUND_PARTS
from mnnvl_lab.prediction.rows import expected_rows_RR
from mnnvl_lab.prediction.table_fit import collector_rows_RR, figures_of, fit_figures, left_out
from mnnvl_lab.published import read_aiconfigurator
from mnnvl_lab.routing import Load, parse, traffic

V3 = {"model": "deepseek-v3"}
SHAPE = {"hidden": 7168, "experts": 256, "top_k": 8}
TOKENS = (1, 16, 128, 1024, 8192)
TABLE = "aiconfigurator_gb200"
FIELDS = {"latency_us", "dispatch_us", "combine_us", "low_us", "high_us", "bound_us", "dominated_by", "basis"}


@pytest.fixture(scope="module")
def figures():
    return figures_of(datasets.load_published(TABLE), gpu=require_gpu("gb200"))


@pytest.mark.parametrize("gpu", ["h100", "h200", "gb200"])
@pytest.mark.parametrize("routing", ["uniform", "zipf:1.2", "hot_rank:0.5", "balanced"])
def test_a_prediction_lies_in_its_interval_and_above_its_bound(gpu, routing):
    found = lab.predict(Layout(tp=2, dp=4), **V3, tokens=TOKENS, gpu=gpu, routing=routing)
    assert {one.mode for one in found.rounds} >= {"one_sided", "two_sided"}
    for one in found.rounds:
        assert 0 < one.bound_us <= one.low_us <= one.latency_us <= one.high_us
        assert one.dominated_by in CAUSES
        assert (
            math.isclose(one.dispatch_us + one.combine_us, one.latency_us, rel_tol=1e-9)
            or one.latency_us == one.bound_us
        )
        assert one.basis.startswith(gpu.upper())


def test_more_tokens_take_longer():
    for gpu in ("h100", "gb200"):
        found = lab.predict(Layout(dp=8), **V3, tokens=TOKENS, gpu=gpu, routing="balanced")
        for mode in found.modes:
            line = [one.latency_us for one in found.rounds if one.mode == mode]
            assert line == sorted(line), (gpu, mode)


def test_few_tokens_are_launches_and_many_the_link():
    found = lab.predict(Layout(dp=8), **V3, tokens=(1, 8192), mode="one_sided", gpu="gb200")
    assert [one.dominated_by for one in found.rounds] == ["launches and flags", "link"]


def test_h100_has_the_baselines_and_says_what_is_extrapolated():
    found = lab.predict(Layout(dp=8), **V3)
    assert set(found.modes) == set(lm.TERMS)
    assert "EP 2" in found["one_sided"].basis
    assert "EP8 extrapolated" in found["one_sided"].basis
    assert "extrapolated" not in lab.predict(Layout(dp=2), **V3)["one_sided"].basis


def test_an_h200_without_records_says_whose_fit_it_uses():
    basis = lab.predict(Layout(dp=2), **V3, gpu="h200")["two_sided"].basis
    own = (datasets.DATA / "models" / "h200.json").is_file()
    assert ("fitted to records" in basis and "H100" not in basis) if own else ("H100's fit" in basis)


@pytest.mark.parametrize("gpu", ["b200", "b300", "gb300", "h20"])
def test_gpus_without_measurements_have_bounds_alone(gpu):
    found = lab.predict(Layout(dp=8), **V3, gpu=gpu)
    for one in found.rounds:
        assert one.bound_us > 0
        assert one.latency_us is one.low_us is one.dominated_by is None
        assert "bounds only" in one.basis
    assert "bounds only" in str(found)


def test_a_device_of_its_own_numbers_has_bounds_alone():
    from dataclasses import replace

    mine = replace(require_gpu("h100"), name="Mine", nvlink_gigabytes_per_s=100)
    assert lab.predict(Layout(dp=8), **V3, gpu=mine)["one_sided"].latency_us is None


def test_a_mode_without_measurements_has_a_bound_alone():
    one = lab.predict(Layout(dp=8), **V3, gpu="gb200", mode="all_to_all")["all_to_all"]
    assert one.latency_us is None
    assert one.bound_us > 0
    assert "no measurements of all_to_all" in one.basis


@pytest.mark.parametrize(
    ("layout", "gpu", "reason"),
    [
        (Layout(dp=16), "h100", "spans 2 NVLink domains"),
        (Layout(dp=72, gpus_per_node=4), "gb200", "64"),
        (Layout(dp=16, gpus_per_node=8), "b200", "spans 2 NVLink domains"),
    ],
)
def test_what_cannot_run_is_not_predicted(layout, gpu, reason):
    one = lab.predict(layout, **V3, gpu=gpu)["one_sided"]
    assert reason in one.refusal
    assert one.latency_us is one.bound_us is None


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"tokens": 0}, r"tokens is 0: it must be a whole number of at least 1"),
        ({"tokens": 2**30}, r"tokens is 1073741824: it must be at most"),
        ({"tokens": ()}, "tokens is empty"),
        ({"tokens": True}, "tokens is True"),
        ({"gpu": "h1000"}, "did you mean h100"),
        ({"mode": "onesided"}, "did you mean one_sided"),
        ({"format": "fp4"}, "did you mean nvfp4"),
        ({"routing": "zip"}, "did you mean zipf"),
        ({"routing": "zipf:-1"}, r"must lie in \[0, 10\]"),
        ({"model": "deepseek"}, "did you mean deepseek-v3"),
        ({"model": None}, "hidden, experts, top_k missing"),
        ({"hidden": 7168}, "model and hidden given"),
        ({"seed": -1}, "seed is -1"),
        ({"layout": Layout()}, "ep_size is 1 = DP 1 x PCP 1 x TP 1: one rank exchanges nothing"),
        ({"layout": 8}, "layout is 8"),
    ],
)
def test_bad_input_is_refused_with_value_rule_and_remedy(changes, message):
    given = {"layout": Layout(dp=8), **V3} | changes
    with pytest.raises(Refused, match=message):
        lab.predict(given.pop("layout"), **given)


def test_predictions_are_marked_and_never_join_records():
    found = lab.predict(Layout(dp=8), **V3, tokens=TOKENS)
    frame = found.to_frame()
    assert set(frame["kind"]) == {"prediction"}
    assert found.to_dict()["kind"] == "prediction"
    assert "Predicted, not measured" in str(found)
    assert "Predicted, not measured" in found._repr_html_()
    with pytest.raises(RecordError):
        records.join([frame, frame])


def test_the_json_has_each_mode_under_its_name(capsys):
    arguments = [
        "predict",
        "--dp",
        "8",
        "--model",
        "deepseek-v3",
        "--tokens",
        "128",
        "--gpu",
        "gb200",
        "--format",
        "nvfp4",
        "--json",
    ]
    assert main(arguments) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["tokens"] == 128
    assert found["layout"]["ep_size"] == 8
    for mode in ("one_sided", "two_sided"):
        assert set(found[mode]) >= FIELDS
        assert found[mode]["low_us"] <= found[mode]["latency_us"] <= found[mode]["high_us"]


def test_the_json_of_several_token_counts_has_points(capsys):
    assert main(["predict", "--dp", "4", "--model", "deepseek-v3", "--tokens", "1", "128", "--json"]) == 0
    points = json.loads(capsys.readouterr().out)["points"]
    assert [point["tokens"] for point in points] == [1, 128]
    assert points[0]["one_sided"]["latency_us"] < points[1]["one_sided"]["latency_us"]


@pytest.mark.parametrize(
    ("arguments", "status", "message"),
    [
        ("--dp 16 --model deepseek-v3", 1, "spans 2 NVLink domains"),
        ("--dp 8 --model deepseek-v3 --tokens 0", 2, "tokens is 0"),
        ("--dp 8 --model deepseek-v3 --tokens many", 2, "whole number"),
        ("--dp 8", 2, "not given"),
        ("--model deepseek-v3", 2, "one rank exchanges nothing"),
    ],
)
def test_the_command_says_what_is_wrong_in_one_line(arguments, status, message, capsys):
    try:
        found = main(["predict", *arguments.split()])
    except SystemExit as exit:
        found = exit.code
    error = capsys.readouterr().err
    assert found == status
    assert message in error
    assert error.count("\n") == 1


def test_predicting_needs_neither_torch_nor_ranks():
    code = (
        "import sys, mnnvl_lab as lab; lab.predict(lab.Layout(dp=8), model='deepseek-v3', gpu='gb200');"
        "print({'torch', 'flashinfer', 'ipyparallel', 'matplotlib'} & set(sys.modules))"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "set()\n"


def test_an_installed_package_says_what_it_lacks(tmp_path):
    with pytest.raises(RecordError, match="source checkout"):
        load_calibration("h100", tmp_path / "none")


def test_a_damaged_model_is_refused(tmp_path):
    shutil.copy(calibration.FOLDER / "gb200.json", tmp_path / "gb200.json")
    path = tmp_path / "gb200.json"
    path.write_text(path.read_text().replace('"covariance"', '"variance"'))
    with pytest.raises(RecordError, match=r"tools\.calibrate"):
        load_calibration("gb200", tmp_path)


# The model itself


@pytest.mark.parametrize(
    "routing", ["uniform", "zipf:1.2", "log_normal:1", "hot_rank:0.5", "hot_expert:0.5", "balanced"]
)
@pytest.mark.parametrize("ep_size", [2, 8, 16, 64])
def test_expected_rows_are_close_to_drawn_ones(routing, ep_size):
    numbers = {"experts": 256, "top_k": 8, "ep_size": ep_size}
    drawn = traffic.rows_RR(Load(routing=parse(routing), tokens=600), **numbers)
    expected = expected_rows_RR(parse(routing), tokens=600, **numbers)
    for fullest in (lambda m: traffic.wire(m).sum(axis=0).max(), lambda m: m.sum(axis=1).max(), lambda m: m.sum()):
        assert fullest(expected) == pytest.approx(fullest(drawn), rel=0.06)


def test_few_rows_are_drawn_exactly():
    numbers = {"experts": 256, "top_k": 8, "ep_size": 8}
    drawn = traffic.rows_RR(Load(routing=parse("zipf:1.2"), tokens=64, seed=3), **numbers)
    assert (expected_rows_RR(parse("zipf:1.2"), tokens=64, seed=3, **numbers) == drawn).all()


@pytest.mark.parametrize("mode", list(lm.TERMS))
@pytest.mark.parametrize("tokens", [1, 256, 4096])
def test_causes_and_phases_add_up_to_the_latency_model(mode, tokens):
    """The breakdown is the model's own latency, term by term."""
    point = lm.Point(mode=mode, ep_size=8, tokens=tokens, **SHAPE)
    part, terms = ROUND_PARTS[mode], lm.TERMS[mode]
    values = {p.name: p.prior for p in terms.parameters}
    work = lm.work_of(point)
    costs = part.costs(values, vars(work))
    assert {phase for phase, _ in costs} == {"dispatch", "combine"}
    assert {cause for _, cause in costs} <= set(CAUSES)
    assert min(map(float, costs.values())) >= 0
    assert float(sum(costs.values())) == pytest.approx(float(terms.latency_us(values, work)))


def test_shared_gpus_are_taken_apart_too():
    point = lm.Point(mode="two_sided", ep_size=8, tokens=64, fabric="shared_gpu", ranks_per_gpu=4, **SHAPE)
    for mode in ("one_sided", "two_sided"):
        values = {p.name: p.prior for p in lm.TERMS[mode].parameters}
        work = lm.work_of(point)
        total = float(sum(ROUND_PARTS[mode].costs(values, vars(work)).values()))
        assert total == pytest.approx(float(lm.TERMS[mode].latency_us(values, work)))


# GB200: aiconfigurator's table


def test_left_out_ep_sizes_are_predicted_within_ten_per_cent(figures):
    """Median error by phase, each EP size predicted by a fit to all others; the stored errors are these."""
    stored = load_calibration("gb200")
    for of_phase in figures:
        sizes = left_out(of_phase)["error_percent"].abs()
        kept = next(f for f in stored.parts[of_phase.part.mode] if f.part.name == of_phase.part.name)
        assert sizes.median() <= 10
        assert kept.errors["median_percent"] == pytest.approx(sizes.median(), abs=0.2)
        assert kept.errors["worst_percent"] == pytest.approx(sizes.max(), abs=2)


def test_the_stored_model_is_a_fit_to_the_file_in_the_repository(figures):
    stored = load_calibration("gb200")
    (entry,) = stored.fitted_to
    line = next(line for line in (datasets.FOLDER / "SHA256SUMS").read_text().splitlines() if TABLE in line)
    assert entry["sha256"] == line.split()[0]
    for of_phase in figures:
        kept = next(f for f in stored.parts[of_phase.part.mode] if f.part.name == of_phase.part.name)
        assert fit_figures(of_phase) == pytest.approx(kept.optima[0], abs=0.05)


@pytest.mark.parametrize("gpu", ["h100", "h200", "gb200"])
def test_models_name_files_that_are_here_unchanged(gpu):
    import hashlib

    found = load_calibration(gpu)
    if found is None:
        pytest.skip(f"{gpu} has no model of its own")
    for entry in found.fitted_to:
        path = datasets.DATA / entry["file"]
        assert hashlib.sha256(path.read_bytes()).hexdigest() == entry["sha256"], f"run python -m tools.calibrate {gpu}"


def test_the_interval_holds_what_the_table_says():
    """95 % of the figures of a round lie in the interval of its prediction, outliers included in the count."""
    table = datasets.load_published(TABLE)
    nvfp4 = table[(table["format"] == "nvfp4") | table["caveat"].str.contains("after dispatch in nvfp4")]
    rounds = nvfp4.groupby(["mode", "ep_size", "tokens"])["value"].sum()
    inside = []
    for ep_size in (4, 8, 16, 32):
        tokens = [n for n in sorted(table["tokens"].unique()) if n <= 20480]
        layout = Layout(dp=ep_size, gpus_per_node=4)
        found = lab.predict(layout, **V3, tokens=tokens, gpu="gb200", format="nvfp4", routing="balanced")
        inside += [one.low_us <= rounds[one.mode, ep_size, one.tokens] <= one.high_us for one in found.rounds]
    assert np.mean(inside) >= 0.93


def test_blog18_was_not_fitted_and_is_predicted():
    """One-sided bf16, EP 8 to 64 on GB200: another format and larger EP than the table's one-sided figures."""
    blog = datasets.load_published("trtllm_blog18").query("format == 'bf16'")
    found = lab.prediction.against_published(blog, mode="one_sided", gpu="gb200")
    assert set(found["ep_size"]) == {8, 16, 32, 64}
    assert found["error_percent"].abs().median() < 10
    assert found["error_percent"].abs().max() < 20
    assert found["inside"].all()


def test_published_rounds_of_several_formats_are_refused():
    blog = datasets.load_published("trtllm_blog18")
    with pytest.raises(Refused, match="pass rounds of one format"):
        lab.prediction.against_published(blog, mode="one_sided", gpu="gb200")
    with pytest.raises(Refused, match="cannot be predicted"):
        lab.prediction.against_published(blog.query("format == 'bf16'"), mode="one_sided", gpu="b200")


@pytest.mark.parametrize(("tokens", "ranks", "top_k"), [(1, 16, 8), (5, 16, 8), (7, 4, 8), (64, 64, 8), (3, 2, 8)])
def test_the_collectors_routing(tokens, ranks, top_k):
    """Token i goes to the i-th group of K ranks in turn; K above R means every rank."""
    expected = np.zeros((ranks, ranks))
    for token in range(tokens):
        group = token % max(1, ranks // top_k)
        targets = range(ranks) if top_k >= ranks else range(group * top_k, (group + 1) * top_k)
        expected[:, list(targets)] += 1
    assert (collector_rows_RR((tokens, ranks, top_k)) == expected).all()


def raw_table(**changes) -> pd.DataFrame:
    row = {
        "framework": "TRTLLM",
        "version": "1.2.0rc6",
        "device": "NVIDIA GB200",
        "op_name": "alltoall_combine",
        "kernel_source": "NVLinkTwoSided",
        "moe_dtype": "nvfp4",
        "num_tokens": 4,
        "hidden_size": 7168,
        "topk": 8,
        "num_experts": 256,
        "moe_ep_size": 8,
        "distribution": "balanced",
        "latency": 0.0152,
    }
    return pd.DataFrame([row | changes])


@pytest.mark.parametrize("suffix", ["parquet", "txt"])
def test_a_table_of_aiconfigurator_is_read_in_the_columns_of_published_figures(tmp_path, suffix):
    path = tmp_path / f"table.{suffix}"
    raw_table().to_parquet(path) if suffix == "parquet" else raw_table().to_csv(path, index=False)
    (row,) = read_aiconfigurator(path).to_dict("records")
    assert set(row) == {*datasets.NUMBERS, *datasets.COUNTS, *datasets.WORDS}
    assert (row["mode"], row["phase"], row["value"], row["format"]) == ("two_sided", "combine", 15.2, "bf16")
    assert "nvfp4" in row["caveat"]
    assert "final sum" in row["caveat"]
    assert row["percentile"] == "unspecified"


@pytest.mark.parametrize(
    ("table", "message"),
    [
        (raw_table().drop(columns="moe_ep_size"), "no column moe_ep_size"),
        (raw_table(kernel_source="DeepEP"), "kernel_source DeepEP is not known"),
        (raw_table(op_name="gemm"), "op_name gemm is not known"),
        (raw_table(moe_dtype="int8"), "moe_dtype int8 is not known"),
        (raw_table(latency=0.0), "positive"),
        (raw_table(topk=1.5), "whole numbers"),
        (raw_table(num_tokens="many"), "whole numbers"),
        (raw_table(latency=float("nan")), "positive"),
        (raw_table().head(0), "positive"),
    ],
)
def test_other_tables_are_refused(tmp_path, table, message):
    path = tmp_path / "table.parquet"
    table.to_parquet(path)
    with pytest.raises(RecordError, match=message):
        read_aiconfigurator(path)


def test_files_that_are_no_tables_are_refused(tmp_path):
    with pytest.raises(RecordError, match="no such file"):
        read_aiconfigurator(tmp_path / "none.parquet")
    path = tmp_path / "noise.parquet"
    path.write_bytes(b"no table")
    with pytest.raises(RecordError, match="cannot be read as a table"):
        read_aiconfigurator(path)


def test_every_calibrated_gpu_is_in_the_table_of_gpus():
    assert {path.stem for path in calibration.FOLDER.glob("*.json")} <= set(GPUS)
    assert {part.mode for parts in PHASE_PARTS.values() for part in parts} == {"one_sided", "two_sided"}

"""Records in other projects' schemas: what their readers read is what was measured."""

import json

import numpy as np
import pandas as pd
import pytest

from mnnvl_lab import datasets, records
from mnnvl_lab.__main__ import main
from mnnvl_lab.errors import RecordError, Refused
from mnnvl_lab.published import read_published
from mnnvl_lab.published.aiconfigurator import COLUMNS
from mnnvl_lab.records.export import export

KERNEL = "h100x2_nvlink_ep2_kernel"
PAIR = "h100x2_nvlink_ep2_bf16"


def slowest(table, **point):
    for name, value in point.items():
        table = table[table[name] == value]
    return table.groupby("iteration")["latency_us"].max().to_numpy()


def test_aiconfigurator_reads_the_medians_of_kernels(tmp_path):
    samples = datasets.load_recorded(KERNEL)
    (path,) = export(samples, tmp_path / "table.parquet", format="aiconfigurator")
    raw = pd.read_parquet(path)
    assert tuple(raw.columns) == COLUMNS
    assert not raw.attrs
    figures = read_published(path, format="aiconfigurator")
    assert len(figures) == len(raw) > 20
    for row in figures.to_dict("records"):
        values = slowest(samples, mode=row["mode"], phase=row["phase"], tokens=row["tokens"], clock="kernel")
        assert row["value"] == pytest.approx(np.median(values), abs=1e-4)


def test_aiconfigurator_gets_no_other_clock(tmp_path):
    eager = datasets.load_recorded(PAIR).query("clock == 'eager'")
    with pytest.raises(RecordError, match="no column for a clock"):
        export(eager, tmp_path / "table.parquet", format="aiconfigurator")
    assert not list(tmp_path.iterdir())


def test_collectivex_reads_nearest_rank_percentiles_of_the_slowest_rank(tmp_path):
    samples = datasets.load_recorded(PAIR).query("tokens in (1, 1024) and mode == 'one_sided' and routing == 'uniform'")
    paths = export(samples, tmp_path, format="collectivex")
    assert [json.loads(path.read_text())["identity"]["case_factors"]["case"]["phase"] for path in paths] == [
        "decode",
        "prefill",
    ]
    for path, tokens in zip(paths, (1, 1024), strict=True):
        figures = read_published(path, format="collectivex")
        for row in figures[figures["quantity"] == "latency"].to_dict("records"):
            values = np.sort(slowest(samples, phase=row["phase"], tokens=tokens, clock="eager"))
            nearest = values[int(np.ceil(int(row["percentile"][1:]) / 100 * len(values))) - 1]
            assert row["value"] == nearest


def test_bytes_are_logical_ones(tmp_path):
    """At EP 2 nearly every token of top-8 goes to both ranks: 2 ranks x 1024 tokens x 2 targets x 14336 B."""
    samples = datasets.load_recorded(PAIR).query("tokens == 1024 and mode == 'one_sided' and routing == 'uniform'")
    (path,) = export(samples, tmp_path, format="collectivex")
    (row,) = json.loads(path.read_text())["measurement"]["rows"]
    most = 2 * 1024 * 2 * 14336
    assert 0.99 * most < row["byte_provenance"]["dispatch"]["total_logical_bytes"] <= most
    both = [row["byte_provenance"][name]["total_logical_bytes"] for name in ("dispatch", "combine")]
    assert row["byte_provenance"]["roundtrip"]["total_logical_bytes"] == sum(both)


def test_unchecked_samples_and_several_machines_are_not_handed_on(tmp_path):
    samples = datasets.load_recorded(KERNEL)
    with pytest.raises(RecordError, match="not checked"):
        export(samples.assign(checked="no"), tmp_path / "x.parquet", format="aiconfigurator")
    for by, words in {"device": "2 x NVIDIA H200", "flashinfer": "0.8.0"}.items():
        other = records.new_table(samples, records.provenance_of(samples) | {by: words})
        with pytest.raises(RecordError, match=rf"{words}.*export each by itself"):
            export(records.join([samples, other], by=[by]), tmp_path / "x.parquet", format="aiconfigurator")
    with pytest.raises(Refused, match="format 'mlperf' is not known: choose one of aiconfigurator, collectivex"):
        export(samples, tmp_path / "x", format="mlperf")


def test_runs_of_two_commits_are_said_to_be_of_none(tmp_path):
    """The document has one place for a commit, and neither run's would be true of the other's rows."""
    samples = few(PAIR).query("clock == 'eager'")
    fixed = records.provenance(fabric="nvlink", clocks=("eager",))
    origin = fixed | {"device": "2 x NVIDIA H100", "commit": "a" * 40, "created_at": "2026-01-01T00:00:00+00:00"}
    later = origin | {"commit": "f" * 40, "created_at": "2027-01-01T00:00:00+00:00"}
    runs = [records.new_table(samples.assign(repeat=n), made) for n, made in enumerate((origin, later))]
    (path, *_) = export(records.join(runs), tmp_path, format="collectivex")
    document = json.loads(path.read_text())
    assert document["provenance"]["source_sha"] is None
    assert document["generated_at"] == "2027-01-01T00:00:00+00:00"
    (path,) = export(runs[0], tmp_path / "one", format="collectivex")
    assert json.loads(path.read_text())["provenance"]["source_sha"] == "a" * 40


def few(kind, **point):
    samples = datasets.load_recorded(kind).query("mode == 'one_sided' and tokens == 1")
    return samples[(samples["clock"].isin(["eager", "kernel"])) & (samples["routing"] == "uniform")].assign(**point)


@pytest.mark.parametrize(
    "other", [{"hidden": 1024}, {"experts": 64}, {"top_k": 4}, {"low_precision_combine": True}, {"l2": "cold"}]
)
def test_each_case_of_collectivex_has_its_own_samples_and_file(tmp_path, other):
    one, two = few(PAIR), few(PAIR, **other)
    two["latency_us"] = two["latency_us"] + 1000
    provenance = records.provenance_of(one)
    both = records.new_table(pd.concat([one, two]), provenance)
    paths = export(both, tmp_path, format="collectivex")
    assert len(set(paths)) == len(list(tmp_path.iterdir())) == 2
    rows = [json.loads(path.read_text())["measurement"]["rows"][0] for path in paths]
    first, second = (row["components"]["roundtrip"] for row in rows)
    assert first["sample_count"] == second["sample_count"] == len(slowest(one, phase="round"))
    assert second["percentiles_us"]["p50"] == pytest.approx(first["percentiles_us"]["p50"] + 1000)


@pytest.mark.parametrize(("kind", "format"), [(PAIR, "collectivex"), (KERNEL, "aiconfigurator")])
def test_points_that_a_schema_cannot_tell_apart_are_not_mixed(tmp_path, kind, format):
    samples = few(kind)
    both = records.new_table(pd.concat([samples, few(kind, max_tokens=4096)]), records.provenance_of(samples))
    with pytest.raises(RecordError, match=r"several ways \(max_tokens 1, 4096\)"):
        export(both, tmp_path / "out", format=format)
    assert not list(tmp_path.rglob("*.*"))


def test_the_command_says_what_it_wrote(tmp_path, capsys):
    out = tmp_path / "table.parquet"
    assert main(["export", str(datasets.DATA / f"{KERNEL}.parquet"), "--to", "aiconfigurator", "--out", str(out)]) == 0
    assert capsys.readouterr().out.strip() == str(out)
    assert out.exists()

import hashlib
import shutil

import pytest

from mnnvl_lab import datasets, records
from mnnvl_lab.errors import RecordError, Refused

TABLES = datasets.load_published()["name"].tolist()


def test_the_list_names_every_file():
    assert set(TABLES) == {path.stem for path in datasets.FOLDER.glob("*.csv")}
    assert datasets.load_published()["rows"].min() > 0


@pytest.mark.parametrize("name", TABLES)
def test_every_figure_says_what_it_is(name):
    table = datasets.load_published(name)
    assert list(table.columns).count("value") == 1
    assert set(table.columns) == {*datasets.NUMBERS, *datasets.COUNTS, *datasets.WORDS}
    assert (table["value"] > 0).all()
    for column in ("quantity", "phase", "unit", "device", "source", "percentile"):
        assert (table[column] != "").all(), column
    link = table[(table["quantity"] == "bandwidth") & (table["phase"] != "memory")]
    assert (link["bandwidth_convention"] != "").all()


def test_figures_are_those_of_the_sources():
    blog = datasets.load_published("trtllm_blog18").query("ep_size == 8 and tokens == 128 and format == 'bf16'")
    assert blog.set_index(["quantity", "phase"])["value"].to_dict() == {
        ("latency", "dispatch"): 31.7,
        ("latency", "combine"): 38.1,
        ("bandwidth", "dispatch"): 462,
        ("bandwidth", "combine"): 385,
    }
    deepep = datasets.load_published("collectivex_h100").query(
        "library == 'DeepEP V2' and format == 'bf16' and tokens == 4096 and quantity == 'latency'"
    )
    assert deepep.set_index(["phase", "percentile"])["value"].to_dict() == {
        ("dispatch", "p50"): 1077.9,
        ("dispatch", "p99"): 1096.8,
        ("combine", "p50"): 1007.4,
        ("combine", "p99"): 1026.0,
        ("round", "p50"): 2065.2,
        ("round", "p99"): 2083.7,
    }


def test_a_bandwidth_of_blog18_follows_from_its_latency():
    """Batch x min(ep_size, top_k) x bytes / latency, to the digits that the blog prints."""
    blog = datasets.load_published("trtllm_blog18").query("format == 'bf16'")
    keys = ["ep_size", "tokens", "phase"]
    both = blog.pivot_table(index=keys, columns="quantity", values="value").dropna().reset_index()
    computed = both["tokens"] * 8 * 7168 * 2 / both["latency"] / 1e3
    assert len(both) == 12
    assert computed.to_numpy(float) == pytest.approx(both["bandwidth"].to_numpy(float), rel=0.003)


def test_unknown_names_suggest_near_ones():
    with pytest.raises(Refused, match="did you mean trtllm_blog18"):
        datasets.load_published("blog18")


def test_an_installed_package_says_what_it_lacks(tmp_path):
    with pytest.raises(RecordError, match="source checkout"):
        datasets.load_published(folder=tmp_path)


def test_a_changed_figure_is_refused(tmp_path):
    folder = tmp_path / "published"
    shutil.copytree(datasets.FOLDER, folder)
    path = folder / "limits.csv"
    path.write_text(path.read_text().replace("396.40", "396.41"))
    with pytest.raises(RecordError, match=r"limits\.csv: missing, or not what SHA256SUMS says"):
        datasets.load_published("limits", folder=folder)
    assert hashlib.sha256(path.read_bytes()).hexdigest() not in (folder / "SHA256SUMS").read_text()


def test_published_figures_never_join_records():
    with pytest.raises(RecordError):
        records.join([datasets.load_published("limits")])

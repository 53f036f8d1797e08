import pandas as pd
import pytest

from mnnvl_lab import datasets, records
from mnnvl_lab.errors import RecordError, Refused


@pytest.fixture
def folder(tmp_path):
    """Two tables as `tools.record` leaves them: samples of a sweep, and limits of a link."""
    sweep = datasets.load_recorded("h100x2_nvlink_ep2_bf16").head(4)
    records.save(sweep, tmp_path / "sweep_ep2.parquet")
    aside = pd.DataFrame({"quantity": ["launch"], "latency_us": [2.0]})
    aside.attrs = sweep.attrs
    records.save_auxiliary(aside, tmp_path / "pair_links.parquet", kind="links")
    (tmp_path / "notes.json").write_text("{}")
    return tmp_path


def test_names_are_those_of_the_record_files(folder):
    assert datasets.recorded_names(folder=folder) == ["pair_links", "sweep_ep2"]


def test_samples_come_with_their_origin():
    table = datasets.load_recorded("h100x2_nvlink_ep2_bf16")
    assert set(table["fabric"]) == {"nvlink"}
    assert records.provenance_of(table)["device"] == "2 x NVIDIA H100 80GB HBM3"


def test_a_table_of_another_kind_is_asked_for_by_its_kind(folder):
    assert datasets.load_recorded("pair_links", kind="links", folder=folder)["latency_us"].tolist() == [2.0]
    with pytest.raises(RecordError, match="holds links, not memory"):
        datasets.load_recorded("pair_links", kind="memory", folder=folder)
    with pytest.raises(RecordError):
        datasets.load_recorded("pair_links", folder=folder)


def test_unknown_names_suggest_near_ones():
    with pytest.raises(Refused, match=r"did you mean .*h100x2_nvlink_ep2_bf16"):
        datasets.load_recorded("h100_nvlink_ep2_bf16")


def test_an_installed_package_says_what_it_lacks(tmp_path):
    with pytest.raises(RecordError, match="source checkout"):
        datasets.load_recorded("h100x2_nvlink_ep2_bf16", folder=tmp_path)

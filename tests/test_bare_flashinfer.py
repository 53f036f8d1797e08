"""The writer of `data/bare_flashinfer.json`: its file is what the page reads, and says where it comes from."""

import json

import pandas as pd
import pytest

from mnnvl_lab import datasets, records
from tests.lazy import Lazy

bare = Lazy("benchmarks.bare_flashinfer", reason="needs torch")

MEDIANS = [{"mode": mode, "tokens": n, "latency_us": 10.0 + n} for mode in ("one_sided", "two_sided") for n in (1, 16)]


@pytest.fixture
def spawned(monkeypatch):
    """Instead of GPU processes: rank 0 leaves its medians."""
    calls = []

    def spawn(function, args, nprocs):
        calls.append((function, args[:3], nprocs))
        args[3].write_text(json.dumps(MEDIANS))

    monkeypatch.setattr(bare.torch.multiprocessing, "spawn", spawn)
    return calls


def test_the_file_holds_the_medians_and_where_they_come_from(spawned, tmp_path):
    out = tmp_path / "new" / "bare.json"
    bare.main(["--ranks", "2", "--tokens", "1", "16", "--out", str(out)])
    kept = json.loads(out.read_text())
    assert kept["medians"] == MEDIANS
    assert kept["kind"] == "bare_flashinfer"
    expected = records.provenance(fabric="nvlink")
    for field in ("commit", "device", "driver", "topology", "torch", "flashinfer"):
        assert kept[field] == expected[field]
    assert kept["created_at"]
    assert "EP 2" in kept["what"]
    assert spawned == [(bare.work, (2, [1, 16], 29571), 2)]
    assert [path.name for path in out.parent.iterdir()] == ["bare.json"]


def test_without_out_nothing_is_written(spawned, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    bare.main(["--tokens", "1"])
    assert not list(tmp_path.iterdir())


def test_the_committed_file_is_of_that_form():
    kept = json.loads((datasets.DATA / "bare_flashinfer.json").read_text())
    made = bare.document(kept["medians"], ranks=2, provenance=dict.fromkeys(FIELDS, ""))
    assert {"kind", "medians", "command", "commit", "device", "driver", "torch", "flashinfer"} <= set(kept) & set(made)
    assert list(pd.DataFrame(kept["medians"])) == list(pd.DataFrame(MEDIANS))
    assert kept["command"].startswith("python -m benchmarks.bare_flashinfer")


FIELDS = ("command", "created_at", "commit", "dirty", "device", "driver", "topology", "torch", "flashinfer")

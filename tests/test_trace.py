"""The exported timeline against the Trace Event Format, and against the samples that went in."""

import json

import pandas as pd
import pytest

from mnnvl_lab.analysis import trace
from mnnvl_lab.errors import Refused
from tests.test_skew import samples


def written(table, tmp_path):
    return json.loads(trace.save(table, tmp_path / "new" / "trace.json").read_text())


def test_every_sample_is_a_complete_event_on_its_ranks_track(tmp_path):
    table = samples((0, 0, 1000.0, 50.0), (1, 0, 1030.0, 22.5), dp=2)
    document = written(table, tmp_path)
    slices = [event for event in document["traceEvents"] if event["ph"] == "X"]
    for event in slices:
        assert {type(event[name]) for name in ("ts", "dur")} <= {int, float}
        assert {type(event[name]) for name in ("pid", "tid")} == {int}
        assert event["dur"] >= 0
    found = {(event["name"], event["tid"]): (event["ts"], event["dur"]) for event in slices}
    assert found == {("dispatch", 0): (0, 50), (trace.WAIT, 0): (0, 30), ("dispatch", 1): (30, 22.5)}
    assert slices[0]["args"] == {
        "mode": "one_sided",
        "fabric": "host",
        "tokens": 4,
        "phase": "dispatch",
        "iteration": 0,
        "delay_us": 0.0,
        "delayed_rank": 0,
        "checked": "exact",
    }


def test_points_are_processes_and_ranks_are_named_threads(tmp_path):
    rows = (0, 0, 0.0, 5.0), (1, 0, 0.0, 5.0)
    table = pd.concat([samples(*rows, dp=2, mode=mode) for mode in ("one_sided", "two_sided")], ignore_index=True)
    events = written(table, tmp_path)["traceEvents"]
    names = [
        (event["name"], event["pid"], event["tid"], event["args"]["name"]) for event in events if event["ph"] == "M"
    ]
    assert [name for name in names if name[0] == "thread_name"] == [
        ("thread_name", pid, rank, f"rank {rank}") for pid in (0, 1) for rank in (0, 1)
    ]
    processes = {pid: words for kind, pid, _, words in names if kind == "process_name"}
    assert "mode=one_sided" in processes[0]
    assert "mode=two_sided" in processes[1]
    assert {(event["pid"], event["args"]["mode"]) for event in events if event["ph"] == "X"} == {
        (0, "one_sided"),
        (1, "two_sided"),
    }


def test_nested_slices_stay_inside_their_phase():
    """Perfetto drops a slice that overlaps its parent's end."""
    table = samples((0, 0, 0.0, 5.0), (1, 0, 100.0, 9.0), (0, 1, 200.0, 50.0), (1, 1, 220.0, 33.0), dp=2)
    slices = [event for event in trace.events(table) if event["ph"] == "X"]
    for wait in (event for event in slices if event["cat"] == "wait"):
        around = [e for e in slices if e["cat"] == "phase" and e["tid"] == wait["tid"] and e["ts"] == wait["ts"]]
        assert len(around) == 1
        assert wait["dur"] <= around[0]["dur"]


def test_a_graph_has_slices_but_no_waiting():
    slices = [e for e in trace.events(samples((0, 0, 7.0, 5.0), clock="graph", phase="round")) if e["ph"] == "X"]
    assert [(event["name"], event["ts"], event["dur"]) for event in slices] == [("round", 0, 5)]


def test_the_profilers_clock_has_no_common_base():
    with pytest.raises(Refused, match="clock kernel"):
        list(trace.events(samples((0, 0, 7.0, 5.0), clock="kernel")))
    with pytest.raises(Refused, match="start_us is missing"):
        list(trace.events(samples((0, 0, float("nan"), 5.0))))

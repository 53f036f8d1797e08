"""The thread that answers while a rank hangs: whatever it meets is told or named, and it goes on listening."""

import os
import threading
import time
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from hypothesis import example, given
from hypothesis import strategies as st

from mnnvl_lab.hang import diagnose
from mnnvl_lab.hang.agent import HangAgent, describe, pipe_path
from mnnvl_lab.hang.detect import ask
from mnnvl_lab.hang.snapshot import Snapshot, from_json, to_json
from mnnvl_lab.layout import Layout

PAIR = Layout(dp=2)


class Unspeakable:
    """Every use of it fails, even its text."""

    def __getattr__(self, name):
        raise SystemExit(name)

    def __repr__(self):
        raise MemoryError

    __str__ = __iter__ = __int__ = __len__ = __repr__


class Transport(SimpleNamespace):
    def read_flags(self):
        return self.flags() if callable(self.flags) else self.flags


FLAGS = {"flag_val": [7], "dispatch_completion_flags": [7, 5], "combine_completion_flags": [6, 6]}


def rank_with(*, index=0, phase="dispatch", groups=None, kept=None, **transport):
    parts = {"mode": "one_sided", "group": SimpleNamespace(ranks=(0, 1)), "active": None, "flags": FLAGS} | transport
    shown = Transport(**parts)
    rank = SimpleNamespace(index=index, phase=phase, groups=groups or {}, device=torch.device("cpu"), kept=shown)
    rank.watched = lambda: shown
    return rank


def verdict_on(shown: Snapshot):
    return diagnose({0: shown, 1: Snapshot(rank=1)}, PAIR, limit_s=1)


@pytest.mark.parametrize(
    "active",
    [
        None,
        (0, 1),
        np.array([0, 1]),
        (np.int64(0), np.int32(1)),
        torch.tensor([0, 1]),
        {0: None, 1: None}.keys(),
        range(2),
    ],
    ids=lambda value: type(value).__name__,
)
def test_integers_of_any_kind_are_told(active):
    back = from_json(to_json(describe(rank_with(active=active))))
    assert back.trouble == ""
    assert back.taking_part == (0, 1)
    assert verdict_on(back).culprits == (1,)


GROUP = SimpleNamespace(ranks=(np.int64(0), np.int64(1)), begun=np.int64(3), done=2)
ODD = st.one_of(
    st.none(),
    st.text(),
    st.floats(),
    st.integers(),
    st.lists(st.integers() | st.text() | st.none()),
    st.sampled_from(
        [Unspeakable(), object(), np.array(["a"]), np.array([[1.5]]), np.array([]), torch.ones(2), b"\xff"]
    ),
)
ODD_FLAGS = st.dictionaries(st.sampled_from([*FLAGS, "prepare_connections", "connections", 3]), ODD)


@example(active=1.0, mode=0.0, index=None, phase=None, flags=None, ranks="2")
@given(active=ODD, mode=ODD, index=ODD, phase=ODD, flags=ODD_FLAGS | ODD, ranks=ODD)
def test_whatever_a_rank_holds_is_told_or_named(active, mode, index, phase, flags, ranks):
    groups = {"ep": GROUP, "odd": SimpleNamespace(ranks=ranks, begun=active, done=mode)}
    shown = describe(rank_with(active=active, mode=mode, index=index, phase=phase, flags=flags, groups=groups))
    hang_report = verdict_on(from_json(to_json(shown)))
    assert hang_report.headline
    assert "rank" in hang_report.details


def test_what_fails_does_not_hide_the_rest():
    shown = describe(rank_with(flags={"flag_val": Unspeakable()}, groups={"ep": GROUP}))
    assert shown.trouble
    assert shown.phase == "dispatch"
    assert shown.collectives["ep"].begun == 3


@pytest.mark.parametrize("text", ["", "{", "[]", "null", '{"rank": 0}', '{"peers": 1}'])
def test_an_answer_that_is_none_is_named(text):
    assert "cannot be read" in from_json(text).trouble


@pytest.mark.parametrize("active", [(5,), (-3,), (0, 1, 2)])
def test_flags_that_do_not_fit_the_ranks_are_named(active):
    hang_report = verdict_on(describe(rank_with(active=active, flags=FLAGS | {"dispatch_completion_flags": [7]})))
    assert hang_report.snapshots[0].trouble or hang_report.waits


def test_a_group_of_ranks_that_the_layout_lacks_is_named():
    groups = {"ep": GROUP, "odd": SimpleNamespace(ranks=[0, 2], begun=1, done=0)}
    hang_report = verdict_on(describe(rank_with(groups=groups)))
    assert hang_report.snapshots[0].trouble == "groups have ranks that the layout lacks (odd)"
    assert hang_report.culprits == (1,)


class Rank:
    """What the listener describes; a test may put anything there."""

    def __init__(self):
        self.now = rank_with()

    def __call__(self):
        return self.now() if callable(self.now) else self.now


@pytest.fixture
def listening(tmp_path):
    rank = Rank()
    listener = HangAgent(tmp_path, rank)
    return tmp_path, rank, listener


def snapshot(run_dir):
    return ask(run_dir, {0: os.getpid()}, limit_s=2).get(0)


def fail():
    raise SystemExit("in a thread")


def test_it_outlives_every_question_and_every_value(listening):
    run_dir, rank, _ = listening
    assert snapshot(run_dir).epoch == 7
    for now in (fail, lambda: rank_with(active=Unspeakable()), lambda: Unspeakable()):
        rank.now = now
        ask(run_dir, {0: os.getpid()}, limit_s=0.2)
    for question in (b"../../escape\n", b"\xff\xfe\n", b"\n", b"x" * 3000 + b"\n"):
        with open(pipe_path(run_dir, os.getpid()), "wb") as pipe:
            pipe.write(question)
    rank.now = rank_with
    assert snapshot(run_dir).epoch == 7
    assert not list(run_dir.parent.glob("*escape*"))


def test_a_full_disk_does_not_end_it(listening, monkeypatch):
    run_dir, _, _ = listening
    write = type(run_dir).write_text

    def no_space(self, *args):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(type(run_dir), "write_text", no_space)
    assert ask(run_dir, {0: os.getpid()}, limit_s=0.2) == {}
    monkeypatch.setattr(type(run_dir), "write_text", write)
    assert snapshot(run_dir).epoch == 7


def test_groups_may_be_added_while_they_are_read():
    rank, stop = rank_with(), threading.Event()

    def add():
        while not stop.is_set():
            rank.groups.clear()
            for number in range(50):
                rank.groups[f"group {number}"] = GROUP

    adder = threading.Thread(target=add)
    adder.start()
    try:
        deadline = time.monotonic() + 1
        while time.monotonic() < deadline:
            assert describe(rank).trouble == ""
    finally:
        stop.set()
        adder.join()

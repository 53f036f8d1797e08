"""A sweep that is killed goes on with the same command; two sweeps never share a file."""

import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from mnnvl_lab import records
from mnnvl_lab.errors import RecordError
from mnnvl_lab.measure import Point
from mnnvl_lab.measure.run import run
from mnnvl_lab.records import files
from mnnvl_lab.records.files import done_points, point_key
from tests.sweep_for_survival import POINTS, SWEEP

LIMIT_S = 60
RECORDED = Path(__file__).parents[1] / "data" / "h100x2_nvlink_ep2_again.parquet"


def begin(path) -> subprocess.Popen:
    return subprocess.Popen([sys.executable, "-m", "tests.sweep_for_survival", str(path)], start_new_session=True)


def points_in(path) -> set:
    return done_points(path) if path.exists() else set()


def wait_for(condition, limit_s=LIMIT_S):
    deadline = time.monotonic() + limit_s
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.1)


def all_points() -> set:
    return {point_key(point.columns | {"fabric": SWEEP.fabric}) for point in SWEEP.points() if isinstance(point, Point)}


@pytest.mark.timeout(240)
def test_a_killed_sweep_loses_nothing_but_the_point_in_progress(tmp_path):
    path, chance = tmp_path / "sweep.parquet", random.Random()
    before = set()
    for share in (0.25, 0.6):
        sweep = begin(path)
        wait_for(lambda share=share: len(points_in(path)) >= share * POINTS)
        time.sleep(chance.uniform(0, 0.3))  # anywhere in a point, also while the file is replaced
        os.kill(sweep.pid, signal.SIGKILL)
        sweep.wait(LIMIT_S)
        kept = points_in(path)  # never truncated: every point that was in it stays
        assert before <= kept
        before = kept
    assert begin(path).wait(LIMIT_S) == 0
    table = records.load(path)
    assert points_in(path) == all_points()
    assert len(table) == len(table.drop_duplicates(["mode", "tokens", "rank", "phase", "iteration"]))
    assert not list(tmp_path.glob(".*.partial"))


def test_a_second_sweep_into_a_file_is_refused_while_the_first_runs(tmp_path):
    path = tmp_path / "sweep.parquet"
    with (
        records.Appender(path, records.provenance(fabric="host")),
        pytest.raises(RecordError, match="another sweep is writing it"),
    ):
        run(SWEEP, out=path, resume=True, progress=False)


def test_the_lock_of_a_killed_sweep_is_no_hindrance(tmp_path):
    path = tmp_path / "sweep.parquet"
    hold = (
        "import sys, time; from mnnvl_lab import records\n"
        "records.Appender(sys.argv[1], records.provenance(fabric='host')); print('held', flush=True); time.sleep(60)"
    )
    holder = subprocess.Popen([sys.executable, "-c", hold, str(path)], stdout=subprocess.PIPE, text=True)
    assert holder.stdout.readline() == "held\n"
    with pytest.raises(RecordError, match="another sweep"):
        records.Appender(path, records.provenance(fabric="host"))
    holder.kill()
    holder.wait()
    records.Appender(path, records.provenance(fabric="host")).close()


def test_what_is_left_of_other_files_is_not_removed(tmp_path):
    """A name may look like a pattern; what another file or program left in a similar form is not this one's."""
    path = tmp_path / "*.parquet"
    others = [tmp_path / f".other.parquet.{'0' * 32}.partial", tmp_path / ".*.parquet.my own.partial"]
    own = tmp_path / f".*.parquet.{'0' * 32}.partial"
    for file in (*others, own):
        file.touch()
    records.Appender(path, records.provenance(fabric="host")).close()
    assert [file.exists() for file in (*others, own)] == [True, True, False]


def test_a_reader_looks_at_the_path_once(tmp_path, monkeypatch):
    """Whoever looks twice may meet two versions, since a sweep replaces the file: here it is gone at the second."""
    path, table = tmp_path / "sweep.parquet", records.load(RECORDED)
    records.save(table, path)
    judge = files._require_origin

    def judge_and_replace(content):
        judge(content)
        path.unlink()

    monkeypatch.setattr(files, "_require_origin", judge_and_replace)
    assert records.load(path).equals(table)

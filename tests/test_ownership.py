"""What is removed and killed: only what this package created and started, however hostile the path or stale the pid."""

import json
import os
import stat
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mnnvl_lab.processes import ownership
from mnnvl_lab.processes.ownership import OwnedDirectory, end, end_marked, process_of, started, write_private
from mnnvl_lab.processes.reaper import clean_up

SLEEPER = [sys.executable, "-c", "import time; time.sleep(60)"]
HOSTILE = ["with blanks in it", "new\nline", "directory /", "ümlaut ✓", "-rf", "*", "'\"$(x)", "{}"]


@pytest.fixture
def sleeper():
    process = subprocess.Popen(SLEEPER)
    yield psutil.Process(process.pid)
    process.kill()
    process.wait()


def line(**item) -> str:
    return json.dumps(item)


def told(directory: OwnedDirectory, **changes) -> str:
    return line(directory={"parent": directory.parent, "name": directory.name, "token": directory.token} | changes)


def precious(folder: Path) -> Path:
    """A file that nobody may remove."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "thesis").write_text("years of work")
    return folder / "thesis"


@pytest.mark.parametrize("name", HOSTILE)
def test_an_own_directory_goes_wherever_it_is_and_nothing_beside_it(tmp_path, name):
    kept = [precious(tmp_path / name), precious(tmp_path / name.split()[0])]
    directory = OwnedDirectory.named(tmp_path / name)
    precious(directory.create() / "log")
    assert clean_up([told(directory)]) == []
    assert not directory.path.exists()
    assert all(file.exists() for file in kept)


@pytest.mark.parametrize(
    "change", [{"name": ".."}, {"name": "."}, {"name": ""}, {"name": "mnnvl_lab-/.."}, {"token": ""}]
)
def test_a_directory_that_is_not_provably_own_is_refused(tmp_path, change):
    directory = OwnedDirectory.named(tmp_path / "inner")
    kept = precious(tmp_path / "inner")
    directory.create()
    [reason] = clean_up([told(directory, **change)])
    assert str(tmp_path) in reason
    assert kept.exists()
    assert directory.path.exists()


def test_a_parent_that_is_not_plain_is_refused(tmp_path):
    directory = OwnedDirectory.named(tmp_path)
    directory.create()
    for parent in (f"{tmp_path}/x/..", "", ".", f"{tmp_path}/"):
        assert clean_up([told(directory, parent=parent)])
    assert directory.path.exists()


def test_a_link_is_not_followed(tmp_path):
    kept = precious(tmp_path / "stranger")
    directory = OwnedDirectory.named(tmp_path)
    write_private(kept.parent / ownership.OWNER_FILE, directory.token)  # even a token does not make a link own
    directory.path.symlink_to(kept.parent)
    [reason] = clean_up([told(directory)])
    assert "not a directory" in reason
    inside = OwnedDirectory.named(tmp_path)
    (inside.create() / "link").symlink_to(kept.parent)
    assert clean_up([told(inside)]) == []
    assert kept.exists()


def test_a_token_behind_a_link_does_not_count(tmp_path):
    directory, token = OwnedDirectory.named(tmp_path), tmp_path / "token"
    token.write_text(directory.token)
    kept = precious(directory.path)
    (directory.path / ownership.OWNER_FILE).symlink_to(token)
    assert "token" in directory.remove()
    assert kept.exists()


def test_a_directory_of_another_user_is_refused(tmp_path, monkeypatch):
    directory = OwnedDirectory.named(tmp_path)
    directory.create()
    monkeypatch.setattr(os, "geteuid", lambda: os.getuid() + 1)
    assert "another user" in directory.remove()
    assert directory.path.exists()


def test_a_directory_made_anew_by_somebody_else_is_refused(tmp_path):
    directory = OwnedDirectory.named(tmp_path)
    kept = precious(directory.path)
    assert "token" in directory.remove()
    assert kept.exists()


def test_a_directory_without_token_goes_if_it_is_empty(tmp_path):
    """As one that was made just before its process was killed."""
    directory = OwnedDirectory.named(tmp_path)
    directory.path.mkdir()
    assert directory.remove() == ""
    assert not directory.path.exists()
    assert directory.remove() == ""  # idempotent


@pytest.mark.parametrize("umask", [0o000, 0o022, 0o777])
def test_private_files_and_directories_are_private_whatever_the_umask(tmp_path, umask):
    former = os.umask(umask)
    try:
        write_private(tmp_path / "key", "secret")
    finally:
        os.umask(former)
    assert stat.S_IMODE((tmp_path / "key").stat().st_mode) == 0o600


@given(
    st.lists(
        st.text(max_size=80) | st.recursive(st.none() | st.integers() | st.text(max_size=8), st.lists).map(json.dumps)
    )
)
def test_what_cannot_be_read_is_refused_and_reading_goes_on(lines):
    refused = clean_up(lines)
    assert len(refused) == len(lines)


def test_a_line_that_was_cut_off_is_refused(tmp_path):
    directory = OwnedDirectory.named(tmp_path)
    directory.create()
    whole = told(directory)
    assert len(clean_up([whole[: len(whole) // 2]])) == 1
    assert directory.path.exists()


def test_the_process_told_is_killed_with_its_children(sleeper):
    assert clean_up([line(process={"pid": sleeper.pid, "started": started(sleeper.pid)})]) == []
    assert not ownership.alive(sleeper)


def test_a_pid_that_was_used_again_is_left_alone(sleeper):
    """The stranger has the pid, but began later than the process that was told."""
    clean_up([line(process={"pid": sleeper.pid, "started": started(sleeper.pid) - 1})])
    assert ownership.alive(sleeper)
    assert process_of(sleeper.pid, started(sleeper.pid) - 1) is None
    assert process_of(sleeper.pid, started(sleeper.pid)) == sleeper


@pytest.mark.parametrize("pid", [-1, 0, 2**22 + 1, 2**70])
def test_a_pid_that_cannot_be_is_left_alone(pid):
    clean_up([line(process={"pid": pid, "started": 0.0})])


def test_a_start_does_not_move_when_the_clock_is_set(sleeper, monkeypatch):
    before = started(sleeper.pid)
    monkeypatch.setattr(psutil, "boot_time", lambda: 0.0)
    monkeypatch.setattr(time, "time", lambda: 0.0)
    assert started(sleeper.pid) == before


def test_marked_processes_end_and_no_other():
    marked = subprocess.Popen(SLEEPER, env=os.environ | {"MNNVL_LAB_TEST": "a b\nc"})
    other = subprocess.Popen(SLEEPER, env=os.environ | {"MNNVL_LAB_TEST": "a b"})
    try:
        end_marked("MNNVL_LAB_TEST", "a b\nc")
        assert marked.poll() is not None
        assert other.poll() is None
    finally:
        for process in (marked, other):
            process.kill()
            process.wait()


def test_a_zombie_is_not_waited_for():
    parent = subprocess.Popen(
        [
            sys.executable,
            "-c",
            "import os, sys, time\nif os.fork() == 0: os._exit(0)\nprint(flush=True); time.sleep(60)",
        ],
        stdout=subprocess.PIPE,
    )
    parent.stdout.readline()
    [zombie] = psutil.Process(parent.pid).children()
    while zombie.status() != psutil.STATUS_ZOMBIE:
        time.sleep(0.01)
    begun = time.monotonic()
    end([zombie])
    assert time.monotonic() - begun < 1
    parent.kill()
    parent.wait()


def test_nothing_else_in_the_package_removes_trees_or_kills():
    """One module decides what is ours; a call elsewhere must be known here."""
    package = Path(ownership.__file__).parents[1]
    signs = ("rmtree(", "os.kill(", "killpg(", ".kill(", ".terminate(")
    found = {
        (str(path.relative_to(package)), text.strip())
        for path in package.rglob("*.py")
        for text in path.read_text().splitlines()
        if any(sign in text for sign in signs) and not text.strip().startswith(("#", "def "))
    }
    assert {(path, text) for path, text in found if "rmtree" in text} == {
        ("processes/ownership.py", "shutil.rmtree(self.path, ignore_errors=True)")
    }
    # Children not yet waited for, psutil's processes (which it identifies by their start), and this process itself.
    allowed = {
        "processes/ownership.py",
        "processes/reaper_client.py",
        "ranks/fork_server.py",
        "ranks/cluster.py",
        "ranks/kernel_build.py",
        "ranks/remote.py",
        "ranks/remote_server.py",
        "faults/crashes.py",
    }
    through_cluster = {"ranks/pool.py", "ranks/joining.py", "ranks/ranks.py"}  # RankPool.kill ends in Cluster.kill
    assert {path for path, _ in found} <= allowed | through_cluster

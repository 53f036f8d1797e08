"""Processes that serve the ranks die, in any order and at any moment: named as what they are, no rank blamed or killed,
the next call works, nothing is left."""

import os
import random
import resource
import signal
import subprocess
import sys
import threading
import time
import warnings

import psutil
import pytest

from mnnvl_lab.errors import HelperDied, Refused
from mnnvl_lab.layout import Layout
from mnnvl_lab.processes.ownership import marked_processes
from mnnvl_lab.ranks import Ranks, arguments
from mnnvl_lab.ranks.cluster import Cluster
from mnnvl_lab.ranks.controller import Controller
from tests import ranks_helpers as on

PAIR = Layout(dp=2)
NAMED_WITHIN_S = 5
HELPERS = ("controller", "heartbeat", "fork server", "reaper")

pytestmark = pytest.mark.xdist_group("helper_deaths")  # which share ranks


@pytest.fixture(scope="module")
def pair():
    with Ranks(PAIR) as ranks:
        yield ranks


def helper(ranks, name) -> psutil.Process:
    cluster = ranks._cluster
    controller, *children = cluster._controller.processes
    processes = {
        "controller": lambda: controller,
        "heartbeat": lambda: children[0],
        "fork server": lambda: psutil.Process(cluster._engines._process.pid),
        "reaper": lambda: psutil.Process(cluster._reaper.pid),
    }
    return processes[name]()


def kill(process: psutil.Process) -> None:
    process.kill()
    deadline = time.monotonic() + 5
    while on.running(process.pid) and time.monotonic() < deadline:
        time.sleep(0.01)


@pytest.mark.parametrize("name", HELPERS)
def test_between_calls_no_rank_pays_for_it(pair, name):
    pids = pair.run(on.pid)
    kill(helper(pair, name))
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        assert pair.run(on.pid) == pids
    expected = {"heartbeat": "its heartbeat process ended", "fork server": ""}.get(name, f"the {name} process died")
    assert [expected in str(warning.message) for warning in said] == [True] * (name != "fork server")
    pair.kill(1)
    assert pair.run(on.pid)[0] == pids[0]


@pytest.mark.parametrize("name", HELPERS)
def test_within_a_call_it_is_named_as_what_it_is(pair, name):
    pids = pair.run(on.pid)
    kill_later = threading.Timer(0.5, helper(pair, name).kill)
    begun = time.monotonic()
    kill_later.start()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        if name in ("controller", "heartbeat"):
            with pytest.raises(HelperDied, match=f"the controller process died: .*{'signal 9|' + name}"):
                pair.run(on.sleep_on, 1, 2)
            assert time.monotonic() - begun < NAMED_WITHIN_S
        else:  # the answers do not pass through it
            assert pair.run(on.sleep_on, 1, 2) == [0, 1]
        assert pair.run(on.pid) == pids  # nobody was killed for it


def test_a_rank_that_never_finishes_the_lost_call_is_replaced(pair, monkeypatch):
    monkeypatch.setattr("mnnvl_lab.ranks.pool.REACH_LIMIT_S", 2)
    pids = pair.run(on.pid)
    threading.Timer(0.5, helper(pair, "controller").kill).start()
    with pytest.raises(HelperDied):
        pair.run(on.sleep_on, 1, 600)
    with pytest.warns(RuntimeWarning, match="the controller process died"):
        now = pair.run(on.pid)
    assert [old == new for old, new in zip(pids, now, strict=True)] == [True, False]


def test_a_fork_server_that_does_not_answer_is_ended_in_time(pair, monkeypatch):
    pids = pair.run(on.pid)
    monkeypatch.setattr(pair._cluster, "_start_timeout_s", 1.0)
    helper(pair, "fork server").send_signal(signal.SIGSTOP)
    pair.kill(0)
    begun = time.monotonic()
    with pytest.raises(HelperDied, match="fork server process died: it had forked only 0 of 1 ranks in time"):
        pair.run(on.pid)
    assert time.monotonic() - begun < NAMED_WITHIN_S
    monkeypatch.undo()
    assert pair.run(on.pid)[1] == pids[1]


def test_a_rank_whose_fork_server_died_before_it_is_still_named(pair):
    pids = pair.run(on.pid)
    kill(helper(pair, "fork server"))
    os.kill(pids[1], signal.SIGKILL)
    with pytest.raises(RuntimeError, match=r"rank 1 .*the fork server, its parent, died before"):
        pair.run(on.pid)
    assert pair.run(on.pid)[0] == pids[0]


def fail_once(monkeypatch, cls, name):
    """Let the first call of a method raise as if the controller had died in it."""
    method, failed = getattr(cls, name), []

    def once(*args, **kwargs):
        if failed:
            return method(*args, **kwargs)
        failed.append(True)
        raise HelperDied(helper="controller", cause="as a test wanted")

    monkeypatch.setattr(cls, name, once)


@pytest.mark.parametrize("name", ["_start_controller", "_await_registration"])
def test_a_start_that_fails_does_not_touch_the_ranks_that_live(pair, monkeypatch, name):
    pids = pair.run(on.pid)
    pair.kill(1)
    fail_once(monkeypatch, Cluster, name)
    with pytest.raises(HelperDied, match="as a test wanted"):
        pair.run(on.pid)
    assert pair.run(on.pid)[0] == pids[0]
    assert len(pair._cluster._engines.processes()) == 3  # with the fork server: what was begun is gone


def test_a_controller_that_cannot_take_over_is_followed_by_one_that_begins_anew(pair, monkeypatch):
    pids = pair.run(on.pid)
    kill(helper(pair, "controller"))
    fail_once(monkeypatch, Controller, "_connect")
    with pytest.raises(HelperDied, match="as a test wanted"), pytest.warns(RuntimeWarning):
        pair.run(on.pid)
    with pytest.warns(RuntimeWarning):
        assert len(set(pair.run(on.pid)) - set(pids)) == 2  # nothing could reach the former ranks any more


@pytest.mark.timeout(180)
@pytest.mark.parametrize("seed", range(2))
def test_any_of_them_in_any_order(seed):
    chance = random.Random(seed)
    ranks = Ranks(PAIR)
    [mark] = ranks._cluster._marks.items()
    directories = [ranks._cluster.run_dir, ranks._cluster.segment_dir]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for _ in range(3):
            doomed = chance.sample(HELPERS, chance.randint(1, len(HELPERS)))
            for name in doomed:
                kill(helper(ranks, name))
                time.sleep(chance.choice([0, 0.05]))
            if chance.random() < 0.5:
                ranks.kill(chance.randrange(2))
            assert len(ranks.run(on.pid)) == 2, doomed
        for name in chance.sample(HELPERS, len(HELPERS)):
            helper(ranks, name).kill()
        ranks.close()
    assert marked_processes(*mark) == []
    assert [path for path in directories if path.exists()] == []


def test_the_controller_of_a_start_that_fails_is_not_left(monkeypatch):
    """It ends by itself as soon as it runs: named, nothing left."""
    monkeypatch.setenv("PYTHONPATH", "/nonexistent:" + os.environ.get("PYTHONPATH", ""))
    monkeypatch.setattr("mnnvl_lab.ranks.launchers.Launcher.controller_args", ["--no-such-option=1", "--version"])
    with pytest.raises(HelperDied, match="the controller process died: exit code"):
        Ranks(PAIR)


FORK = """
import os, sys
from mnnvl_lab.layout import Layout
from mnnvl_lab.ranks import Ranks
from tests import ranks_helpers as on
ranks = Ranks(Layout(dp=2))
pids = ranks.run(on.pid)
child = os.fork()
if child == 0:
    sys.exit(0)  # normally: with every handler that runs at exit
assert os.waitpid(child, 0)[1] == 0
assert ranks.run(on.pid) == pids
child = os.fork()
if child == 0:
    ranks.close()
    try:
        ranks.run(on.pid)
    except Exception as error:
        os._exit(0 if "forked child" in str(error) or "closed" in str(error) else 3)
    os._exit(4)
assert os.waitpid(child, 0)[1] == 0
assert ranks.run(on.pid) == pids
print("well", flush=True)
if os.fork() == 0:
    import time
    time.sleep(20)  # outlives its parent and holds the pipe to the reaper
    os._exit(0)
os.kill(os.getpid(), 9)
"""


def test_a_forked_child_of_the_notebook_does_not_end_the_ranks(tmp_path):
    done = run_script(FORK, tmp_path, status=-9)
    assert done == "well\n"
    wait_until_nothing_is_left(tmp_path)


DIE_IN = {
    "directories": "cluster.created = lambda directory: (directory.path.mkdir(0o700), die())",
    "fork server": "after(fork_server.ForkServer, 'open')",
    "controller": "controller.Controller._connect = lambda *args: die()",
    "controller, some ms later": "controller.Controller._connect = lambda *args: (time.sleep(0.008), die())",
    "forks": "after(fork_server.ForkServer, 'start')",
}
DYING = """
import os, time
from mnnvl_lab.layout import Layout
from mnnvl_lab.ranks import Ranks, cluster, controller, fork_server
def die():
    os.kill(os.getpid(), 9)
def after(cls, name):
    method = getattr(cls, name)
    setattr(cls, name, lambda *args, **kwargs: (method(*args, **kwargs), die()))
cluster.memory_dir = cluster.temporary_dir  # both directories where the test looks
{}
Ranks(Layout(dp=2))
"""


@pytest.mark.parametrize("moment", DIE_IN)
def test_a_notebook_killed_between_a_start_and_its_registration_leaves_nothing(tmp_path, moment):
    assert run_script(DYING.format(DIE_IN[moment]), tmp_path, status=-9) == ""
    wait_until_nothing_is_left(tmp_path)


def test_a_notebook_killed_together_with_its_reaper_leaves_no_process(tmp_path):
    script = (
        "import os\nfrom mnnvl_lab.layout import Layout\nfrom mnnvl_lab.ranks import Ranks, cluster\n"
        "cluster.memory_dir = cluster.temporary_dir\nranks = Ranks(Layout(dp=2))\n"
        "for pid in (ranks._cluster._reaper.pid, os.getpid()): os.kill(pid, 9)"
    )
    run_script(script, tmp_path, status=-9)
    deadline = time.monotonic() + 8
    while ours(tmp_path) and time.monotonic() < deadline:
        time.sleep(0.1)
    assert ours(tmp_path) == []


def run_script(script, tmp_path, *, status=0) -> str:
    """The first line that a notebook's process prints; it must end with this exit status."""
    env = os.environ | {"TMPDIR": str(tmp_path)}
    process = subprocess.Popen([sys.executable, "-c", script], env=env, stdout=subprocess.PIPE, text=True)
    try:
        assert process.wait(60) == status
        return process.stdout.readline()
    finally:
        process.stdout.close()


def wait_until_nothing_is_left(tmp_path, limit_s=8):
    deadline = time.monotonic() + limit_s
    while (left := [*ours(tmp_path), *tmp_path.iterdir()]) and time.monotonic() < deadline:
        time.sleep(0.1)
    assert left == []


def ours(tmp_path) -> list[psutil.Process]:
    """Processes started for the script, except its forked child, which may sleep on."""
    found = []
    for process in psutil.process_iter():
        try:
            if process.environ().get("TMPDIR") == str(tmp_path) and "sleep(20)" not in " ".join(process.cmdline()):
                found.append(process)
        except psutil.Error:
            continue
    return found


def test_too_few_open_files_are_refused_before_anything_starts():
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    before = len(psutil.Process().children(recursive=True))
    resource.setrlimit(resource.RLIMIT_NOFILE, (64, hard))
    try:
        with pytest.raises(Refused, match=r"at most 64 files may be open .*ulimit -n.*raise the limit"):
            Ranks(PAIR)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    assert len(psutil.Process().children(recursive=True)) == before


def test_as_many_open_files_as_are_asked_for_are_enough():
    """The rule that refuses is not wrong in the other direction: with just enough, a call works."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    needed = arguments.CONTROLLER_FILES + arguments.RANK_FILES * 2
    resource.setrlimit(
        resource.RLIMIT_NOFILE, (max(needed, psutil.Process().num_fds() + arguments.NOTEBOOK_FILES), hard)
    )
    try:
        with Ranks(PAIR) as ranks:
            assert len(ranks.run(on.groups, ["ep"])) == 2
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def test_a_full_temporary_directory_is_refused(monkeypatch):
    full = psutil.disk_usage("/")._replace(free=1000)
    monkeypatch.setattr(psutil, "disk_usage", lambda path: full)
    with pytest.raises(Refused, match=r"1000 bytes free.*TMPDIR"):
        Ranks(PAIR)


def test_a_temporary_directory_that_cannot_be_written_is_refused(monkeypatch, tmp_path):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "gone"))
    with pytest.raises(Refused, match=r"gone.*TMPDIR"):
        Ranks(PAIR)

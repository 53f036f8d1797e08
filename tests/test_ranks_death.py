"""Ranks that die or hang, and what is left when all is over."""

import os
import signal
import subprocess
import sys
import time

import psutil
import pytest

from mnnvl_lab.errors import HelperDied, RankDied, RankTimeout
from mnnvl_lab.layout import Layout
from mnnvl_lab.ranks import Ranks
from tests import ranks_helpers as on

SQUARE = Layout(tp=2, dp=2)
NAMED_WITHIN_S = 5


@pytest.fixture
def ranks(host_ranks):
    host_ranks.use(SQUARE)
    return host_ranks


@pytest.mark.serial
@pytest.mark.parametrize(
    ("call", "rank", "phase", "cause"),
    [
        ((on.exit_hard, 2, 3), 2, "dispatch", "exit code 3"),
        ((on.exit_hard, 0, 1), 0, "dispatch", "exit code 1"),  # rank 0 holds the store through which groups meet
        ((on.kill_self, 1), 1, "kill_self", "signal 9"),
    ],
)
def test_a_death_is_named_soon_and_the_next_call_works(ranks, call, rank, phase, cause):
    start = time.monotonic()
    with pytest.raises(RankDied, match=cause) as caught:
        ranks.run(*call)
    assert time.monotonic() - start < NAMED_WITHIN_S
    assert (caught.value.rank, caught.value.phase) == (rank, phase)
    assert len(ranks.run(on.groups, ["ep", "tp", "dp"])) == 4


def test_a_death_between_calls_is_named_by_the_next_one(ranks):
    pids = ranks.run(on.pid)
    os.kill(pids[1], signal.SIGKILL)
    with pytest.raises(RankDied, match=r"rank 1 .*signal 9"):
        ranks.run(on.pid)
    assert [old == new for old, new in zip(pids, ranks.run(on.pid), strict=True)] == [True, False, True, True]


def test_kill_and_renew_replace_one_process_and_all_meet_again(ranks):
    pids = ranks.run(on.pid)
    ranks.kill(3)
    assert not on.running(pids[3])
    assert ranks.run(on.pid, only=[0, 1, 2]) == pids[:3]
    ranks.renew()
    assert ranks.run(on.pid)[:3] == pids[:3]
    assert ranks.run(on.groups, ["ep"])[3] == {"ep": ((0, 1, 2, 3), (0, 1, 2, 3), 3)}


def test_a_rank_stuck_in_c_code_shows_its_stack_and_can_be_killed(ranks):
    with pytest.raises(RankTimeout, match="ranks 2") as caught:
        ranks.run(on.hold_interpreter_lock, 2, timeout_s=0.5)
    assert "in hold_interpreter_lock" in caught.value.report


def test_a_rank_that_cannot_leave_its_dead_peer_is_replaced_too(ranks, monkeypatch):
    monkeypatch.setattr("mnnvl_lab.ranks.joining.LEAVE_LIMIT_S", 0.5)
    pids = ranks.run(on.pid)
    ranks.run(on.keep_what_waits)
    ranks.kill(3)
    ranks.renew()
    assert [old == new for old, new in zip(pids, ranks.run(on.pid), strict=True)] == [True, False, True, False]


def test_stacks_of_ranks_that_are_well(ranks):
    assert all("most recent call first" in stack for stack in ranks.stacks())


def test_a_process_that_cannot_start_is_named():
    with pytest.raises(HelperDied, match="the fork server process died: exit code 1") as caught:
        Ranks(Layout(), env={"PYTHONMALLOC": "nonsense"})
    assert "PYTHONMALLOC" in caught.value.report


ENDINGS = {
    "leaving": "ranks.close()",
    "falling off the end": "",
    "raising": "raise RuntimeError('as a notebook might')",
    "interrupted in a call": (
        "signal.setitimer(signal.ITIMER_REAL, 0.5); signal.signal(signal.SIGALRM, signal.default_int_handler)\n"
        "ranks.run(on.sleep_on, 1, 60)"
    ),
    "killed": "os.kill(os.getpid(), signal.SIGKILL)",
}


@pytest.mark.parametrize("ending", ENDINGS)
def test_nothing_is_left_behind(ending, tmp_path):
    """A notebook's process that ends in each of these ways, with a TMPDIR that a careless reader takes for two."""
    script = (
        "import os, signal\n"
        "from mnnvl_lab.layout import Layout\n"
        "from mnnvl_lab.ranks import Ranks\n"
        "from tests import ranks_helpers as on\n"
        "ranks = Ranks(Layout(dp=2))\n"
        "segments = ranks.run(on.share)\n"
        "print(*ranks.run(on.pid), segments[0].parent, flush=True)\n"
    )
    temporary, stranger = tmp_path / "a b\nc", tmp_path / "a" / "thesis"
    temporary.mkdir()
    stranger.parent.mkdir()
    stranger.write_text("years of work")
    scratch = dict(os.environ, TMPDIR=str(temporary))
    command = [sys.executable, "-c", script + ENDINGS[ending]]
    done = subprocess.run(command, env=scratch, capture_output=True, text=True, timeout=60, check=False)
    first, second, segment_dir = done.stdout.split()
    _wait_until(lambda: not _left(temporary) and not os.path.exists(segment_dir) and not list(temporary.iterdir()))
    assert _left(temporary) == []
    assert list(temporary.iterdir()) == []
    assert stranger.exists()
    assert not os.path.exists(segment_dir)
    assert not on.running(int(first))
    assert not on.running(int(second))


def _left(scratch):
    """Processes that the ended one started: they have its scratch directory in their environment."""
    return [p for p in psutil.process_iter() if _environment(p).get("TMPDIR") == str(scratch)]


def _environment(process):
    try:
        return process.environ()
    except psutil.Error:
        return {}


def _wait_until(condition, limit_s=5):
    deadline = time.monotonic() + limit_s
    while not condition() and time.monotonic() < deadline:
        time.sleep(0.05)

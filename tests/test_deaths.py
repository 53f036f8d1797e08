"""Ranks that die while they measure: named with phase and cause, nothing left, and the next call works."""

import os
import time

import psutil
import pytest

from mnnvl_lab.errors import RankDied, RankError
from mnnvl_lab.faults import crashes, hangs
from mnnvl_lab.faults.crashes import Crash, crash_while_measuring
from mnnvl_lab.layout import Layout
from mnnvl_lab.measure.run import measure_point
from tests.ranks_helpers import die_in_round, fail_on, keep_gpu_busy, kill_self, pid

SQUARE = Layout(tp=2, dp=2)
NAMED_WITHIN_S = 5
# Every phase and every cause once; the whole product is `tools.soak kills`.
SAMPLE = [
    ("one_sided", Crash(rank=1, phase="open", cause="exit")),
    ("two_sided", Crash(rank=0, phase="dispatch", cause="SIGKILL")),
    ("one_sided", Crash(rank=3, phase="after dispatch", cause="memory")),
    ("one_sided", Crash(rank=2, phase="combine", cause="SIGKILL")),
    ("two_sided", Crash(rank=1, phase="timing", cause="exit")),
    ("one_sided", Crash(rank=0, phase="close", cause="SIGKILL")),
]


@pytest.fixture
def ranks(host_ranks):
    host_ranks.use(SQUARE)
    return host_ranks


@pytest.mark.serial
@pytest.mark.parametrize(("mode", "target"), SAMPLE, ids=lambda value: getattr(value, "phase", value))
def test_a_death_is_named_with_phase_and_cause_and_the_next_call_works(ranks, mode, target):
    point = hangs.small_point(SQUARE, mode=mode)
    ranks.run(pid)
    before = descendants()
    began_s = time.monotonic()
    with pytest.raises(RankError, match=crashes.WORDS[target.cause]) as caught:
        ranks.run(crash_while_measuring, point, target)
    assert time.monotonic() - began_s < NAMED_WITHIN_S
    assert caught.value.rank == target.rank
    assert caught.value.phase.startswith(target.phase)
    assert isinstance(caught.value, RankDied) == (target.cause != "memory")
    results = ranks.run(measure_point, point)
    assert [result.checked in ("exact", "bounded") for result in results] == [True] * 4
    assert descendants() == before


@pytest.mark.parametrize("mode", ["one_sided", "two_sided", "pico"])
@pytest.mark.parametrize("phase", ["dispatch", "combine"])
def test_those_who_wait_for_a_dead_rank_inside_a_round_live_on(ranks, mode, phase):
    """A rank that waits in vain to its limit would be taken for one that hangs, and killed."""
    point = hangs.small_point(SQUARE, mode=mode)
    ranks.run(measure_point, point)
    before = ranks.run(pid)
    with pytest.raises(RankDied) as caught:
        ranks.run(die_in_round, point, 2, phase)
    assert caught.value.rank == 2
    assert [was == now for was, now in zip(before, ranks.run(pid), strict=True)] == [True, True, False, True]


def test_a_process_that_lost_its_gpu_is_replaced(ranks):
    pids = ranks.run(pid)
    with pytest.raises(RankError, match="CUDA error"):
        ranks.run(crashes.lose_gpu)
    assert [old == new for old, new in zip(pids, ranks.run(pid), strict=True)] == [True, False, True, True]


def test_a_cuda_error_is_named_though_cleaning_up_aborts_the_process(ranks):
    began_s = time.monotonic()
    with pytest.raises(RankDied, match=r"CUDA error: an illegal memory access.*\n.*SIGABRT") as caught:
        ranks.run(crashes.abort_in_cleanup, hangs.small_point(SQUARE), failing=2)
    assert time.monotonic() - began_s < NAMED_WITHIN_S
    assert (caught.value.rank, caught.value.phase) == (2, "after dispatch")
    assert "in abort_in_cleanup" in caught.value.report
    with pytest.raises(RankDied) as later:  # an error is no cause for what happens in a later call
        ranks.run(crash_while_measuring, hangs.small_point(SQUARE), Crash(rank=2, phase="open", cause="SIGKILL"))
    assert "CUDA" not in str(later.value)


def test_an_error_of_an_earlier_call_is_not_the_cause_of_a_later_death(ranks):
    with pytest.raises(RankError, match="no luck on 1"):
        ranks.run(fail_on, 1)
    with pytest.raises(RankDied, match="signal 9") as caught:
        ranks.run(kill_self, 1)
    assert "no luck" not in str(caught.value)


def test_a_cuda_error_is_named_though_freeing_its_frames_would_abort(ranks):
    with pytest.raises(RankError, match=r"CUDA error.*AbortsWhenFreed") as caught:
        ranks.run(crashes.abort_with_the_frames)
    assert not isinstance(caught.value, RankDied)
    assert caught.value.rank == 1
    assert len(ranks.run(pid)) == 4


def test_a_process_whose_gpu_does_not_come_to_rest_takes_no_other_place(ranks):
    pids = ranks.run(pid)
    ranks.run(keep_gpu_busy)
    with pytest.raises(RankError, match=r"rank 1 in keep_gpu_busy: .*does not come to rest"):
        ranks.use(Layout(tp=4))
    assert pids[1] not in ranks.run(pid)
    ranks.use(SQUARE)


def test_no_segment_outlives_its_ranks(ranks):
    """Segments have no name, so that what is left is only what living processes map."""
    before = set(ranks._cluster.segment_dir.iterdir())
    point = hangs.small_point(SQUARE)
    with pytest.raises(RankDied):
        ranks.run(crash_while_measuring, point, Crash(rank=2, phase="combine", cause="SIGKILL"))
    assert [path for path in os.listdir("/dev/shm") if path.startswith("segment-")] == []
    assert set(ranks._cluster.segment_dir.iterdir()) == before


def test_the_living_go_on_without_the_dead(ranks):
    point = hangs.small_point(SQUARE, enable_rank_mask=True)
    ranks.run(hangs.open_and_keep, point)
    ranks.kill(2)
    latencies = ranks.run(hangs.live_on, point, (0, 1, 3), only=[0, 1, 3])
    assert [len(rounds) for rounds in latencies] == [3, 3, 3]
    assert len(ranks.run(measure_point, hangs.small_point(SQUARE))) == 4  # and with all four again


def descendants() -> int:
    """Processes below this one, the ranks among them."""
    return len(psutil.Process().children(recursive=True))

"""Ranks on `host`: what comes back, what happens when a rank fails, and groups against the layout's arithmetic."""

import json
import os
import stat

import numpy as np
import psutil
import pytest

from mnnvl_lab.errors import RankError, RankTimeout, Refused
from mnnvl_lab.layout import Layout
from mnnvl_lab.ranks import Ranks
from tests import ranks_helpers as on

SQUARE = Layout(tp=2, dp=2)


@pytest.fixture
def ranks(host_ranks):
    host_ranks.use(SQUARE)
    return host_ranks


def test_results_come_in_rank_order(ranks):
    assert ranks.run(on.place) == [(index, 4, "cpu", "host") for index in range(4)]


def test_every_rank_is_a_process_of_its_own_with_one_thread(ranks):
    assert len({*ranks.run(on.pid), os.getpid()}) == 5
    assert ranks.run(on.threads) == [1] * 4


def test_arguments_and_results_travel_by_value(ranks):
    array = np.arange(6.0)
    results = ranks.run(on.doubled, array)
    assert all(np.array_equal(result, [0, 2, 4, 6, 8, 10]) for result in results)
    assert array[1] == 1.0
    results[0][0] = 7  # writable
    assert ranks.run(on.echo, 1, layout=SQUARE)[3] == ((1,), {"layout": SQUARE})


def test_output_of_each_rank(ranks):
    ranks.run(on.speak)
    assert ranks.output == [f"rank {index} speaks\n" for index in range(4)]
    assert ranks.errors == [f"rank {index} warns\n" for index in range(4)]
    ranks.run(on.pid)
    assert ranks.output == [""] * 4


def test_only_some_ranks(ranks):
    assert [index for index, *_ in ranks.run(on.place, only=[3, 1])] == [1, 3]


def test_an_error_that_all_raise_alike_is_that_error(ranks):
    with pytest.raises(Refused, match=r"^tokens is 9: at most 8; pass fewer$"):
        ranks.run(on.refuse)


@pytest.mark.parametrize(
    ("call", "rank", "others", "words"),
    [
        ((on.fail_on, 1), 1, [], "no luck on 1"),
        ((on.fail_on, 0, 1, 2, 3), None, [0, 1, 2, 3], "no luck on"),
        ((on.refuse_differently,), None, [0, 1, 2, 3], "at most 8"),
        ((on.leave_interpreter,), None, [0, 1, 2, 3], "not today"),
        ((on.unpicklable,), None, [0, 1, 2, 3], "pickle"),
    ],
)
def test_other_errors_name_the_ranks_and_bring_a_traceback(ranks, call, rank, others, words):
    with pytest.raises(RankError, match=words) as caught:
        ranks.run(*call)
    error = caught.value
    assert error.phase == call[0].__name__
    assert rank in (None, error.rank)
    assert all(f"also rank {other}:" in error.cause for other in others if other != error.rank)
    assert "Traceback" in error.report
    assert ranks.run(on.fail_on) == ["fine"] * 4


def test_a_librarys_error_comes_as_words(ranks):
    """The object would make the notebook's process import the library first, which takes seconds."""
    with pytest.raises(RankError, match=r"torch\.OutOfMemoryError: CUDA out of memory") as caught:
        ranks.run(on.run_out_of_gpu_memory)
    assert caught.value.__cause__ is None
    with pytest.raises(RankError) as caught:
        ranks.run(on.fail_on, 1)
    assert isinstance(caught.value.__cause__, ValueError)


def test_a_failing_rank_is_named_although_others_wait_for_it(ranks):
    with pytest.raises(RankError, match="left the others waiting") as caught:
        ranks.run(on.fail_while_others_wait)
    assert caught.value.rank == 2
    assert len(ranks.run(on.pid)) == 4


def test_a_function_of_a_notebook_is_refused(ranks):
    def local(rank):
        return rank.index

    with pytest.raises(Refused, match="import it"):
        ranks.run(local)
    with pytest.raises(Refused, match="import it"):
        ranks.run(lambda rank: rank.index)


def test_silent_ranks_are_named_with_stack_and_phase_and_killed(ranks):
    pids = ranks.run(on.pid)
    with pytest.raises(RankTimeout, match=r"no answer within 0.5 s from ranks 3") as caught:
        ranks.run(on.sleep_on, 3, 60, timeout_s=0.5)
    assert (caught.value.rank, caught.value.phase) == (3, "combine")
    assert "in sleep_on" in caught.value.report
    assert not on.running(pids[3])
    after = ranks.run(on.pid)
    assert after[:3] == pids[:3]
    assert after[3] != pids[3]


@pytest.mark.parametrize("layout", [SQUARE, Layout(tp=1, dp=2, pcp=2), Layout(pp=2, tp=2), Layout(tp=4), Layout(dp=3)])
def test_groups_are_those_of_the_layout(host_ranks, layout):
    host_ranks.use(layout)
    names = ("ep", "tp", "dp", "pcp", "pp")
    for index, found in enumerate(host_ranks.run(on.groups, names)):
        for name in names:
            members = next(group for group in layout.groups(name) if index in group)
            assert found[name] == (members, members, members.index(index))


def test_collectives_and_the_torch_group_beneath(ranks):
    assert ranks.run(on.collectives) == [("from 3", 6, True)] * 4


def test_another_layout_keeps_the_processes(ranks):
    pids = ranks.run(on.pid)
    ranks.use(Layout(dp=2))
    assert ranks.size == 2
    assert ranks.run(on.pid) == pids[:2]
    ranks.use(Layout(dp=4))
    assert ranks.run(on.pid) == pids


def test_more_ranks_than_processes_adds_some(ranks):
    pids = ranks.run(on.pid)
    ranks.use(Layout(dp=5))
    more = ranks.run(on.pid)
    assert more[:4] == pids
    assert len(set(more)) == 5
    assert ranks.run(on.groups, ["ep"])[4] == {"ep": ((0, 1, 2, 3, 4), (0, 1, 2, 3, 4), 4)}


def test_kept_objects_last_until_the_next_layout_and_are_closed_then(ranks, tmp_path):
    ranks.run(on.keep, tmp_path)
    assert ranks.run(on.kept) == [["array", "first", "shared"]] * 4
    ranks.use(Layout(tp=4))
    assert ranks.run(on.kept) == [[]] * 4
    assert [(tmp_path / str(index)).read_text() for index in range(4)] == ["closed"] * 4
    assert [(tmp_path / f"shared-{index}").read_text() for index in range(4)] == ["abandoned"] * 4


def test_segments_lie_in_a_private_directory(ranks):
    paths = ranks.run(on.share)
    assert len({path.parent for path in paths}) == 1
    assert stat.S_IMODE(paths[0].parent.stat().st_mode) == 0o700


def test_messages_are_encrypted_and_signed_and_stay_on_loopback(ranks):
    """Read where ipyparallel itself reads what to connect to."""
    run_dir = ranks._cluster.run_dir
    [engine_side, client_side] = sorted((run_dir / "security").glob("*.json"), reverse=True)
    assert stat.S_IMODE(run_dir.stat().st_mode) == 0o700
    for path in (engine_side, client_side):
        connection = json.loads(path.read_text())
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
        assert connection["interface"] == "tcp://127.0.0.1"
        assert len(connection["key"]) == 64
        assert connection["curve_serverkey"]
    for pid in [*ranks.run(on.pid), ranks._cluster._cluster.controller.pid]:
        listening = [c for c in psutil.Process(pid).net_connections() if c.status == psutil.CONN_LISTEN]
        assert {c.laddr.ip for c in listening} <= {"127.0.0.1"}


def test_no_such_launcher_or_fabric():
    with pytest.raises(Refused, match="local, mpi, ssh, slurm"):
        Ranks(SQUARE, launcher="pigeon")
    with pytest.raises(Refused, match="host, nvlink, shared_gpu"):
        Ranks(SQUARE, fabric="wool")

"""Ranks on `host`: what comes back, what happens when a rank fails, and groups against the layout's arithmetic."""

import dataclasses
import functools
import json
import os
import stat
import threading
import time
from types import SimpleNamespace

import numpy as np
import psutil
import pytest

from mnnvl_lab.errors import RankError, RankTimeout, Refused
from mnnvl_lab.layout import Layout
from mnnvl_lab.measure import Sampling, Sweep, measure
from mnnvl_lab.measure.run import run
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
    for other in (0, 1, 3):
        assert f"rank {other} (in fail_while_others_wait) gave no answer and was killed" in caught.value.cause
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
    assert [(tmp_path / f"shared-{index}").read_text() for index in range(4)] == ["aborted"] * 4


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
    for pid in [*ranks.run(on.pid), ranks._cluster._controller.cluster.controller.pid]:
        listening = [c for c in psutil.Process(pid).net_connections() if c.status == psutil.CONN_LISTEN]
        assert {c.laddr.ip for c in listening} <= {"127.0.0.1"}


def test_no_such_launcher_or_fabric():
    with pytest.raises(Refused, match="local, mpi, ssh, slurm"):
        Ranks(SQUARE, launcher="pigeon")
    with pytest.raises(Refused, match="host, nvlink, shared_gpu"):
        Ranks(SQUARE, fabric="wool")


CLOSED_USES = {
    "run": lambda ranks: ranks.run(on.pid),
    "run only": lambda ranks: ranks.run(on.pid, only=[0]),
    "use the same": lambda ranks: ranks.use(ranks.layout),
    "use another": lambda ranks: ranks.use(Layout(dp=2)),
    "renew": lambda ranks: ranks.renew(),
    "kill": lambda ranks: ranks.kill(0),
    "stacks": lambda ranks: ranks.stacks(),
    "examine": lambda ranks: ranks.examine(),
    "with": lambda ranks: ranks.__enter__(),
    "a point": lambda ranks: measure(next(QUICK.points()), ranks),
    "a sweep": lambda ranks: run(QUICK, ranks=ranks, progress=False),
}
QUICK = Sweep(
    layouts=(Layout(tp=2),),
    tokens=(4, 8, 12),
    modes=("one_sided",),
    hidden=64,
    experts=8,
    top_k=2,
    sampling=Sampling(warmup=0, min_samples=1, max_samples=1, budget_s=0.0),
)


@pytest.fixture(scope="module")
def closed_ranks():
    with Ranks(Layout(tp=2)) as ranks:
        ranks.run(on.speak)
    return ranks


@pytest.mark.parametrize("use", CLOSED_USES.values(), ids=CLOSED_USES)
def test_closed_ranks_are_refused_at_once_with_the_way_on(closed_ranks, use):
    began_s = time.monotonic()
    with pytest.raises(Refused, match=r"ranks are closed.*start new ones with Ranks\(layout\)"):
        use(closed_ranks)
    assert time.monotonic() - began_s < 1


def test_closed_ranks_say_so_and_keep_what_was_printed(closed_ranks):
    assert repr(closed_ranks) == "Ranks(DP 1 x PCP 1 x TP 2 = 2, host, closed)"
    assert closed_ranks.closed
    assert closed_ranks.output == ["rank 0 speaks\n", "rank 1 speaks\n"]
    closed_ranks.close()


def test_a_sweep_on_closed_ranks_leaves_no_file(closed_ranks, tmp_path):
    with pytest.raises(Refused, match=r"these ranks are closed: start new ones with Ranks\(layout\)"):
        run(QUICK, ranks=closed_ranks, out=tmp_path / "out.parquet", progress=False)
    assert not list(tmp_path.iterdir())


def test_a_sweep_for_another_fabric_than_the_ranks_is_refused_before_it_starts():
    ranks = SimpleNamespace(fabric="shared_gpu", require_open=lambda: None)
    with pytest.raises(Refused, match=r"sweep is for fabric host but the ranks are on shared_gpu: .* pass the same"):
        run(QUICK, ranks=ranks, progress=False)


WRONG_ARGUMENTS = {
    "only beyond": (lambda ranks: ranks.run(on.pid, only=[9]), r"in only is 9: the layout has 4 ranks; pass .* 0 to 3"),
    "only negative": (lambda ranks: ranks.run(on.pid, only=[-1]), r"in only is -1: the layout has 4 ranks"),
    "only text": (lambda ranks: ranks.run(on.pid, only="01"), r"only is '01': it must be a list of ranks"),
    "only a number": (lambda ranks: ranks.run(on.pid, only=2), r"only is 2: it must be a list of ranks.*only=\[0\]"),
    "only nobody": (lambda ranks: ranks.run(on.pid, only=[]), r"only is empty: .* needs at least one rank"),
    "only a truth": (lambda ranks: ranks.run(on.pid, only=[True]), r"in only is True"),
    "kill beyond": (lambda ranks: ranks.kill(99), r"rank is 99: the layout has 4 ranks; pass an integer from 0 to 3"),
    "kill a name": (lambda ranks: ranks.kill("0"), r"rank is '0'"),
    "use None": (lambda ranks: ranks.use(None), r"layout is None: it must be a Layout; pass one, such as Layout\("),
    "use a number": (lambda ranks: ranks.use(4), r"layout is 4: it must be a Layout"),
    "use the class": (lambda ranks: ranks.use(Layout), r"it must be a Layout"),
    "no time": (
        lambda ranks: ranks.run(on.pid, timeout_s=0),
        r"timeout_s is 0: it must be a number of seconds above 0",
    ),
    "no number": (lambda ranks: ranks.run(on.pid, timeout_s=float("nan")), r"timeout_s is nan: .* seconds above 0"),
    "time as text": (lambda ranks: ranks.run(on.pid, round_limit_s="5"), r"round_limit_s is '5'"),
    "no function": (lambda ranks: ranks.run(None), r"None is no function: pass one that a module defines"),
    "half a function": (lambda ranks: ranks.run(functools.partial(on.echo, 1)), r"put it at the top level of a module"),
    "what pickle refuses": (
        lambda ranks: ranks.run(on.echo, lambda: 0),
        r"cannot be sent .* arguments are pickled; pass",
    ),
    "a lock": (lambda ranks: ranks.run(on.echo, x=threading.Lock()), r"cannot be sent .* arguments are pickled; pass"),
}


@pytest.mark.parametrize(("call", "words"), WRONG_ARGUMENTS.values(), ids=WRONG_ARGUMENTS)
def test_wrong_arguments_are_refused_and_change_nothing(ranks, call, words):
    before = repr(ranks), ranks.run(on.pid)
    joins = ranks._joining.joins
    with pytest.raises(Refused, match=words):
        call(ranks)
    assert (repr(ranks), ranks.run(on.pid)) == before
    assert ranks._joining.joins == joins


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"layout": 4}, "layout is 4: it must be a Layout"),
        ({"layout": None}, "layout is None"),
        ({"fabric": ["host"]}, r"fabric \['host'\] is not known: .*host, nvlink, shared_gpu"),
        ({"launcher": None}, "launcher None is not known: .*local, mpi, ssh, slurm"),
        ({"start_timeout_s": -1}, "start_timeout_s is -1: .* above 0"),
        ({"env": ["A=1"]}, r"env is \['A=1'\]: it must be a dict of strings, or a function"),
        ({"env": {"A": 1}}, "env has 'A': 1: names and values must be strings"),
        ({"env": lambda rank: {"A": rank}}, "env has 'A': 0: names and values must be strings"),
        ({"launcher_options": {"MPI": 4}}, "launcher_options is .* a dict of dicts by class name"),
    ],
)
def test_ranks_that_cannot_be_are_refused(fields, words):
    with pytest.raises(Refused, match=words):
        Ranks(**{"layout": SQUARE} | fields)


def test_a_layout_that_does_not_come_up_leaves_the_one_before(ranks, monkeypatch):
    def no_more(*args, **kwargs):
        raise RankTimeout(rank=4, phase="start", cause="not today")

    with monkeypatch.context() as patch:
        patch.setattr(ranks._cluster, "start", no_more)
        with pytest.raises(RankTimeout, match="not today"):
            ranks.use(Layout(dp=1 + len(ranks._pool.processes)))
    assert ranks.layout == SQUARE
    assert ranks.run(on.groups, ["ep"])[3] == {"ep": ((0, 1, 2, 3), (0, 1, 2, 3), 3)}


def test_ranks_join_again_only_where_they_must(ranks):
    """Counted, since a join is most of what another point on warm ranks costs."""
    joins = ranks._joining.joins

    def joined():
        return ranks._joining.joins - joins

    ranks.use(SQUARE)
    run(dataclasses.replace(QUICK, layouts=(SQUARE,)), ranks=ranks, progress=False)
    assert joined() == 0  # three points
    run(dataclasses.replace(QUICK, layouts=(SQUARE, Layout(dp=4))), ranks=ranks, progress=False)
    assert joined() == 1  # six points of two layouts
    ranks.use(SQUARE)
    assert joined() == 2
    ranks.renew()
    assert joined() == 3  # fresh groups are what it is for


@pytest.mark.parametrize("spoil", [lambda ranks: ranks.run(on.fail_on, 1), lambda ranks: ranks.run(on.refuse)])
def test_ranks_join_again_after_a_call_that_failed(ranks, spoil):
    """It may have left a collective half-way: one rank has sent what another never took."""
    joins = ranks._joining.joins
    with pytest.raises((RankError, Refused)):
        spoil(ranks)
    ranks.use(SQUARE)
    assert ranks._joining.joins == joins + 1


def test_use_replaces_a_rank_that_died_unnoticed(ranks):
    pids = ranks.run(on.pid)
    psutil.Process(pids[2]).kill()
    psutil.wait_procs([psutil.Process(pids[2])] if psutil.pid_exists(pids[2]) else [], timeout=5)
    ranks.use(SQUARE)
    after = ranks.run(on.pid)
    assert after[2] != pids[2]
    assert after[:2] + after[3:] == pids[:2] + pids[3:]


@pytest.mark.parametrize("sizes", [(0, 1, 2, 3), (10, 5000, 0, 3), (2030, 2031, 2032, 2033), (10**6, 1, 2040, 7)])
def test_objects_of_any_size_are_gathered(host_ranks, sizes):
    host_ranks.use(Layout(dp=4))
    assert host_ranks.run(on.gather_sizes, sizes) == [list(sizes)] * 4


def test_a_rank_that_refuses_after_the_others_is_heard_and_lives(host_ranks):
    pids = host_ranks.run(on.pid)
    with pytest.raises(Refused, match="the words are alike"):
        host_ranks.run(on.refuse_late, 3)
    assert host_ranks.run(on.pid) == pids

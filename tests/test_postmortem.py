"""Post-mortem of a hang: the judgement on snapshots made by hand, then on ranks that hang."""

import pickle
import time

import numpy as np
import pytest

from mnnvl_lab.errors import Hang
from mnnvl_lab.faults import hangs as on
from mnnvl_lab.hang import diagnose
from mnnvl_lab.hang.detect import Watchdog
from mnnvl_lab.hang.diagnosis import innermost
from mnnvl_lab.hang.snapshot import DEAD, DONE, CollectiveCounter, Snapshot, from_json, to_json
from mnnvl_lab.layout import Layout
from mnnvl_lab.plots.layout import waits

PAIR, SQUARE = Layout(dp=2), Layout(tp=2, dp=2)


def one_sided(rank, epoch, dispatch, combine, *, peers=(0, 1), **more) -> Snapshot:
    flags = {"flag_val": [epoch], "dispatch_completion_flags": dispatch, "combine_completion_flags": combine}
    arrays = {name: np.array(values, np.int32) for name, values in flags.items()}
    return Snapshot(rank=rank, mode="one_sided", peers=peers, flags=arrays, **more)


def two_sided(rank, *, counts, entries, peers=(0, 1), **more) -> Snapshot:
    """`counts` and `entries` untaken, by peer; each FIFO has moved five entries before."""
    flags = {
        "prepare_connections": np.array([[0, 0, n] for n in counts], np.uint64),
        "connections": np.array([[[5 + n, 5, 0]] for n in entries], np.uint64),
    }
    return Snapshot(rank=rank, mode="two_sided", peers=peers, flags=flags, **more)


def verdict_on(*snapshots, layout=PAIR):
    return diagnose({snapshot.rank: snapshot for snapshot in snapshots}, layout, limit_s=2)


def test_the_hang_that_was_measured_on_gpus():
    """Two H100s, three rounds, then rank 1 stays away from the fourth dispatch: flag_val 7, flags [7, 5]."""
    hang_report = verdict_on(
        one_sided(0, 7, [7, 5], [6, 6], phase="dispatch"), one_sided(1, 6, [5, 5], [6, 6], phase="after combine")
    )
    assert hang_report.culprits == (1,)
    assert hang_report.hangs_in_round
    assert "rank 1 (DP 1, PP 0, PCP 0, TP 0) never arrived at the dispatch of epoch 7" in hang_report.headline
    assert "its last dispatch signal here was epoch 5" in hang_report.headline
    assert "it is in after combine" in hang_report.headline
    table = hang_report.to_frame()
    assert table["epoch"].tolist() == [7, 6]
    assert table["waits_for"].tolist() == [(1,), ()]
    assert table["never_arrived"].tolist() == [False, True]


def test_a_rank_that_never_began_has_epoch_zero():
    assert verdict_on(one_sided(0, 1, [1, 0], [0, 0]), one_sided(1, 0, [1, 0], [0, 0])).culprits == (1,)


def test_combine_looks_at_its_own_flags():
    hang_report = verdict_on(one_sided(0, 8, [7, 7], [8, 6]), one_sided(1, 7, [7, 7], [8, 6]))
    assert hang_report.culprits == (1,)
    assert "combine of epoch 8" in hang_report.headline


def test_ranks_whose_flags_are_all_there_wait_for_nobody():
    hang_report = verdict_on(one_sided(0, 7, [7, 7], [6, 6]), one_sided(1, 7, [7, 7], [6, 6]))
    assert hang_report.waits == ()
    assert not hang_report.hangs_in_round
    assert "no rank shows whom it waits for" in hang_report.headline


def test_a_chain_leads_to_its_end():
    """Rank 0 waits for 1, which waits in another group for 3: only 3 is to blame."""
    flags = [7, 5, 7, 7]
    chain = one_sided(
        1,
        6,
        [5] * 4,
        [6] * 4,
        peers=(0, 1, 2, 3),
        collectives={"dp": CollectiveCounter(ranks=(1, 3), begun=4, done=3)},
    )
    hang_report = verdict_on(
        one_sided(0, 7, flags, [6] * 4, peers=(0, 1, 2, 3)),
        chain,
        Snapshot(rank=3, collectives={"dp": CollectiveCounter(ranks=(1, 3), begun=3, done=3)}),
        layout=SQUARE,
    )
    assert [(wait.waiter, wait.awaited) for wait in hang_report.waits] == [(0, 1), (1, 3)]
    assert hang_report.culprits == (3,)
    assert "collective 4 of group dp" in hang_report.headline


def test_a_circle_is_called_one():
    hang_report = verdict_on(
        one_sided(0, 7, [7, 5], [6, 6], phase="dispatch"), one_sided(1, 8, [7, 7], [6, 8], phase="combine")
    )
    assert hang_report.culprits == ()
    assert "in a circle" in hang_report.headline
    assert "rank 0 in dispatch" in hang_report.headline
    assert "rank 1 in combine" in hang_report.headline


def test_a_masked_rank_is_nobody_s_concern():
    left_out = one_sided(0, 7, [7, 5], [6, 6], active=(0,))
    assert verdict_on(left_out, Snapshot(rank=1, state=DEAD)).waits == ()
    everyone = one_sided(0, 7, [7, 5], [6, 6])
    assert "it is dead" in verdict_on(everyone, Snapshot(rank=1, state=DEAD)).headline


def test_a_finished_rank_waits_for_nobody_whatever_its_flags():
    hang_report = verdict_on(one_sided(0, 7, [7, 5], [6, 6]), one_sided(1, 5, [5, 3], [4, 4], state=DONE))
    assert hang_report.culprits == (1,)
    assert "it is finished" in hang_report.headline


@pytest.mark.parametrize(
    ("counts", "entries", "phase", "missing"),
    [([0, 4], [0, 0], "prepare", "prepare"), ([0, 0], [0, 2], "combine", "combine"), ([0, 0], [0, 1], "", "move")],
)
def test_two_sided_leaves_what_was_not_taken(counts, entries, phase, missing):
    waiter = two_sided(0, counts=counts, entries=entries, phase=phase)
    hang_report = verdict_on(waiter, two_sided(1, counts=[0, 0], entries=[0, 0], phase="after combine"))
    assert [(wait.waiter, wait.awaited, wait.missing) for wait in hang_report.waits] == [(0, 1, missing)]


def test_phases_speak_only_where_nothing_else_does():
    inside = two_sided(0, counts=[0, 0], entries=[0, 0], phase="dispatch")
    assert verdict_on(inside, Snapshot(rank=1, phase="after combine")).culprits == (1,)
    assert verdict_on(inside, Snapshot(rank=1, phase="dispatch")).waits == ()
    assert verdict_on(one_sided(0, 7, [7, 7], [6, 6], phase="dispatch"), Snapshot(rank=1, phase="open")).waits == ()


def test_snapshots_travel_as_text():
    shown = one_sided(
        3,
        7,
        [7, 5],
        [6, 6],
        active=(0, 1),
        collectives={"ep": CollectiveCounter(ranks=(0, 3), begun=2, done=1)},
        trouble="none",
    )
    back = from_json(to_json(shown))
    assert {**vars(back), "flags": 0} == {**vars(shown), "flags": 0}
    assert {name: array.tolist() for name, array in back.flags.items()} == {
        name: array.tolist() for name, array in shown.flags.items()
    }


def test_the_innermost_frame_is_the_rank_function_s():
    stack = (
        'Thread 0x1 (most recent call first):\n  File "/a/ipykernel/iostream.py", line 3 in _watch\n\n'
        'Current thread 0x2 (most recent call first):\n  File "/x/lib/python3.11/threading.py", line 9 in wait\n'
        '  File "/x/mine.py", line 12 in stay_away\n  File "/x/mnnvl_lab/ranks/engine.py", line 1 in run\n'
        '  File "/x/other.py", line 5 in main\n'
    )
    assert innermost(stack) == "mine.py:12 in stay_away"
    assert innermost("") == ""


class Looks:
    """Verdicts to be given one after the other."""

    def __init__(self, *verdicts):
        self.verdicts = list(verdicts)

    def __call__(self, done):
        return self.verdicts.pop(0)


HANGING = verdict_on(one_sided(0, 7, [7, 5], [6, 6]), one_sided(1, 6, [5, 5], [6, 6]))
LATER = verdict_on(one_sided(0, 9, [9, 7], [8, 8]), one_sided(1, 8, [7, 7], [8, 8]))


def stall_of(*looks, phases=lambda: {0: "timing"}, seconds_used=dict, limit_s=0.0):
    return Watchdog(phases=phases, seconds_used=seconds_used, examine=Looks(*looks), limit_s=limit_s)


@pytest.mark.parametrize(("looks", "hangs"), [((HANGING, HANGING), True), ((HANGING, LATER), False)])
def test_a_stall_is_a_hang_only_if_two_looks_agree(looks, hangs):
    assert (stall_of(*looks)(()) is HANGING) == hangs


@pytest.mark.parametrize(("worker", "hangs"), [(1, False), (0, True)])
def test_an_awaited_rank_that_computes_is_late_and_not_absent(worker, hangs):
    clock = iter(range(100))
    watchdog = stall_of(HANGING, HANGING, seconds_used=lambda: {0: 0, 1: 0} | {worker: next(clock)})
    assert (watchdog(()) is HANGING) == hangs


def test_ranks_that_report_progress_are_left_alone():
    words = iter(range(10**6))
    watchdog = stall_of(phases=lambda: {0: str(next(words))}, limit_s=0.3)
    deadline = time.monotonic() + 1
    while time.monotonic() < deadline:
        assert watchdog(()) is None


def test_the_figure_has_a_node_a_rank_and_an_arrow_a_wait():
    ax = waits(HANGING.to_frame())
    assert {artist.get_gid() for artist in ax.get_children()} >= {"rank 0", "rank 1", "0 waits for 1"}
    assert ax.get_title(loc="left") == "rank 1 never arrived"


@pytest.fixture
def ranks(host_ranks):
    host_ranks.use(SQUARE)
    return host_ranks


LIMIT_S = 1.5


def hang_of(ranks, fn, *args, **kwargs) -> tuple[Hang, float]:
    began_s = time.monotonic()
    with pytest.raises(Hang) as caught:
        ranks.run(fn, *args, **kwargs)
    return caught.value, time.monotonic() - began_s


@pytest.mark.serial
def test_a_rank_that_stays_away_is_named_soon_and_the_next_call_works(ranks):
    ranks.run(on.stay_away, on.small_point(SQUARE), culprits=None, phase="", rounds=1)
    hang, took_s = hang_of(
        ranks, on.stay_away, on.small_point(SQUARE), culprits=1, phase="dispatch", round_limit_s=LIMIT_S
    )
    assert took_s < LIMIT_S + 1 + 1  # a second for the rounds before it
    assert (hang.rank, hang.hang_report.culprits) == (1, (1,))
    assert "never arrived at the dispatch of epoch 7 (its last dispatch signal here was epoch 5)" in str(hang)
    table = hang.hang_report.to_frame().set_index("rank")
    assert table["epoch"].tolist() == [7, 6, 7, 7]
    assert table.loc[[0, 2, 3], "waits_for"].tolist() == [(1,)] * 3
    assert table.loc[1, ["dp", "tp", "phase"]].tolist() == [0, 1, "after combine"]
    assert "in idle" in table.loc[1, "at"]
    assert "in stay_away" in hang.report
    assert len(ranks.run(on.stay_away, on.small_point(SQUARE), culprits=None, phase="", rounds=1)) == 4


def test_two_sided_in_the_middle_of_a_round(ranks):
    hang, _ = hang_of(
        ranks,
        on.stay_away,
        on.small_point(SQUARE, mode="two_sided"),
        culprits=2,
        phase="combine",
        round_limit_s=LIMIT_S,
    )
    assert hang.hang_report.culprits == (2,)
    assert hang.hang_report.to_frame()["phase"].tolist() == ["combine", "combine", "after dispatch", "combine"]


@pytest.mark.serial
def test_a_rank_that_returned_while_others_agree_on_a_batch(ranks):
    """The limit of the call, and a wait in a collective rather than on flags."""
    hang, took_s = hang_of(ranks, on.return_early, on.small_point(SQUARE), culprits=3, timeout_s=LIMIT_S)
    assert took_s < LIMIT_S + 1
    assert hang.hang_report.culprits == (3,)
    assert "it is finished" in str(hang)
    assert str(pickle.loads(pickle.dumps(hang))) == str(hang)

"""All-gather through shared memory: every member's bytes, in order, however fast or slow the members are."""

import os
import random
import time
from concurrent.futures import ThreadPoolExecutor

import pytest

from mnnvl_lab.errors import RankDied, RankError, RankTimeout
from mnnvl_lab.layout import Layout
from mnnvl_lab.ranks.board import Board
from tests import ranks_helpers as on

RANKS = (3, 5, 8)
CALLS = 200


class Store:
    """A stand-in for torch's: the first member's word for the others."""

    def __init__(self):
        self._said = {}

    def set(self, name, value):
        self._said[name] = value.encode()

    def check(self, names):
        return all(name in self._said for name in names)

    def get(self, name):
        return self._said[name]


def board(store, place, directory, *, check=lambda: None, limit_s=30.0):
    return Board(
        "group", ranks=RANKS, place=place, slot_bytes=64, store=store, directory=directory, check=check, limit_s=limit_s
    )


@pytest.mark.parametrize("named", [False, True])
def test_members_of_any_pace_see_the_same(tmp_path, monkeypatch, named):
    """Also as files, for systems without nameless segments; none of them is left."""
    if named:
        monkeypatch.delattr(os, "memfd_create", raising=False)
    store = Store()

    def member(place):
        mine, chance = board(store, place, tmp_path), random.Random(place)
        seen = []
        for call in range(CALLS):
            if chance.random() < 0.05:
                time.sleep(chance.random() * 2e-3)
            seen.append([part.rstrip(b"\0") for part in mine.gather(b"%d of %d" % (call, place))])
        return seen

    with ThreadPoolExecutor(len(RANKS)) as threads:
        seen = list(threads.map(member, range(len(RANKS))))
    assert seen == [[[b"%d of %d" % (call, place) for place in range(len(RANKS))] for call in range(CALLS)]] * len(
        RANKS
    )
    assert list(tmp_path.iterdir()) == []


def test_a_member_that_stays_away_is_named(tmp_path):
    store = Store()
    first = board(store, 0, tmp_path, limit_s=0.1)
    second = board(store, 1, tmp_path, limit_s=0.1)
    with ThreadPoolExecutor(1) as thread:
        thread.submit(second.gather, b"")
        with pytest.raises(RankTimeout, match=r"rank 3 waited .* \(group\) for rank 8") as caught:
            first.gather(b"")
    assert caught.value.rank == 8


def test_a_first_member_that_stays_away_is_named(tmp_path):
    with pytest.raises(RankTimeout, match=r"rank 5 waited 0.1 s .* for rank 3") as caught:
        board(Store(), 1, tmp_path, limit_s=0.1)
    assert caught.value.rank == 3


@pytest.mark.skipif(os.getuid() != 0, reason="only root can make a file another user's")
def test_a_segment_of_another_user_is_refused(tmp_path):
    """The store listens on loopback, and whoever is on the machine can write to it."""
    foreign, store = tmp_path / "foreign", Store()
    foreign.write_bytes(bytes(4096))
    os.chown(foreign, 65534, 65534)
    store.set("group", str(foreign))
    with pytest.raises(RankError, match="foreign is another user's"):
        board(store, 1, tmp_path)


def test_waiting_in_vain_ends(tmp_path):
    def check():
        raise RankDied(rank=5, phase="here", cause="gone")

    with pytest.raises(RankDied, match="rank 5 in here: gone"):
        board(Store(), 0, tmp_path, check=check).gather(b"")


def test_those_who_wait_for_a_rank_that_dies_live_on(host_ranks):
    host_ranks.use(Layout(tp=2, dp=2))
    before = host_ranks.run(on.pid)
    with pytest.raises(RankDied) as caught:
        host_ranks.run(on.gather_or_die, 2)
    assert caught.value.rank == 2
    assert "killed" not in caught.value.cause
    after = host_ranks.run(on.pid)
    assert [was == now for was, now in zip(before, after, strict=True)] == [True, True, False, True]


def test_members_at_different_calls_are_told_so(host_ranks):
    host_ranks.use(Layout(tp=2, dp=2))
    for rank, cause, after in host_ranks.run(on.out_of_step, 2):
        assert rank == 2
        assert "group world are at different collective calls (rank 2: barrier; rank 0, 1, 3: check a batch)" in cause
        assert after == [0, 1, 2, 3]


def test_boards_of_earlier_layouts_are_let_go(host_ranks):
    for layout in [Layout(dp=4), Layout(tp=2, dp=2)] * 3:
        host_ranks.use(layout)
        boards = host_ranks.run(on.boards_after_gathering)
    assert boards == [2] * 4  # of the world and of the EP group

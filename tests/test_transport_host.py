"""What the `host` transports have beyond the contract: FlashInfer's protocol to the byte, waiting, ending."""

import os
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch

from mnnvl_lab.errors import LabError, RankError, RankTimeout
from mnnvl_lab.exchange import Exchange
from mnnvl_lab.layout import Layout
from mnnvl_lab.oracle import reduce_slots
from mnnvl_lab.oracle.kernel_rules import target_ranks
from mnnvl_lab.ranks.sync import Fence, wait_until
from mnnvl_lab.routing import HotRank, Load, Uniform
from mnnvl_lab.transport.host.combine_sum import CombineSum, RowTable, additions
from mnnvl_lab.transport.host.shared_memory import (
    SharedMemory,
)
from tests import transport_helpers as on

LAYOUT = Layout(tp=2, dp=2)
LOAD = Load(routing=Uniform(), tokens=(24, 0, 17, 3), seed=1)


def exchange(mode="one_sided", **more):
    shape = {"layout": LAYOUT, "max_tokens": 24, "hidden": 256, "experts": 16, "top_k": 4}
    return Exchange(mode=mode, **shape | more)


@pytest.fixture
def four(host_ranks):
    host_ranks.use(LAYOUT)
    return host_ranks


# The one-sided workspace.


def test_counters_flags_and_tables_are_the_kernels(four):
    """After two rounds and a dispatch, against a recomputation from the kernel's description."""
    x = exchange()
    after = four.run(on.regions_after, x, LOAD, 2)
    targets_R = [
        target_ranks(LOAD.experts_TK(r, experts=16, top_k=4, ep_size=4), experts=16, ep_size=4) for r in range(4)
    ]
    for me, regions in enumerate(after):
        sent = [int((targets_R[me] == target).sum()) for target in range(4)]
        assert regions["flag_val"].tolist() == [5]
        assert regions["dispatch_completion_flags"].tolist() == [5] * 4
        assert regions["combine_completion_flags"].tolist() == [4] * 4
        assert regions["local_token_counter"].tolist() == [LOAD.tokens[me]]
        assert regions["send_counters"].tolist() == sent
        assert regions["recv_counters"].tolist() == [int((targets == me).sum()) for targets in targets_R]
        table = regions["topk_target_ranks"][: targets_R[me].size]
        assert np.array_equal(table, targets_R[me].ravel())
        slots = regions["topk_send_indices"][: table.size]
        for target in range(4):
            assert sorted(slots[table == target]) == list(range(sent[target]))
        assert (slots[table < 0] == -1).all()


@pytest.mark.parametrize(
    "options",
    [
        {"payload_in_workspace": True},
        {"low_precision_combine": True},
        {"low_precision_combine": True, "payload_in_workspace": True},
        {"combine_dtype": "fp32", "payload_in_workspace": True},
    ],
    ids=str,
)
@pytest.mark.parametrize("top_k", [2, 8])
def test_options_of_combine_agree_to_the_last_bit(four, options, top_k):
    x = exchange(**options, top_k=top_k)
    assert four.run(on.rounds, x, [LOAD, replace(LOAD, seed=2)]) == [2] * 4


@pytest.mark.parametrize("top_k", [6, 10, 12, 14, 16, 18, 22])
def test_every_compiled_top_k_agrees_to_the_last_bit(four, top_k):
    assert four.run(on.rounds, exchange(top_k=top_k, experts=24, hidden=64), [LOAD]) == [1] * 4


def test_load_statistics_reach_all_ranks(four):
    expected = np.arange(16) + 100 * np.arange(4)[:, None]
    for stats in four.run(on.gathered_stats, exchange(eplb_stats_experts=16), LOAD):
        assert np.array_equal(stats, expected)


def test_the_living_go_on_without_a_masked_rank(four):
    x = exchange(enable_rank_mask=True)
    epochs = four.run(on.without_a_rank, x, replace(LOAD, tokens=9), active_ranks=(0, 1, 3))
    assert epochs == [[4], [4], [0], [4]]


# Waiting, and ranks that do not come.


@pytest.mark.parametrize(("mode", "phase"), [("one_sided", "dispatch"), ("two_sided", "prepare")])
def test_a_rank_that_stays_away_is_named(four, mode, phase):
    told = four.run(on.one_stays_away, exchange(mode), LOAD, absent=2, limit_s=0.3)
    for me in (0, 1, 3):
        late, where, cause, again = told[me]
        assert (late, where) == (2, phase)
        assert f"rank {me} waited 0.3 s" in cause
        assert again.startswith("Refused: dispatch called while the transport is 'failed'")
    assert four.run(on.rounds, exchange(mode), [LOAD]) == [1] * 4


def test_waiting_ends_at_its_limit():
    with pytest.raises(RankTimeout, match="rank 0 in dispatch: nobody came"):
        wait_until(
            lambda: False, limit_s=0.05, on_timeout=lambda: RankTimeout(rank=0, phase="dispatch", cause="nobody came")
        )


class Ordered:
    """A lock that notes what is done with it."""

    def __init__(self, events):
        self.acquire, self.release = (partial(events.append, name) for name in ("acquire", "release"))


def test_a_fence_releases_before_it_acquires_so_that_no_access_passes_it(monkeypatch):
    """Release keeps earlier accesses before it, acquisition later ones behind it; the other order keeps neither."""
    events = []
    monkeypatch.setattr("mnnvl_lab.ranks.sync.threading.Lock", lambda: Ordered(events))
    fence = Fence()
    assert events == ["acquire"]
    for _ in range(2):
        fence()
    assert events == ["acquire", *["release", "acquire"] * 2]


# FIFOs.


def test_more_rows_than_the_fifos_hold_at_once(four):
    """A hot rank's FIFO of 8 entries takes 8 x 64 of these rows."""
    x = exchange("two_sided", max_tokens=1200, hidden=1024)
    load = Load(routing=HotRank(share=0.9, rank=3), tokens=(1200, 700, 3, 0))
    assert four.run(on.rounds, x, [load]) == [1] * 4


def test_several_channels_a_peer(four):
    x = exchange("two_sided", sm_limit=12)
    assert four.run(on.rounds, x, [LOAD, replace(LOAD, seed=5)]) == [2] * 4


@pytest.mark.parametrize("mode", ["one_sided", "two_sided"])
def test_eight_ranks_on_few_cores(host_ranks, mode):
    x = exchange(mode, layout=Layout(dp=8), top_k=8)
    host_ranks.use(x.layout)
    loads = [Load(routing=Uniform(), tokens=(3, 24, 0, 1, 9, 9, 24, 2), seed=seed) for seed in range(3)]
    assert host_ranks.run(on.rounds, x, loads) == [3] * 8


# Leaving nothing behind.


@pytest.mark.skipif(not Path("/proc/self/maps").exists(), reason="the system has no /proc to read mappings from")
@pytest.mark.parametrize("mode", ["one_sided", "two_sided"])
def test_closing_unmaps_every_segment(four, mode):
    assert four.run(on.mapped_segments, exchange(mode), LOAD) == [[4, 0, 4, 0]] * 4


def test_a_killed_rank_leaves_nothing_and_the_next_round_is_right(four):
    before = set(os.listdir("/dev/shm")) if Path("/dev/shm").exists() else set()
    with pytest.raises(RankError):
        four.run(on.die_in_dispatch, exchange(), LOAD, timeout_s=20)
    four.renew()
    assert four.run(on.rounds, exchange(), [LOAD]) == [1] * 4
    left = set(os.listdir("/dev/shm")) - before if Path("/dev/shm").exists() else set()
    assert not [name for name in left if "segment" in name]


class Alone:
    """A group of one, for what needs no processes."""

    rank, size, ranks = 0, 1, (0,)

    def allgather(self, value, *, call=""):
        return [value]

    def broadcast(self, value):
        return value


@pytest.mark.parametrize("named", [False, True])
def test_segments_are_private_zeroed_and_gone(tmp_path, monkeypatch, named):
    """Also as files, for systems without nameless segments."""
    if named:
        monkeypatch.delattr(os, "memfd_create", raising=False)
    segments = SharedMemory(Alone(), size_bytes=5000, directory=tmp_path)
    assert segments.row(0).tolist() == [0] * 5000
    assert segments.stride_bytes % os.sysconf("SC_PAGESIZE") == 0
    segments.row(0)[-1] = 7
    assert int(segments.flat[4999]) == 7
    assert list(tmp_path.iterdir()) == []


def test_a_segment_that_cannot_be_made_is_named(tmp_path, monkeypatch):
    monkeypatch.delattr(os, "memfd_create", raising=False)
    with pytest.raises(LabError, match="shared segment"):
        SharedMemory(Alone(), size_bytes=5000, directory=tmp_path / "missing")


# Adding up.


@pytest.mark.parametrize("top_k", [1, 2, 4, 6, 8, 10, 12, 14, 16, 18, 22])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
def test_leaving_out_empty_slots_changes_no_bit(top_k, dtype):
    """Against the kernel's loop with zeros in the empty slots; every third value is -0.0."""
    rng = np.random.default_rng(top_k)
    tokens, hidden = 200, 24
    rows = torch.from_numpy(rng.standard_normal((tokens * top_k, hidden), dtype=np.float32)).to(dtype)
    rows[:, ::3] = -0.0
    filled = rng.random((tokens, top_k)) < rng.random((tokens, 1))
    filled[0], filled[1] = True, False
    slots = torch.where(torch.from_numpy(filled)[..., None], rows.view(tokens, top_k, hidden).float(), 0.0)
    expected = reduce_slots(list(slots.unbind(1))).to(dtype)
    row_bytes = hidden * dtype.itemsize
    offsets = np.where(filled, np.arange(tokens * top_k).reshape(tokens, top_k) * row_bytes, -1)
    table = RowTable(rows.view(torch.uint8).view(-1), row_bytes=row_bytes, grain_bytes=row_bytes)
    total = CombineSum(top_k=top_k, hidden=hidden, dtype=dtype, sum_dtype=dtype)
    for _ in range(2):
        assert on.same_bits(total(table, offsets), expected)


def test_trees_are_read_from_their_notation():
    assert additions(0b0, 1) == ()
    assert additions(0b100, 3) == ((0, 1),)
    assert additions(0b10100, 5) == ((1, 2), (0, 1))
    assert additions(0b11000, 5) == ((0, 1), (0, 2))
    assert additions(0b1100100, 7) == ((0, 1), (2, 3), (0, 2))

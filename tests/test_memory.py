"""The memory ledger: its arithmetic on readings written by hand, real segments, and GPUs to the byte."""

import mmap
from dataclasses import replace
from io import BytesIO

import numpy as np
import PIL.Image
import pytest

from mnnvl_lab.errors import Refused
from mnnvl_lab.exchange import Exchange
from mnnvl_lab.layout import Layout
from mnnvl_lab.measure import Point
from mnnvl_lab.measure.capture import capture_rounds
from mnnvl_lab.measure.memory import LISTS_MAPPINGS, Entry, ledger_table, measure_ledger
from mnnvl_lab.plots.memory_ledger import memory_ledger
from mnnvl_lab.plots.workspace import film, live_region, play, strip
from mnnvl_lab.ranks import Ranks
from mnnvl_lab.routing import Load, Uniform
from mnnvl_lab.workspace.snapshot import NAMELESS, STALE, UNTOUCHED, VALID

MIB = 1 << 20


def point(mode="one_sided", *, tokens=16, hidden=64, dp=2, top_k=2, experts=8):
    exchange = Exchange(mode=mode, layout=Layout(dp=dp), max_tokens=tokens, hidden=hidden, experts=experts, top_k=top_k)
    return Point(exchange=exchange, load=Load(routing=Uniform(), tokens=tokens))


def entry(step, used, change, torch=0, predicted=None):
    return Entry(
        step=step,
        used_bytes=used,
        change_bytes=change,
        torch_bytes=torch,
        predicted_bytes=predicted,
        resident_bytes=0,
        cause="",
    )


HAND = [entry("before", 500, 500), entry("open", 742, 242, 2, 226), entry("close", 516, -226, 0, -226)]


def test_what_neither_torch_nor_the_prediction_explains_is_the_rest():
    table = ledger_table([HAND])
    assert table["rest_bytes"].tolist() == [500, 14, 0]
    assert table["predicted_bytes"].isna().tolist() == [True, False, False]


def test_the_waterfall_floats_on_the_level_before():
    ax = memory_ledger(ledger_table([HAND, HAND]).assign(fabric="host"))
    bars = {
        (bar.get_x() + bar.get_width() / 2, container.get_label()): bar
        for container in ax.containers
        for bar in container
    }
    torch_bar = bars[1.0, "torch's allocator"]
    assert (torch_bar.get_y(), torch_bar.get_height()) == (500 + 226, 2)
    assert bars[1.0, "not predicted"].get_y() + bars[1.0, "not predicted"].get_height() == 742
    closing = bars[2.0, "predicted: the workspace"]
    assert closing.get_y() + closing.get_height() == 516
    assert [text.get_text() for text in ax.texts if text.get_gid() == "change"] == ["+500 B", "+242 B", "-226 B"]


@pytest.mark.skipif(not LISTS_MAPPINGS, reason="the system does not list a process's mappings")
def test_a_host_workspace_takes_every_ranks_pages_and_gives_all_back(host_ranks):
    table = measure_ledger(point(), host_ranks)
    opened, closed = (table[table["step"] == step].set_index("rank") for step in ("open", "close"))
    # R=2, M=16, H=64, K=2: counters and flags end at byte 264; tables of 16 * 22 int32; rows of 144 and 128 bytes
    tables = -(-264 // 128) * 128 + 2 * 16 * 22 * 4
    row_bytes = -(-tables // 128) * 128 + 2 * 16 * (144 + 128)
    pages = -(-row_bytes // mmap.PAGESIZE) * mmap.PAGESIZE
    assert (opened["change_bytes"] == 2 * pages).all()
    assert (closed["change_bytes"] == -2 * pages).all()
    assert (table["rest_bytes"] == 0).all()
    assert (table.loc[table["step"] == "before", "resident_bytes"] > 10 * MIB).all()


@pytest.mark.skipif(not LISTS_MAPPINGS, reason="the system does not list a process's mappings")
def test_two_sided_host_memory_is_one_segment_a_rank(host_ranks):
    table = measure_ledger(point("two_sided"), host_ranks)
    # R=2: a FIFO of 2 MiB and its 256-byte connection a peer, then prepare's of 1 MiB and 256 bytes, in one segment
    row_bytes = 2 * (2 * MIB + 256) + 2 * (MIB + 256)
    pages = -(-row_bytes // mmap.PAGESIZE) * mmap.PAGESIZE
    assert (table.loc[table["step"] == "open", "change_bytes"] == 2 * pages).all()
    assert (table["rest_bytes"] == 0).all()


@pytest.mark.gpu
@pytest.mark.parametrize(
    ("mode", "allocated_bytes"),
    [("one_sided", 236_978_176), ("two_sided", 140_509_184 + 4_194_304)],  # recorded by cudaMemGetInfo, EP2
)
def test_gpu_workspaces_take_what_was_recorded_and_give_all_back(mode, allocated_bytes):
    with Ranks(Layout(dp=2), fabric="nvlink") as ranks:
        table = measure_ledger(point(mode, tokens=4096, hidden=7168, experts=256, top_k=8), ranks)
    for step, sign in (("open", 1), ("close", -1)):
        rows = table[table["step"] == step]
        assert rows["predicted_bytes"].tolist() == [sign * allocated_bytes] * 2
        assert rows["rest_bytes"].tolist() == [0, 0]


def test_rows_of_an_earlier_larger_round_are_stale(host_ranks):
    """Two ranks: the first round brings 6 tokens per rank, the second 2, so that slots 2 to 5 are left over.

    Every token chooses an expert of both ranks (top_k = experts), so that each rank receives all rows of both.
    """
    exchange = point(tokens=6, experts=2).exchange
    rounds = [Point(exchange=exchange, load=Load(routing=Uniform(), tokens=(6, 6), seed=seed)) for seed in (0, 1)]
    rounds[1] = replace(rounds[1], load=replace(rounds[1].load, tokens=(6, 2)))
    host_ranks.use(exchange.layout)
    for rank, shots in enumerate(host_ranks.run(capture_rounds, rounds)):
        assert [shot.epoch for shot in shots] == [0, 1, 2, 3, 4]
        opened, _, first, dispatched, second = shots
        assert (opened.dispatch_RM == UNTOUCHED).all()
        assert (first.dispatch_RM == VALID).all()
        assert first.received_R.tolist() == [6, 6]
        assert dispatched.received_R.tolist() == [6, 2]
        assert dispatched.dispatch_RM[1].tolist() == [VALID] * 2 + [STALE] * 4
        assert dispatched.dispatch_flags_R.tolist() == [3, 3]
        assert dispatched.combine_flags_R.tolist() == [2, 2]
        assert second.combine_RM[0].tolist() == [VALID] * 6
        assert second.sent_R.tolist() == [(6, 2)[rank]] * 2
        assert (opened.tokens_RM == NAMELESS).all()
        assert np.sort(dispatched.tokens_RM[1]).tolist() == [0, 1, 2, 3, 4, 5]
        assert sorted(dispatched.tokens_RM[1, :2]) == [0, 1]
        assert np.sort(dispatched.targets_TK).tolist() == [[0, 1]] * (6, 2)[rank]
        assert all(np.sort(slots_T).tolist() == list(range((6, 2)[rank])) for slots_T in _slots_of(dispatched))
        ax = live_region(dispatched)
        assert [text.get_text().strip() for text in ax.texts if text.get_gid() == "flag"] == [
            "rows 6, flag 3",
            "rows 2, flag 3",
        ]
        assert ax.images[0].get_array().tolist() == dispatched.dispatch_RM.tolist()


def _slots_of(shot):
    """Slots of this rank's tokens at each target, in token order."""
    return [shot.slots_TK[shot.targets_TK == target] for target in range(len(shot.sent_R))]


def test_only_one_sided_rows_have_a_place_to_watch(host_ranks):
    with pytest.raises(Refused, match="exchanges two_sided: all must be of the same one_sided exchange"):
        host_ranks.run(capture_rounds, [point("two_sided")])


def test_frames_show_every_moment(host_ranks):
    host_ranks.use(Layout(dp=2))
    shots = host_ranks.run(capture_rounds, [point(tokens=4)])[0]
    moments = [shot.moment for shot in shots]
    figure = strip(shots)
    assert all(
        any(moment in text.get_text() for text in ax.texts) for moment, ax in zip(moments, figure.axes, strict=True)
    )
    assert play(shots).data.count("data:image/png") == len(shots)
    first, again = (film(shots).data for _ in range(2))
    assert first == again
    with PIL.Image.open(BytesIO(first)) as picture:
        assert (picture.format, picture.n_frames) == ("GIF", len(shots))

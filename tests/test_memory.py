"""The memory ledger: its arithmetic on readings written by hand, real segments, and GPUs to the byte."""

import mmap

import pytest

from mnnvl_lab.layout import Layout
from mnnvl_lab.measure import Point
from mnnvl_lab.measure.memory import LISTS_MAPPINGS, Entry, ledger_table, measure_ledger
from mnnvl_lab.plots.memory_ledger import memory_ledger
from mnnvl_lab.ranks import Ranks
from mnnvl_lab.routing import Load, Uniform
from mnnvl_lab.transport.exchange import Exchange

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

"""What wastes memory, against numbers worked out elsewhere, and growth on FlashInfer's own class."""

from types import SimpleNamespace

import pandas as pd
import pytest

from mnnvl_lab import plots
from mnnvl_lab.errors import Refused
from mnnvl_lab.exchange import Exchange, ExchangeShape
from mnnvl_lab.layout import Layout
from mnnvl_lab.measure import memory_overhead
from mnnvl_lab.ranks import Ranks

MIB = 1 << 20


def need(**changed):
    fields = {"layout": Layout(tp=2, dp=4), "max_tokens": 8192, "hidden": 7168, "experts": 256, "top_k": 8}
    return ExchangeShape(**fields | {"format": "nvfp4"} | changed)


def test_sp_moe_reserves_tp_times_what_it_needs():
    """hidden 7168, nvfp4, EP8, 8192 tokens: 1153 MiB reserved, 577 needed at TP 2 (calculated from vLLM's source)."""
    found = memory_overhead.sized_by_whole_batch(need())
    assert round(found.taken_bytes / MIB) in (1153, 1154)  # 1153.4, rounded up to 2 MiB
    assert round(found.needed_bytes / MIB) in (577, 578)
    assert found.share == pytest.approx(0.5, abs=0.001)
    assert "8192 tokens and dispatches 4096" in found.because


def test_without_tp_nothing_is_wasted_by_the_batch():
    assert memory_overhead.sized_by_whole_batch(need(layout=Layout(dp=8))).overhead_bytes == 0


def test_bf16_combine_is_78_percent_under_nvfp4():
    assert memory_overhead.combine_share(need()) == pytest.approx(0.78, abs=0.005)
    found = memory_overhead.wide_combine(need())
    # rows of 3584 + 448 bytes instead of 14336, for 8192 tokens of each of 8 ranks
    assert found.overhead_bytes == 8 * 8192 * (14336 - 4032)


def test_bf16_combine_wastes_nothing_under_bf16():
    assert memory_overhead.wide_combine(need(format="bf16")).overhead_bytes == 0


def test_addresses_are_reserved_in_strides():
    """EP8, 2048 tokens, bf16: 450 MiB per rank are 3.5 GiB mapped and 4 GiB reserved."""
    found = memory_overhead.reserved_addresses(need(max_tokens=2048, format="bf16"))
    assert found.what == "addresses"
    assert (found.taken_bytes, found.needed_bytes) == (4096 * MIB, 8 * 450 * MIB)


def test_growth_keeps_every_older_workspace():
    """EP2, bf16: 4096 tokens take 236,978,176 bytes as recorded; 2048 and 1024 about a half and a quarter."""
    pair = need(layout=Layout(dp=2), format="bf16")
    found = memory_overhead.kept_after_growth(pair, (1024, 2048, 4096))
    assert found.needed_bytes == 236_978_176
    assert found.taken_bytes == pytest.approx(1.75 * 236_978_176, rel=0.01)
    with pytest.raises(Refused, match="must grow"):
        memory_overhead.kept_after_growth(pair, (2048, 1024))


def test_the_table_has_a_row_a_habit():
    table = memory_overhead.overhead_table(
        [memory_overhead.sized_by_whole_batch(need()), memory_overhead.wide_combine(need())]
    )
    assert table["name"].tolist() == ["sized by the whole batch", "wide combine"]
    assert (table["overhead_bytes"] == table["taken_bytes"] - table["needed_bytes"]).all()


def exchange(**changed):
    fields = {"mode": "one_sided", "layout": Layout(dp=2), "max_tokens": 1, "hidden": 64, "experts": 8, "top_k": 2}
    return Exchange(**fields | changed)


def test_growth_on_host_is_refused():
    """Before anything is opened, so that a rank without groups can be asked."""
    with pytest.raises(Refused, match="MoeAlltoAll needs GPUs"):
        memory_overhead.grow(SimpleNamespace(fabric="host"), exchange(), (1, 2))


def test_the_figure_of_growth_shows_what_was_taken_under_what_was_predicted():
    """Written by hand: three workspaces of 2, 4 and 8, of which upstream keeps all and loses 1 at the end."""
    taken = {"upstream_bytes": (2, 6, 14), "upstream_left_bytes": 1, "own_bytes": (2, 4, 9), "own_left_bytes": 0}
    ax = plots.growth(pd.DataFrame([{"rank": 0, "tokens": (1, 2, 3), "predicted_bytes": (2, 6, 14)} | taken]))
    upstream, own = ([bar.get_height() for bar in bars] for bars in ax.containers)
    assert (upstream, own) == ([2, 6, 14, 1], [2, 4, 9, 0])
    lines = {lines.get_gid(): [ends[0][1] for ends in lines.get_segments()] for lines in ax.collections}
    assert lines == {"predicted upstream": [2, 6, 14, 0], "predicted own": [2, 4, 8, 0]}
    assert [tick.get_text() for tick in ax.get_xticklabels()] == ["1 tokens", "2 tokens", "3 tokens", "given back"]


@pytest.mark.gpu
def test_flashinfer_keeps_what_this_package_gives_back():
    pair = exchange(hidden=7168, experts=256, top_k=8)
    tokens = (1024, 2048, 4096)
    with Ranks(Layout(dp=2), fabric="nvlink") as ranks:
        for found in ranks.run(memory_overhead.grow, pair, tokens):
            assert found.upstream_bytes == found.predicted_bytes
            assert found.own_bytes[-1] == 236_978_176
            assert (found.upstream_left_bytes, found.own_left_bytes) == (0, 0)

"""Numbers in figures: thousands on an axis, decimals in cells, units beside their numbers."""

import pandas as pd
import pytest
from matplotlib.figure import Figure

from mnnvl_lab import plots
from mnnvl_lab.plots.predictions import _bases
from mnnvl_lab.plots.style import fold, format_axis


@pytest.fixture
def ax():
    return Figure(figsize=(7, 4)).subplots()


def ticks(ax, tokens):
    ax.plot(tokens, tokens)
    format_axis(ax.xaxis, "tokens", pd.Series(tokens).to_numpy())
    low, high = ax.get_xlim()
    places = zip(ax.get_xticks(), ax.get_xticklabels(), strict=True)
    return [label.get_text() for place, label in places if low <= place <= high]


def test_four_digits_stand_without_a_separator(ax):
    assert ticks(ax, [256, 512, 1024, 2048, 4096]) == ["256", "512", "1024", "2048", "4096"]


def test_beside_five_digits_four_have_one_too(ax):
    assert ticks(ax, [512, 1024, 4096, 16384]) == ["512", "1,024", "2,048", "4,096", "8,192", "16,384"]


@pytest.mark.parametrize("unit", ["GB/s", "µs", "MiB", "%"])
def test_a_line_is_not_broken_between_a_number_and_its_unit(unit):
    line = f"{'word ' * 4}356 {unit} in dispatch"
    folded = fold(line, width=len("word " * 4) + 4)
    assert folded.split("\n")[:2] == ["word word word word", f"356 {unit} in dispatch"]
    assert folded.replace("\n", " ") == line


def test_all_cells_of_a_heat_map_have_the_same_decimals(ax):
    mib = [(0, 0, 0.0), (0, 1, 1.1), (1, 0, 0.975), (1, 1, 0.0)]
    rows = [{"source": s, "target": t, "moved_bytes": int(n * 2**20)} for s, t, n in mib]
    plots.traffic(pd.DataFrame(rows), hue="moved_bytes", ax=ax)
    cells = [text.get_text() for text in ax.texts if text.get_gid() is None and text.get_text() != "sum"]
    assert cells == ["0", "1.10", "0.97", "0"]


def test_a_source_is_named_once_with_all_that_was_extrapolated():
    texts = ["H100: here", "H100: here; EP8 extrapolated", "H100: here; EP8, 8192 tokens extrapolated", "H20: bounds"]
    assert _bases(texts) == ["H100: here; EP8, 8192 tokens extrapolated", "H20: bounds"]

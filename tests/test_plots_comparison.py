import numpy as np
import pytest

from mnnvl_lab import datasets, plots, records
from mnnvl_lab.__main__ import main
from mnnvl_lab.errors import Refused


@pytest.fixture(scope="module")
def before():
    return datasets.load_recorded("h100x2_nvlink_ep2_bf16").query("routing == 'uniform' and tokens >= 512")


@pytest.fixture(scope="module")
def after(before):
    """Two-sided became a tenth slower from 2048 tokens on, one-sided stayed."""
    slowed = (before["mode"] == "two_sided") & (before["tokens"] >= 2048)
    return before.assign(latency_us=before["latency_us"].where(~slowed, 1.1 * before["latency_us"]))


@pytest.fixture(scope="module")
def changes(before, after):
    return records.compare(before, after)


def _markers(ax, gid):
    """Heights of the markers of this kind, with their fill."""
    return [(y, line.get_markerfacecolor()) for line in ax.lines if line.get_gid() == gid for y in line.get_ydata()]


def _text(ax, gid):
    return "\n".join(text.get_text() for text in ax.texts if text.get_gid() == gid)


def test_filled_where_the_samples_differ(changes):
    ax = plots.comparison(changes.query("clock == 'graph' and mode in ('one_sided', 'two_sided')"))
    different, same = _markers(ax, "different"), _markers(ax, "same")
    assert [y for y, _ in different] == pytest.approx([10, 10])
    assert [y for y, _ in same] == pytest.approx([0] * 6, abs=1e-9)
    assert {fill for _, fill in same} == {"white"}
    assert "white" not in {fill for _, fill in different}
    assert ax.get_title(loc="left") == "Round, second record over first: 6 same, 2 slower"


def test_bars_are_what_the_samples_leave_open(changes):
    chosen = changes.query("clock == 'graph' and mode == 'two_sided'").sort_values("tokens")
    (bars,) = plots.comparison(chosen).collections
    ends = np.array([segment[:, 1] for segment in bars.get_segments()])
    assert ends == pytest.approx(chosen[["low_percent", "high_percent"]].to_numpy())
    assert (ends[:, 0] <= chosen["change_percent"]).all()
    assert (chosen["change_percent"] <= ends[:, 1]).all()


def test_the_caption_names_both_origins(changes):
    words = _text(plots.comparison(changes.query("clock == 'graph'")), "caption")
    assert "nvlink · graph clock" in words
    for side in ("first", "second"):
        assert f"{side}: 2 x NVIDIA H100 80GB HBM3 · 2026-11-24 · commit " in words


def test_tiny_changes_look_tiny(changes):
    low, high = plots.comparison(changes.query("clock == 'graph' and mode == 'one_sided'")).get_ylim()
    assert low < -1
    assert high > 1


def test_clocks_do_not_share_a_line(changes):
    with pytest.raises(Refused, match="clock has the values"):
        plots.comparison(changes)


def test_the_command_leaves_a_figure_a_clock_and_phase(before, after, tmp_path):
    files = [str(records.save(table, tmp_path / f"{i}.parquet")) for i, table in enumerate((before, after))]
    assert main(["compare", *files, "--out", str(tmp_path / "out"), "--type", "svg"]) == 0
    drawn = sorted(path.name for path in (tmp_path / "out").iterdir())
    phases = [f"comparison-eager-{phase}.svg" for phase in ("combine", "dispatch", "prepare", "round")]
    assert drawn == [*phases, "comparison-graph-round.svg"]

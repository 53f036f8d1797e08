"""The reproducers where there is no GPU, and the reports that are written from what they found."""

import json
import subprocess
import sys
from pathlib import Path

import matplotlib.pyplot as plt
import pytest
import torch

from tools.findings import __main__ as command
from tools.findings import changing_size, figures, report, results, two_sided_prepare
from tools.pages import DOCS

NO_GPU = pytest.mark.skipif(torch.cuda.is_available(), reason="a GPU is visible: the reproducers would run")


@NO_GPU
@pytest.mark.parametrize("name", ["two_sided_prepare", "changing_size"])
def test_without_a_gpu_it_says_that_it_cannot_run(name):
    path = DOCS.parent / "tools" / "findings" / f"{name}.py"
    done = subprocess.run([sys.executable, str(path)], capture_output=True, text=True, timeout=120, cwd="/")
    assert done.returncode == 2
    assert done.stderr.startswith("could not run: ")


@pytest.mark.parametrize("arguments", [[], ["nonsense"]])
def test_an_unknown_reproducer_is_refused_with_the_names(arguments, capsys):
    assert command.main(arguments) == 2
    assert "two_sided_prepare, changing_size" in capsys.readouterr().err


@pytest.mark.parametrize("module", [two_sided_prepare, changing_size])
def test_a_reproducer_needs_nothing_of_this_package(module):
    text = Path(module.__file__).read_text()
    assert "mnnvl_lab" not in text
    assert "from tools" not in text


@pytest.mark.parametrize("name", report.PAGES)
def test_a_page_is_what_the_kept_results_give(name):
    assert (DOCS / "findings" / name).read_text() == report.PAGES[name](), "run python -m tools.findings report"


def prepare_row(**more):
    row = {
        "rows_to": [2000, 2000],
        "published_twice_to": [0, 1],
        "tokens": 2048,
        "top_k": 8,
        "traffic": "link",
        "prepares": 400,
        "lost_to_itself": 0,
        "lost_to_peers": 0,
        "checked_rounds": 2,
        "prepares_until_checked_wrong": 400,
        "first_wrong": None,
        "wrong_of_later_checks": [0, 10],
        "heads_left": [0, 0],
        "seconds": 1.0,
    }
    return row | more


WRONG = {"after_prepares": 200, "source": 1, "rows": 2000, "wrong_rows": 1990}


@pytest.mark.parametrize(
    ("more", "found"),
    [({}, False), ({"lost_to_itself": 1}, True), ({"lost_to_peers": 2}, True), ({"first_wrong": WRONG}, True)],
)
def test_a_lost_step_on_any_rank_is_found(more, found):
    row = two_sided_prepare.merged([prepare_row(), prepare_row(**more)])
    assert two_sided_prepare.is_wrong(row) == found
    said = two_sided_prepare.line(row)
    assert ("round 201 wrong on rank 1: 1990 of 2000 rows from rank 1" in said) == ("first_wrong" in more)
    assert ("2 checked rounds right" in said) == ("first_wrong" not in more)
    assert row["own_pairs_published_twice"] == 2


def test_a_growing_round_is_ragged_first_and_full_then():
    assert changing_size.growing(3, 4096, first=2048, others=1) == [
        [[2048, 1, 1], 2048],
        [[1, 4096, 4096], 4096],
    ]
    cases = changing_size.cases_of(2, 4096, [0, 50], [0.5], ["fixed_offset"])
    assert [case["what"] for case in cases].count("gap") == 2
    assert {case["cure"] for case in cases} == {"none", "fixed_offset"}
    assert all(tokens <= limit <= 4096 for case in cases for loads, limit in case["rounds"] for tokens in loads)


def test_rates_come_with_intervals_that_hold_them():
    assert results.poisson_interval(0, 1000) == (0.0, pytest.approx(3.689e-3, rel=1e-3))
    low, high = results.poisson_interval(10, 1000)
    assert low == pytest.approx(4.795e-3, rel=1e-3)
    assert high == pytest.approx(18.39e-3, rel=1e-3)


def test_every_kept_file_says_where_it_comes_from():
    files = sorted(results.FOLDER.glob("*.json"))
    assert len(files) >= 10
    for path in files:
        about = json.loads(path.read_text())["provenance"]
        assert all(about[field] for field in ("created_at", "command", "flashinfer", "torch", "cuda", "gpus"))
        assert about["fixed"] == ("fixed" in path.name) if "fixed" in about else "changing" in path.name


def test_what_was_found_stands_in_the_results():
    prepares, sizes = results.prepares(), results.sizes()
    stock = prepares[prepares["kernel"] == "0.7.2"]
    assert stock["lost"].sum() > 0
    assert set(stock.loc[stock["lost"] > 0, "full_pairs"] > 0) == {True}
    assert prepares.loc[prepares["kernel"] == "mended", "lost"].sum() == 0
    assert set(prepares.loc[prepares["first_wrong"].notna(), "full_pairs"] > 0) == {True}
    assert prepares.loc[prepares["kernel"] == "mended", "first_wrong"].isna().all()
    assert set(prepares["card"]) == set(sizes["card"]) == {"H100", "H200"}
    assert (sizes.query("what == 'gap' and gap_us == 0")["wrong"] > 0).all()
    assert sizes.loc[sizes["cure"] != "none", "wrong"].sum() == 0


def keep(folder, name, gpu, *rows, **about):
    about = {"gpus": [f"{gpu}, 580.1", f"{gpu}, 580.1", "NVIDIA A100, 580.1"], "gpus_used": 2, "ranks": 2} | about
    (folder / f"{name}.json").write_text(json.dumps({"provenance": about, "rows": rows}))


def test_cards_are_kept_apart_in_every_table(tmp_path):
    right, wrong = prepare_row(prepares=1000), prepare_row(prepares=600, lost_to_itself=1, first_wrong=WRONG)
    for name, gpu, row in (
        ("a", "NVIDIA H100 80GB HBM3", wrong),
        ("b", "NVIDIA H200", right),
        ("c", "NVIDIA H200", right),
    ):
        keep(tmp_path, f"two_sided_prepare_{name}", gpu, two_sided_prepare.merged([row, row]), fixed=False)
    assert list(results.prepares(tmp_path)["card"]) == ["H100", "H200", "H200"]
    lost, left = results.lost_steps(tmp_path).set_index("card"), results.wrong_rounds(tmp_path).set_index("card")
    assert lost[["calls", "lost"]].T.to_dict("list") == {"H100": [600, 2], "H200": [2000, 0]}
    assert left[["cases", "calls", "wrong"]].T.to_dict("list") == {"H100": [1, 400, 1], "H200": [2, 800, 0]}
    assert list(left["rate"]) == [250, 0]
    assert (left["low"] <= left["rate"]).all()
    assert (left["rate"] < left["high"]).all()


def test_a_file_of_unlike_gpus_names_both(tmp_path):
    row = two_sided_prepare.merged([prepare_row(), prepare_row()])
    keep(tmp_path, "two_sided_prepare_a", "NVIDIA H100 NVL", row, fixed=False, gpus_used=3)
    assert list(results.prepares(tmp_path)["card"]) == ["H100 and A100"]


def test_the_figure_of_prepares_has_a_panel_per_card_and_group():
    ax = figures.draw_prepares(results.prepares(), "some GPUs")
    titles = [panel.get_title(loc="left") for panel in ax.figure.axes]
    plt.close(ax.figure)
    assert titles == ["H100, EP 2", "H200, EP 2", "H200, EP 4", "H200, EP 8"]


def test_the_figure_of_sizes_has_a_line_per_card_and_group_at_the_gaps_measured():
    ax = figures.draw_sizes(results.sizes(), "some GPUs")
    lines = {line.get_label(): list(line.get_xdata()) for line in ax.lines}
    costs = ax.figure.axes[1]
    plt.close(ax.figure)
    assert set(lines) == {"H100, EP 2", "H200, EP 2", "H200, EP 4", "H200, EP 8"}
    assert lines["H100, EP 2"] == [0, 50, 200]
    assert len(costs.patches) == len(figures.CURES) * len(figures.LOADS)


@pytest.mark.parametrize("name", report.PAGES)
def test_every_table_of_measurements_on_a_page_names_the_card(name):
    text = report.PAGES[name]()
    heads = [lines[0] for table in text.split("\n\n") if (lines := table.splitlines())[0].startswith("| ")]
    measured = [head for head in heads if "pairs" in head or "calls" in head or "ragged" in head]
    assert len(measured) == {"two-sided-prepare.md": 2, "changing-size.md": 4}[name]
    assert all("card |" in head for head in measured)

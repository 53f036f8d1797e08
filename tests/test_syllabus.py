"""The syllabus: its table, its paths, and the numbers in the solutions of its questions."""

import math
import re
from pathlib import Path

import nbformat
import pytest

import mnnvl_lab as lab
from mnnvl_lab.course.nb09 import reported
from mnnvl_lab.workspace import rows_per_entry
from tools import syllabus

PAGE = (Path(__file__).parents[1] / "docs" / "syllabus.md").read_text()
SOLUTIONS = dict(
    re.findall(r"\*\*(\d+)\.\*\* .*?<details><summary>Solution</summary>\n\n(.*?)\n\n</details>", PAGE, re.S)
)


def path_minutes(heading):
    """Minutes of the notebooks that a path names, by the rule."""
    part = PAGE.split(heading)[1].split("\n\nAfterwards")[0]
    return sum(
        syllabus.minutes(nbformat.read(syllabus.PATHS[n], as_version=4)) for n in re.findall(r"\[(\d\d)\]", part)
    )


def test_every_question_has_a_solution():
    assert list(SOLUTIONS) == [str(number) for number in range(1, 11)]


def test_the_shortest_path_leaves_a_quarter_of_an_hour_for_the_explorer():
    assert 60 <= path_minutes("**An inference engineer, 90 minutes.**") <= 75


def test_the_day_is_a_day():
    assert 4 * 60 <= path_minutes("**A performance engineer, a day.**") <= 6 * 60


def test_the_numbers_of_the_solutions():
    staged, wide = lab.Layout(tp=2, dp=4, pp=2), lab.Layout(dp=16)
    planned = lab.plan(wide, model="deepseek-v3", max_tokens=4096).one_sided
    load = lab.Load(routing=lab.routing.Uniform(), tokens=4096)
    rows = lab.traffic.rows_RR(load, experts=256, top_k=8, ep_size=4).sum() / (4 * 4096)
    per_entry = rows_per_entry(7168 * 2)
    ends = ", ".join(map(str, reported((0, 30, 10, 5), 15)))
    assert staged.ep_size == 8
    assert ", ".join(map(str, staged.group_of("ep", 0))) in SOLUTIONS["1"]
    assert f"{len(staged.group_of('dp', 0))} rows against an `ep_size` of {staged.ep_size}" in SOLUTIONS["2"]
    assert f"{planned.asked_bytes / 2**30:.2f} GiB" in SOLUTIONS["3"]
    assert f"{rows:.1f} rows" in SOLUTIONS["4"]
    assert f"{math.ceil(300 / per_entry)} entries" in SOLUTIONS["6"]
    assert f"after {8 * per_entry} rows" in SOLUTIONS["6"]
    assert ends.replace(", 40", " and 40") in re.sub(r"<!--.*?-->", "", SOLUTIONS["7"])


@pytest.mark.parametrize(
    ("words", "exercises", "cells", "expected"), [(1500, 0, 0, 10), (1500, 5, 0, 15), (0, 0, 20, 10), (300, 1, 1, 5)]
)
def test_minutes_follow_the_rule(words, exercises, cells, expected):
    code = ['lab.check("01.1", guess)'] * exercises + ["x = 1"] * cells
    made = nbformat.v4.new_notebook(cells=[nbformat.v4.new_markdown_cell("word " * words)])
    made.cells += [nbformat.v4.new_code_cell(source) for source in code]
    assert syllabus.minutes(made) == expected

"""The drawing of a counterexample shows every step once, in its process's row, and the cells that it changed."""

import pytest

from mnnvl_lab import plots
from mnnvl_lab.errors import Refused
from mnnvl_lab.model_check import COUNTERPARTS, Prepare, search, trace_table


@pytest.fixture(scope="module")
def table():
    return trace_table(search(Prepare(packets=(2, 2)).protocol))


def boxes(ax, gid):
    return [tuple(patch.get_center().round(6)) for patch in ax.patches if patch.get_gid() == gid]


def test_each_step_is_one_box_in_the_row_of_its_process_and_the_last_is_marked(table):
    ax = plots.interleaving(table)
    lines = [label.get_text() for label in ax.get_yticklabels()]
    steps = table.query("step > 0").drop_duplicates("step")
    expected = [(row.step, lines.index(row.process)) for row in steps.itertuples()]
    assert lines[:2] == ["sender", "receiver"]
    assert boxes(ax, "a step of this process") == expected[:-1]
    assert boxes(ax, "the step that goes wrong") == expected[-1:]
    assert [label.get_text() for label in ax.get_xticklabels()] == list(steps["action"])


def test_only_cells_that_a_step_changed_are_filled(table):
    ax = plots.interleaving(table, cells=["head", "tail"])
    lines = [label.get_text() for label in ax.get_yticklabels()]
    assert lines[2:] == ["head", "tail"]
    changed = table.query("changed and cell == 'head'")["step"]
    assert boxes(ax, "a cell that it changed") == [(step, 2) for step in changed]


def test_a_deadlock_marks_no_step(table):
    ax = plots.interleaving(trace_table(search(COUNTERPARTS["NoBarrierAfterInitialising"].broken.protocol)))
    assert not boxes(ax, "the step that goes wrong")


def test_an_unknown_cell_is_refused_with_those_of_the_trace(table):
    with pytest.raises(Refused, match=r"'entry' is not in the trace: choose from head, tail"):
        plots.interleaving(table, cells=["entry"])

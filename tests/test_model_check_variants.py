"""Each broken protocol of the package has a model with the same mistake: the search finds it, and none in the sound."""

import pytest

from mnnvl_lab.errors import Refused
from mnnvl_lab.faults.broken_protocols import VARIANTS
from mnnvl_lab.model_check import COUNTERPARTS, Prepare, search, trace_table

NAMES = [variant.name for variant in VARIANTS]
HANGS = {"NoBarrierAfterInitialising"}


def test_every_variant_has_a_counterpart():
    assert set(COUNTERPARTS) == set(NAMES)
    assert all(any(digit.isdigit() for digit in each.size) for each in COUNTERPARTS.values())


@pytest.mark.parametrize("name", NAMES)
def test_the_search_finds_the_mistake_of_each_variant(name):
    result = search(COUNTERPARTS[name].broken.protocol)
    assert result.violation
    assert result.violation.startswith("deadlock") == (name in HANGS)


@pytest.mark.parametrize("name", NAMES)
def test_the_search_visits_every_state_of_the_sound_one_and_finds_nothing(name):
    result = search(COUNTERPARTS[name].sound.protocol)
    assert (result.violation, result.complete) == (None, True)


def test_a_trace_as_a_table_has_every_cell_at_every_step():
    result = search(Prepare(packets=(2, 2)).protocol)
    table = trace_table(result)
    assert len(table) == (len(result.trace) + 1) * len(result.protocol.cells)
    assert list(table[table["cell"] == "head"]["value"].drop_duplicates()) == [0, 1, 2]
    assert table.query("wrong")["step"].unique().tolist() == [len(result.trace)]
    steps = table.query("step > 0").drop_duplicates("step")
    assert list(zip(steps["process"], steps["action"], strict=True)) == [(e.process, e.label) for e in result.trace]
    changes = table.query("changed").groupby("step")["cell"].apply(set)
    assert changes.to_dict() == {n: set(e.changes) for n, e in enumerate(result.trace, start=1) if e.changes}
    assert table.attrs["violation"] == result.violation


def test_the_last_step_before_a_deadlock_is_not_wrong_itself():
    table = trace_table(search(COUNTERPARTS["NoBarrierAfterInitialising"].broken.protocol))
    assert not table["wrong"].any()


def test_a_search_without_a_counterexample_has_no_table():
    with pytest.raises(Refused, match="no counterexample to show"):
        trace_table(search(Prepare(packets=(1, 1)).protocol))

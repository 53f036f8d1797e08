"""What was recorded of memory on GPUs, held against the arithmetic: every ledger and every growth in `data/`."""

from itertools import accumulate
from pathlib import Path

import pytest

from mnnvl_lab.layout import Layout
from mnnvl_lab.planner import plan
from mnnvl_lab.records import load_auxiliary

DATA = Path(__file__).parent.parent / "data"
CASE = ["mode", "format", "tokens", "rank"]
GRANULARITY = 2**21


def recorded(kind):
    """Each file of that kind; one skipped case that says so while there is none."""
    files = sorted(DATA.glob(f"*{kind}*.parquet"))
    absent = pytest.mark.skip(reason=f"no data/*{kind}*.parquet: record it on GPUs with tools.record {kind}")
    return [pytest.param(file, id=file.stem) for file in files] or [pytest.param(None, marks=absent, id="none")]


@pytest.fixture
def table(request):
    return load_auxiliary(request.param, kind="memory")


ledgers = pytest.mark.parametrize("table", recorded("memory"), indirect=True)
growths = pytest.mark.parametrize("path", recorded("growth"))


@ledgers
def test_opening_and_closing_are_predicted_to_the_byte(table):
    workspace = table[table["step"].isin(["open", "close"])]
    assert set(workspace["mode"]) == {"one_sided", "two_sided"}
    assert (workspace.groupby(CASE).size() == 2).all()
    assert workspace["predicted_bytes"].notna().all()
    assert (workspace["rest_bytes"] == 0).all(), workspace[workspace["rest_bytes"] != 0][[*CASE, "step", "rest_bytes"]]


@ledgers
def test_closing_returns_all_that_opening_took(table):
    workspace = table[table["step"].isin(["open", "close"])].assign(
        without_torch=lambda rows: rows["change_bytes"] - rows["torch_bytes"]
    )
    assert (workspace.groupby(CASE)["without_torch"].sum() == 0).all()


@ledgers
def test_the_rest_is_what_the_entry_says(table):
    predicted = table["predicted_bytes"].fillna(0)
    assert (table["rest_bytes"] == table["change_bytes"] - table["torch_bytes"] - predicted).all()
    named = table.loc[table["rest_bytes"] != 0, "cause"]
    assert (named != "").all()


@ledgers
def test_the_planner_says_what_was_taken(table):
    """The plan knows only shape and GPU; a reading sees all ranks of a GPU."""
    opened = table[(table["step"] == "open") & (table["rank"] == 0) & (table["fabric"] == "nvlink")]
    for row in opened.itertuples():
        layout = Layout(tp=row.tp, dp=row.dp, pcp=row.pcp, pp=row.pp)
        shape = {"hidden": row.hidden, "experts": row.experts, "top_k": row.top_k, "format": row.format}
        planned = getattr(plan(layout, max_tokens=row.tokens, gpu="h100", **shape), row.mode)
        assert planned.allocated_bytes == row.predicted_bytes


@growths
def test_the_cache_keeps_every_workspace_and_the_lab_keeps_one(path):
    for row in load_auxiliary(path, kind="growth").itertuples():
        sizes = [after - before for before, after in zip((0, *row.predicted_bytes), row.predicted_bytes, strict=False)]
        assert list(row.predicted_bytes) == list(accumulate(sizes))
        assert all(size % GRANULARITY == 0 for size in sizes)
        assert list(row.upstream_bytes) == list(row.predicted_bytes)
        assert list(row.own_bytes) == sizes
        assert row.upstream_left_bytes == row.own_left_bytes == 0

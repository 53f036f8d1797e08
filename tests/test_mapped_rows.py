"""Which rank's memory a kernel finds in each row of a workspace over the wrong group, as a table and as a figure."""

import pytest

import mnnvl_lab as lab


def over(layout, group):
    planned = lab.plan(layout, hidden=64, experts=8, top_k=2, max_tokens=16)
    return lab.wrong_group.workspace_over(planned, group=group).mapped_rows()


@pytest.fixture
def wrong():
    return over(lab.Layout(tp=2, dp=2), "dp")


def test_rows_over_the_dp_group_by_hand(wrong):
    """DP groups of TP 2 x DP 2 are {0, 2} and {1, 3}: two rows each, in that order."""
    found = wrong.pivot(index="rank", columns="row", values="found")
    assert found.loc[0].tolist() == found.loc[2].tolist() == [0, 2, -1, -1]
    assert found.loc[1].tolist() == found.loc[3].tolist() == [1, 3, -1, -1]
    assert wrong.pivot(index="rank", columns="row", values="wanted").drop_duplicates().to_numpy().tolist() == [
        [0, 1, 2, 3]
    ]


@pytest.mark.parametrize("layout", [lab.Layout(tp=2, dp=2), lab.Layout(tp=2, dp=2, pp=2), lab.Layout(pcp=2, dp=2)])
def test_over_the_ep_group_every_row_is_the_one_that_is_wanted(layout):
    table = over(layout, "ep")
    assert (table["found"] == table["wanted"]).all()
    assert len(table) == layout.world_size * layout.ep_size


def test_the_figure_names_in_each_cell_what_is_found(wrong):
    ax = lab.plots.mapped_rows(wrong)
    words = [text.get_text() for text in ax.texts]
    assert words.count("nothing") == 8
    assert words.count("rank 0") == 2
    assert words.count("rank 3,\nnot 1") == 2
    assert "of 16 rows 2 are right, 6 another rank's, 8 not there at all" in lab.plots.alt_text(ax)


def test_the_figure_says_that_all_is_well_over_the_right_group():
    assert "all 4 rows" in lab.plots.alt_text(lab.plots.mapped_rows(over(lab.Layout(dp=2), "ep")))

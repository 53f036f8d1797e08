"""The workspace over the wrong group: which layouts it hits, and what each attempt says."""

import json
from itertools import product

import pytest

from mnnvl_lab import wrong_group
from mnnvl_lab.errors import RecordError, Refused
from mnnvl_lab.layout import Layout
from mnnvl_lab.wrong_group.trial import _names_both
from tools import record

SMALL = {"tokens": 5, "hidden": 64, "experts": 8, "top_k": 2}
WORDS = {
    "one_sided": "Check failed: workspace.size(0) == epSize (2 vs. 4) : workspace first dim must equal ep_size",
    "two_sided": "Check failed: allWorkspaces.size(0) == epSize (2 vs. 4) : allWorkspaces must have epSize elements",
}


def test_a_layout_is_hit_where_tp_or_pcp_splits_what_dp_does_not_join():
    sizes = list(product((1, 2, 4), (1, 2, 3), (1, 2), (1, 2)))
    table = wrong_group.affected_layouts([Layout(tp=tp, dp=dp, pcp=pcp, pp=pp) for tp, dp, pcp, pp in sizes])
    by_hand = [(dp > 1 or pcp > 1) and tp * pcp > 1 for tp, dp, pcp, _ in sizes]
    assert table["hit"].tolist() == by_hand
    assert table["same_group"].tolist() == [tp * pcp == 1 for tp, _, pcp, _ in sizes]


def test_the_wrong_group_is_named_by_the_kernels_and_the_ep_group_is_right(host_ranks):
    table = wrong_group.side_by_side(host_ranks, Layout(tp=2, dp=2), **SMALL)
    wrong, right = (table[table["group"] == group].set_index("mode") for group in ("dp", "ep"))
    assert wrong["words"].to_dict() == WORDS
    assert wrong["phase"].to_dict() == {"one_sided": "open", "two_sided": "dispatch"}
    assert wrong[["outcome", "spans", "ep_size"]].to_numpy().tolist() == [["mismatch", 2, 4]] * 2
    assert right["outcome"].tolist() == ["right"] * 2
    assert (right["p50_us"] > 0).all()


def test_with_tp_1_both_groups_are_one_and_take_the_same_bytes(host_ranks):
    table = wrong_group.side_by_side(host_ranks, Layout(dp=3), modes=("one_sided",), **SMALL | {"experts": 9})
    assert table["outcome"].tolist() == ["right"] * 2
    assert table["workspace_bytes"].nunique() == 1


def test_what_cannot_be_asked_is_refused_at_once(host_ranks):
    with pytest.raises(Refused, match="no kernel would notice"):
        wrong_group.side_by_side(host_ranks, Layout(dp=2, pp=2), group="pp")
    with pytest.raises(Refused, match="need a GPU"):
        wrong_group.side_by_side(host_ranks, Layout(dp=2), layers=("MnnvlMoe",))
    with pytest.raises(Refused, match="must be one of MoeAlltoAll"):
        wrong_group.side_by_side(host_ranks, Layout(dp=2), layers=("MoeAllToAll",))


@pytest.mark.parametrize(
    ("words", "named"),
    [
        (WORDS["one_sided"], True),
        ("comm_backend spans 2 ranks but world_size is 4", True),
        ("device 24 lacks NVLink", False),
    ],
)
def test_a_refusal_counts_as_mismatch_only_if_it_names_both_sizes(words, named):
    assert _names_both(words, 2, 4) is named
    assert not _names_both(words, 4, 4)


def test_the_recorder_writes_both_layouts_and_load_gives_them_back(tmp_path, capsys):
    assert wrong_group.recorded(tmp_path).empty
    path = tmp_path / "wrong.json"
    assert record.main(["wrong_group", "--fabric", "host", "--ranks", "2", "--out", str(path)]) == 0
    table = wrong_group.load(path)
    assert table.groupby(["tp", "group"])["outcome"].unique().map(list).to_dict() == {
        (1, "dp"): ["right"],
        (1, "ep"): ["right"],
        (2, "dp"): ["mismatch"],
        (2, "ep"): ["right"],
    }
    assert table.attrs["mnnvl_lab"]["topology"] == "shared memory of one machine"
    copy = wrong_group.load(wrong_group.save(table, tmp_path / "copy.json"))
    assert copy.equals(table)
    wrong_group.save(table, tmp_path / "wrong_group_2.json")
    origin = table.attrs["mnnvl_lab"]["device"], "eager"
    assert set(wrong_group.recorded(tmp_path)[["device", "clock"]].itertuples(index=False, name=None)) == {origin}
    assert [p.name for p in tmp_path.iterdir() if "partial" in p.name] == []


@pytest.mark.parametrize("text", ["", "[]", json.dumps({"kind": "other"}), '{"kind": "mnnvl_lab.wrong_group"}'])
def test_a_foreign_file_is_refused(tmp_path, text):
    path = tmp_path / "foreign.json"
    path.write_text(text)
    with pytest.raises(RecordError, match=r"foreign\.json is no wrong_group record"):
        wrong_group.load(path)

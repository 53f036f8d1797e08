from contextlib import suppress

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mnnvl_lab.errors import Refused, require_count
from mnnvl_lab.layout import MOST_RANKS, Layout, expert_owner, expert_range, sp_token_counts

small = st.integers(1, 4)
layouts = st.builds(Layout, tp=small, dp=small, pcp=small, pp=small, gpus_per_node=st.integers(1, 9))
NAMES = ("tp", "dp", "pcp", "pp", "ep")


def test_vllm_example_tp2_dp4():
    """The layout of vLLM issue 27440, whose workers call themselves `Worker_DP3_TP0_EP6`."""
    layout = Layout(tp=2, dp=4)
    assert layout.groups("tp") == ((0, 1), (2, 3), (4, 5), (6, 7))
    assert layout.groups("dp") == ((0, 2, 4, 6), (1, 3, 5, 7))
    assert layout.groups("ep") == (tuple(range(8)),)
    assert layout.coordinates(5) == {"dp": 2, "pp": 0, "pcp": 0, "tp": 1}
    assert layout.group_of("dp", 5).index(5) == 2
    assert (layout.ep_rank(5), layout.ep_size) == (5, 8)
    assert layout.coordinates(6) == {"dp": 3, "pp": 0, "pcp": 0, "tp": 0}
    assert layout.ep_rank(6) == 6
    assert layout.arithmetic == "DP 4 x PCP 1 x TP 2"


def test_vllm_example_with_pipeline_stages():
    layout = Layout(tp=2, dp=2, pp=2)
    assert layout.groups("tp") == ((0, 1), (2, 3), (4, 5), (6, 7))
    assert layout.groups("pp") == ((0, 2), (1, 3), (4, 6), (5, 7))
    assert layout.groups("dp") == ((0, 4), (2, 6), (1, 5), (3, 7))
    assert layout.groups("ep") == ((0, 1, 4, 5), (2, 3, 6, 7))
    assert [layout.ep_rank(rank) for rank in (2, 3, 6, 7)] == [0, 1, 2, 3]


def test_vllm_example_with_prefill_context_parallelism():
    layout = Layout(tp=2, pcp=2, dp=2)
    assert layout.groups("dp") == ((0, 4), (2, 6), (1, 5), (3, 7))
    assert layout.groups("pcp") == ((0, 2), (1, 3), (4, 6), (5, 7))
    assert layout.groups("ep") == (tuple(range(8)),)


def vllm_groups(layout, name):
    """`initialize_model_parallel` of vLLM's `parallel_state.py`, for one external replica."""
    all_ranks = np.arange(layout.world_size).reshape(-1, layout.dp, layout.pp, layout.pcp, layout.tp)
    cut = {
        "tp": all_ranks.reshape(-1, layout.tp),
        "pcp": all_ranks.transpose(0, 1, 2, 4, 3).reshape(-1, layout.pcp),
        "pp": all_ranks.transpose(0, 1, 4, 3, 2).reshape(-1, layout.pp),
        "dp": all_ranks.transpose(0, 4, 2, 3, 1).reshape(-1, layout.dp),
        "ep": all_ranks.transpose(0, 2, 1, 3, 4).reshape(-1, layout.dp * layout.pcp * layout.tp),
    }
    return tuple(tuple(group) for group in cut[name].tolist())


@given(layouts, st.sampled_from(NAMES))
def test_groups_are_listed_in_the_order_of_vllm(layout, name):
    assert layout.groups(name) == vllm_groups(layout, name)


@given(layouts)
def test_rank_by_arithmetic(layout):
    """vLLM: global rank = dp_rank * (pp * pcp * tp) + rank in the replica."""
    for rank in range(layout.world_size):
        at = layout.coordinates(rank)
        assert rank == ((at["dp"] * layout.pp + at["pp"]) * layout.pcp + at["pcp"]) * layout.tp + at["tp"]
        assert layout.ep_rank(rank) == (at["dp"] * layout.pcp + at["pcp"]) * layout.tp + at["tp"]
        assert layout.node_of(rank) == rank // layout.gpus_per_node


@given(layouts, st.sampled_from(NAMES))
def test_groups_partition_the_world(layout, name):
    groups = layout.groups(name)
    assert sorted(rank for group in groups for rank in group) == list(range(layout.world_size))
    assert {len(group) for group in groups} == {layout.ep_size if name == "ep" else getattr(layout, name)}
    assert all(list(group) == sorted(group) for group in groups)


@given(layouts, st.sampled_from(("tp", "dp", "pcp", "pp")))
def test_ranks_of_a_group_differ_in_its_axis_alone(layout, name):
    for group in layout.groups(name):
        places = [layout.coordinates(rank) for rank in group]
        assert [place.pop(name) for place in places] == list(range(len(group)))
        assert all(place == places[0] for place in places)


@given(layouts)
def test_an_ep_group_is_the_dp_groups_of_its_stage(layout):
    for group in layout.groups("ep"):
        stages = {layout.coordinates(rank)["pp"] for rank in group}
        assert len(stages) == 1
        joined = {r for rank in group for r in layout.group_of("dp", rank)}
        assert joined == set(group)


@given(layouts)
def test_frame_agrees_with_the_groups(layout):
    table = layout.to_frame().set_index("rank")
    assert list(table.index) == list(range(layout.world_size))
    for rank, row in table.iterrows():
        assert {axis: row[axis] for axis in ("dp", "pp", "pcp", "tp")} == layout.coordinates(rank)
        assert (row["node"], row["gpu"]) == divmod(rank, layout.gpus_per_node)
        for name in ("dp", "ep"):
            group = layout.groups(name)[row[f"{name}_group"]]
            assert group == layout.group_of(name, rank)
            assert group[row[f"{name}_rank" if name == "ep" else "dp_group_rank"]] == rank


def test_shows_itself_as_text_and_html():
    layout = Layout(tp=2, dp=2, pp=2, gpus_per_node=4)
    text, html = str(layout), layout._repr_html_()
    for shown in (text, html):
        assert "DP 2 x PP 2 x PCP 1 x TP 2 = 8 ranks on 2 nodes" in shown
        assert "DP 2 x PCP 1 x TP 2 = 4 ranks" in shown
        assert "[0 1 4 5] [2 3 6 7]" in shown
        assert "dp_group_rank" in shown
    assert html.count("<tr") == 1 + layout.world_size


def test_counts_of_numpy_are_welcome():
    assert Layout(tp=np.int64(2), dp=np.int32(4)) == Layout(tp=2, dp=4)


@pytest.mark.parametrize("size", [0, -1, 1.5, 2.0, "2", None, True])
@pytest.mark.parametrize("name", ["tp", "dp", "pcp", "pp", "gpus_per_node"])
def test_refuses_impossible_sizes(name, size):
    with pytest.raises(Refused, match=rf"{name} is .*at least 1; use 1"):
        Layout(**{name: size})


@pytest.mark.parametrize(
    ("sizes", "message"),
    [
        ({"dp": 100_000_000}, r"dp 100000000 x .* is 100000000 ranks: .*at most 65536"),
        ({"tp": 2**12, "pp": 2**12}, r"is 16777216 ranks"),
        ({"dp": 10**26}, r"dp is 100000000000000000000000000: it must be at most 2147483647"),
        ({"dp": 10**5000}, r"dp is a value of type int that cannot be printed: it must be at most"),
    ],
)
def test_refuses_absurd_sizes_at_once(sizes, message):
    with pytest.raises(Refused, match=message):
        Layout(**sizes)


def test_the_largest_layout_shows_itself():
    assert f"DP {MOST_RANKS} x" in str(Layout(dp=MOST_RANKS))


anything = st.one_of(
    st.integers(),
    st.integers(-2, 9),
    st.floats(),
    st.booleans(),
    st.none(),
    st.text(max_size=4),
    st.lists(st.integers(-2, 9), max_size=3),
    st.just(10**5000),
)


@given(st.dictionaries(st.sampled_from(["tp", "dp", "pcp", "pp", "gpus_per_node"]), anything))
def test_a_layout_is_made_or_refused(sizes):
    with suppress(Refused):
        assert Layout(**sizes).world_size <= MOST_RANKS


@given(layouts, st.one_of(st.sampled_from(NAMES), anything), anything)
def test_a_question_to_a_layout_is_answered_or_refused(layout, name, rank):
    for ask in (
        lambda: layout.groups(name),
        lambda: layout.group_of(name, rank),
        lambda: layout.coordinates(rank),
        lambda: layout.node_of(rank),
    ):
        with suppress(Refused):
            ask()


@given(anything, anything, anything)
def test_a_question_about_counts_is_answered_or_refused(first, second, third):
    for ask in (
        lambda: require_count("n", first),
        lambda: expert_range(experts=first, ep_size=second, ep_rank=third),
        lambda: expert_owner(first, experts=second, ep_size=third),
        lambda: sp_token_counts(first, tp=second, sequence_parallel=True),
    ):
        with suppress(Refused):
            ask()


def test_refuses_unknown_groups_and_ranks():
    layout = Layout(tp=2, dp=4)
    with pytest.raises(Refused, match=r"group 'cp' is not known: .* tp, dp, pcp, pp, ep"):
        layout.groups("cp")
    for ask in (layout.ep_rank, layout.coordinates, layout.node_of, lambda rank: layout.group_of("dp", rank)):
        for rank in (-1, 8, 1.0, True):
            with pytest.raises(Refused, match=r"lie in \[0, 8\)"):
                ask(rank)


@given(st.integers(1, 300), st.integers(1, 64))
def test_expert_ranges_partition_the_experts_and_agree_with_the_owner(experts, ep_size):
    ranges = [expert_range(experts=experts, ep_size=ep_size, ep_rank=rank) for rank in range(ep_size)]
    assert [expert for owned in ranges for expert in owned] == list(range(experts))
    assert [len(owned) for owned in ranges] == [
        experts // ep_size + (rank < experts % ep_size) for rank in range(ep_size)
    ]
    owners = expert_owner(np.arange(experts), experts=experts, ep_size=ep_size)
    assert all(expert in ranges[owner] for expert, owner in enumerate(owners))


def kernel_owner(expert, experts, ep_size):
    """`compute_target_rank_id` of FlashInfer's moeAlltoAllKernels.cu, in Python."""
    base, remainder = divmod(experts, ep_size)
    split = remainder * (base + 1)
    return expert // (base + 1) if expert < split else remainder + (expert - split) // base


@given(st.data())
def test_expert_owner_is_the_kernels(data):
    ep_size = data.draw(st.integers(1, 64))
    experts = data.draw(st.integers(ep_size, 600))
    ids = data.draw(st.lists(st.integers(0, experts - 1), min_size=6, max_size=6))
    owners = expert_owner(np.array(ids, dtype=np.int32).reshape(2, 3), experts=experts, ep_size=ep_size)
    assert owners.shape == (2, 3)
    assert owners.ravel().tolist() == [kernel_owner(expert, experts, ep_size) for expert in ids]


def test_the_first_ranks_own_one_expert_more():
    """vLLM's linear placement of 10 experts on 4 ranks (`determine_expert_map`)."""
    owned = [list(expert_range(experts=10, ep_size=4, ep_rank=rank)) for rank in range(4)]
    assert owned == [[0, 1, 2], [3, 4, 5], [6, 7], [8, 9]]
    assert expert_owner([], experts=10, ep_size=4).size == 0


@pytest.mark.parametrize("ids", [[-1], [10], [0, 3, 11], [0.5]])
def test_refuses_ids_that_no_rank_owns(ids):
    with pytest.raises(Refused, match=r"integers in \[0, experts = 10\)"):
        expert_owner(ids, experts=10, ep_size=4)


def test_refuses_an_ep_rank_outside_the_group():
    with pytest.raises(Refused, match=r"ep_rank 4: .*\[0, ep_size = 4\)"):
        expert_range(experts=10, ep_size=4, ep_rank=4)
    with pytest.raises(Refused, match="experts is 0"):
        expert_range(experts=0, ep_size=4, ep_rank=0)


def test_vllm_example_of_sequence_parallel_tokens():
    assert sp_token_counts([7, 3, 8, 1], tp=2, sequence_parallel=True) == [4, 4, 2, 2, 4, 4, 1, 1]
    assert sp_token_counts([7, 3, 8, 1], tp=2, sequence_parallel=False) == [7, 7, 3, 3, 8, 8, 1, 1]


@given(st.lists(st.integers(0, 5000), min_size=1, max_size=6), st.integers(1, 8))
def test_sequence_parallel_counts_cover_the_tokens_with_less_than_a_rank_to_spare(tokens, tp):
    counts = np.reshape(sp_token_counts(tokens, tp=tp, sequence_parallel=True), (len(tokens), tp))
    assert (counts == counts[:, :1]).all()
    spare = counts.sum(axis=1) - tokens
    assert ((spare >= 0) & (spare < tp)).all()


@pytest.mark.parametrize(("tokens", "tp"), [([-1], 2), ([1.5], 2), ([1], 0)])
def test_refuses_impossible_token_counts(tokens, tp):
    with pytest.raises(Refused, match=r"tokens_per_dp is|tp is 0"):
        sp_token_counts(tokens, tp=tp, sequence_parallel=True)


def test_a_layout_comes_back_from_its_row_of_a_record():
    layout = Layout(tp=2, dp=4, pcp=1, pp=2)
    row = pd.Series({"tp": np.int64(2), "dp": 4.0, "pcp": 1, "pp": 2, "tokens": 16})
    assert Layout.from_row(row) == layout

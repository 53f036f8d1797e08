"""Padding rows: what they say, where each layer sends them, and what a record keeps of them.

Expected rows are counted by hand or by a loop over tokens; the kernel's own arithmetic is held in test_expert_ids.
"""

from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from mnnvl_lab.errors import RankError, Refused
from mnnvl_lab.exchange import Exchange
from mnnvl_lab.layout import Layout
from mnnvl_lab.measure import Point, Sampling, Sweep
from mnnvl_lab.measure.run import measure
from mnnvl_lab.oracle import Oracle
from mnnvl_lab.oracle.kernel_rules import owners
from mnnvl_lab.records import point_key
from mnnvl_lab.routing import Load, Padding, Uniform, traffic
from mnnvl_lab.routing.padding import target_ranks
from mnnvl_lab.transport.flashinfer.step_guard import rows_to_targets
from mnnvl_lab.transport.host.send_plan import SendPlan
from mnnvl_lab.transport.validation import ids_problem, invalid_ids_problem

SHAPE = {"experts": 256, "top_k": 8, "ep_size": 4}
PUBLIC = (1024, 512, 512, 512)
"""FlashInfer #4017: four GB200, 1,024 tokens on one rank, 512 on three, which are padded to as many."""
QUICK = Sampling(warmup=0, min_samples=1, max_samples=1, budget_s=0.0)


def load(padding=None, **more):
    return Load(**{"routing": Uniform(), "tokens": PUBLIC, "padding": padding} | more)


def test_the_public_case_has_1536_surplus_rows_and_all_reach_rank_0():
    padded = load(Padding.to_fullest(PUBLIC))
    surplus = traffic.rows_RR(padded, **SHAPE) - traffic.rows_RR(load(), **SHAPE)
    assert surplus.tolist() == [[0, 0, 0, 0], [512, 0, 0, 0], [512, 0, 0, 0], [512, 0, 0, 0]]
    dropped = load(Padding.to_fullest(PUBLIC, invalid_ids="drop"))
    assert np.array_equal(traffic.rows_RR(dropped, **SHAPE), traffic.rows_RR(load(), **SHAPE))


def test_padding_of_a_real_expert_goes_to_the_owners_of_top_k_experts_in_turn():
    surplus = traffic.rows_RR(load(Padding(rows=3, expert_id=60)), **SHAPE) - traffic.rows_RR(load(), **SHAPE)
    assert surplus.tolist() == [[3, 3, 0, 0]] * 4  # experts 60 to 67: the last four of rank 0, the first of rank 1


def test_padding_that_names_no_expert_is_no_copy():
    padded = load(Padding(rows=5))
    assert np.array_equal(traffic.copies_RR(padded, **SHAPE), traffic.copies_RR(load(), **SHAPE))
    assert np.array_equal(traffic.copies_E(padded, **SHAPE), traffic.copies_E(load(), **SHAPE))
    real = traffic.copies_E(load(Padding(rows=5, expert_id=0)), **SHAPE) - traffic.copies_E(load(), **SHAPE)
    assert real.tolist() == [4 * 5] * 8 + [0] * 248


@pytest.mark.parametrize("said", ["-1", -1, "E", "e", 7, "7"])
def test_tokens_come_first_and_padding_behind_them(said):
    padded = Load(routing=Uniform(), tokens=3, padding=Padding(rows=(2, 0), expert_id=said))
    shape = {"experts": 8, "top_k": 2, "ep_size": 2}
    chosen = padded.experts_TK(0, **shape)
    assert np.array_equal(chosen[:3], Load(routing=Uniform(), tokens=3).experts_TK(0, **shape))
    assert chosen[3:].tolist() == [{"-1": [-1, -1], "E": [8, 8], "7": [7, 0]}[str(said).upper()]] * 2
    assert padded.experts_TK(1, **shape).shape == (3, 2)
    assert (padded.max_tokens, padded.max_rows, padded.runtime_max, padded.rows_R(2)) == (3, 5, 5, (5, 3))
    assert padded.weights_TK(0, top_k=2).shape == (5, 2)


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (lambda: Padding(rows=-1), "padding rows is -1"),
        (lambda: Padding(rows=1, expert_id=-2), "padding of expert -2: give -1, 'E'"),
        (lambda: Padding(rows=1, expert_id="none"), "padding of expert 'none'"),
        (lambda: Padding(rows=1, expert_id="²"), "padding of expert '²'"),
        (lambda: Padding(rows=1, expert_id="9" * 5000), "padding of expert '999"),
        (lambda: Padding(rows=1, invalid_ids="send"), "handling of invalid ids 'send' is not known"),
        (lambda: Padding(rows=1, expert_id=8).ids_PK(1, experts=8, top_k=1), "padding of expert 8: experts are below"),
        (lambda: load(Padding(rows=(1, 2))), "padding has 2 counts but ep_size is 4"),
        (lambda: load(Padding(rows=1), runtime_max_tokens=1024), "a rank has 1025 rows with padding"),
        (lambda: load(padding=3), "padding is 3: it must be a Padding"),
    ],
)
def test_what_is_refused_names_value_and_rule(make, says):
    with pytest.raises(Refused, match=says):
        make()


def test_no_rows_are_no_padding():
    assert load(Padding(rows=0)) == load()
    assert load(Padding(rows=(0, 0, 0, 0), expert_id="E")) == load()


# Where ids lead.


def brute_force(ids, *, experts, ep_size, invalid_ids):
    """By a table of owners; -1 leads to rank 0 where it owns several, since -1 / share is 0 in C."""
    shares = [len(block) for block in np.array_split(range(experts), ep_size)]
    owner = [rank for rank, share in enumerate(shares) for _ in range(share)]
    to_zero = 0 if invalid_ids == "as_kernel" and shares[0] > 1 else -1
    return [owner[i] if 0 <= i < experts else (to_zero if i == -1 else -1) for i in ids]


@given(
    ep_size=st.integers(1, 8), more=st.integers(0, 20), handling=st.sampled_from(["as_kernel", "drop"]), data=st.data()
)
def test_ids_of_padding_lead_where_the_kernel_or_nobody_sends_them(ep_size, more, handling, data):
    experts = ep_size + more
    ids = data.draw(st.lists(st.integers(-1, experts), min_size=1, max_size=12))
    shape = {"experts": experts, "ep_size": ep_size, "invalid_ids": handling}
    expected = brute_force(ids, **shape)
    assert target_ranks(np.array(ids), **shape).tolist() == expected
    assert owners(np.array([ids]), **shape).tolist() == [expected]
    plan = SendPlan.of(np.array([ids], dtype=np.int32), **shape)
    assert plan.counts_R.tolist() == [int(rank in expected) for rank in range(ep_size)]
    if experts % ep_size == 0 and handling == "as_kernel":
        table = torch.tensor([ids], dtype=torch.int32)
        assert rows_to_targets(table, experts=experts, ep_size=ep_size) == tuple(plan.counts_R.tolist())


def test_without_leave_ids_of_padding_are_refused_everywhere():
    for function in (target_ranks, owners):
        with pytest.raises(Refused, match="expert ids span -1 to -1"):
            function(np.array([[-1]]), experts=8, ep_size=2)


def exchange(mode="one_sided", **more):
    shape = {"layout": Layout(dp=4), "max_tokens": 8, "hidden": 64, "experts": 16, "top_k": 2}
    return Exchange(mode=mode, **shape | more)


@pytest.mark.parametrize(
    ("x", "ids", "says"),
    [
        (exchange(invalid_ids="as_kernel"), (-1, 15), None),
        (exchange(invalid_ids="as_kernel"), (-1, 16), "id 16 gives target rank 4 of 4, so they would write through a"),
        (exchange(invalid_ids="as_kernel", experts=4), (-1, 3), "id -1 gives target rank -1 of 4, so they would write"),
        (exchange("two_sided", invalid_ids="as_kernel"), (-1, 16), None),
        (exchange(invalid_ids="drop"), (-1, 16), None),
        (exchange(invalid_ids="drop"), (-2, 3), "padding may say -1 or E = 16, and nothing else"),
        (exchange("two_sided", invalid_ids="as_kernel"), (0, 17), "expert ids span 0 to 17"),
        (exchange(), (-1, 3), "leave tokens that only pad out of the batch"),
    ],
)
def test_ids_that_would_leave_the_workspace_stay_refused(x, ids, says):
    problem = ids_problem(x, *ids)
    assert problem is None if says is None else says in problem


@pytest.mark.parametrize(
    ("x", "fabric", "says"),
    [
        (exchange(invalid_ids="drop"), "host", None),
        (exchange(invalid_ids="as_kernel"), "nvlink", None),
        (exchange(invalid_ids="drop"), "nvlink", "FlashInfer 0.7.2's kernels drop no rows"),
        (exchange("pico", invalid_ids="drop"), "host", "only FlashInfer's modes one_sided and two_sided"),
        (exchange(invalid_ids="send"), "host", "must be one of refuse, as_kernel, drop"),
    ],
)
def test_what_a_transport_cannot_do_with_padding_is_said(x, fabric, says):
    problem = invalid_ids_problem(x, fabric)
    assert problem is None if says is None else says in problem


# In a sweep, a record and a round.


def sweep(**more):
    shape = {"hidden": 64, "experts": 16, "top_k": 2, "layouts": Layout(dp=2, tp=2), "sampling": QUICK}
    return Sweep(**shape | {"tokens": ((4, 2, 0, 1),)} | more)


def test_padding_and_replicas_are_part_of_a_points_key_and_come_back_from_its_row():
    paddings = [None, Padding(rows=3), Padding(rows=(0, 2, 4, 3)), Padding(rows=3, expert_id="E", invalid_ids="drop")]
    points = list(sweep(padding=[*paddings, Padding(rows=3, expert_id=5)], modes="one_sided").points())
    points += sweep(tokens=4, replicas=[2, 4], modes="one_sided").points()
    assert len({point_key(point.columns | {"fabric": "host"}) for point in points}) == len(points) == 7
    for point in points:
        again = Load.from_row(point.columns)
        assert replace(again, runtime_max_tokens=None) == point.load
        assert again.runtime_max == point.load.runtime_max


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        (
            {"padding": Padding(rows=1, expert_id="E"), "modes": "one_sided"},
            "padding of id 16 with invalid_ids 'as_ker",
        ),
        ({"padding": Padding(rows=1, invalid_ids="drop"), "fabric": "nvlink"}, "drop no rows"),
        ({"padding": Padding(rows=1), "modes": "all_to_all"}, "only FlashInfer's modes"),
        ({"padding": Padding(rows=1), "max_tokens": 4}, "rows with padding is 5 but the capacity max_tokens is 4"),
        ({"replicas": 2}, "rows of the ranks are 4,2,0,1 with replicas 2"),
    ],
)
def test_a_sweep_refuses_before_any_process_starts(changes, says):
    with pytest.raises(Refused, match=says):
        sweep(**changes)


def test_a_point_whose_exchange_handles_padding_otherwise_is_refused():
    with pytest.raises(Refused, match="open it with invalid_ids='as_kernel'"):
        Point(exchange=exchange(), load=Load(routing=Uniform(), tokens=1, padding=Padding(rows=1)))


@pytest.mark.parametrize("mode", ["one_sided", "two_sided"])
@pytest.mark.parametrize(
    "padding",
    [
        Padding(rows=(0, 2, 4, 3)),
        Padding(rows=(0, 2, 4, 3), invalid_ids="drop"),
        Padding(rows=2, expert_id="E", invalid_ids="drop"),
        Padding(rows=2, expert_id=15),
    ],
)
def test_padded_rounds_are_exact_on_host(host_ranks, mode, padding):
    (point,) = sweep(padding=padding, modes=mode, runtime_max_tokens=8, max_tokens=64).points()
    table = measure(point, host_ranks)
    assert table["checked"].unique().tolist() == ["exact"]
    assert table["padding_counts"].unique().tolist() == ["0,2,4,3" if isinstance(padding.rows, tuple) else "equal"]


def received_counts(rank, point):
    """Rank function: rows from each source, in one checked round."""
    from mnnvl_lab.measure.check import check_received
    from mnnvl_lab.measure.workload import Work
    from mnnvl_lab.transport import open_transport

    work = Work.of(rank, point)
    with open_transport(rank, point.exchange) as transport:
        received = transport.dispatch(work.batch())
        check_received(work, received)
        return received.counts_R


def test_two_sided_on_host_sends_id_e_nowhere_as_the_kernel(host_ranks):
    (point,) = sweep(padding=Padding(rows=2, expert_id="E"), modes="two_sided").points()
    host_ranks.use(point.exchange.layout)
    counts = host_ranks.run(received_counts, point)
    plain = Oracle(load=replace(point.load, padding=None), hidden=64, experts=16, top_k=2, ep_size=4)
    assert np.array_equal(np.transpose(counts), plain.counts_RR())


def test_a_batch_with_padding_is_refused_by_a_transport_that_was_not_told(host_ranks):
    from tests import transport_helpers as on

    host_ranks.use(Layout(dp=2, tp=2))
    padded = Load(routing=Uniform(), tokens=2, padding=Padding(rows=1))
    with pytest.raises((RankError, Refused), match="to ep_rank 0 without a word"):
        host_ranks.run(on.regions_after, exchange(layout=Layout(dp=2, tp=2)), padded, 1)


# Replicas.


def test_replicas_choose_alike_and_others_do_not():
    both = Load(routing=Uniform(), tokens=16, replicas=2)
    shape = {"experts": 32, "top_k": 4, "ep_size": 4}
    chosen = [both.experts_TK(rank, **shape) for rank in range(4)]
    assert np.array_equal(chosen[0], chosen[1])
    assert np.array_equal(chosen[2], chosen[3])
    assert not np.array_equal(chosen[0], chosen[2])
    assert np.array_equal(both.weights_TK(0, top_k=4), both.weights_TK(1, top_k=4))
    rows = traffic.rows_RR(both, **shape)
    assert np.array_equal(rows[0], rows[1])


def test_rounds_of_replicas_are_exact_on_host(host_ranks):
    for point in sweep(tokens=((7, 7, 3, 3),), replicas=2).points():
        assert measure(point, host_ranks)["checked"].isin(["exact", "bounded"]).all()

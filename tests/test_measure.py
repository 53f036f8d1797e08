"""Sweeps as data, the check that names what is wrong, sampling, clocks."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch

from mnnvl_lab.errors import Refused, WrongResult
from mnnvl_lab.exchange import Exchange, Handle, Received
from mnnvl_lab.layout import Layout
from mnnvl_lab.measure import Delay, Point, Sampling, Sweep, measure
from mnnvl_lab.measure.check import check_combined, check_received
from mnnvl_lab.measure.clocks import ANNOTATION, require_cuda, spans
from mnnvl_lab.measure.point import Sample
from mnnvl_lab.measure.run import collect, median_uncertainty
from mnnvl_lab.measure.workload import Source, Work
from mnnvl_lab.oracle import Oracle, payload
from mnnvl_lab.records import slowest_rank
from mnnvl_lab.routing import Load, Uniform

EP_SIZE, EXPERTS, TOP_K, HIDDEN = 3, 7, 4, 32


def point_of(mode="one_sided", tokens=(5, 0, 9), **fields):
    exchange = Exchange(
        mode=mode, layout=Layout(dp=EP_SIZE), max_tokens=9, hidden=HIDDEN, experts=EXPERTS, top_k=TOP_K, **fields
    )
    return Point(exchange=exchange, load=Load(routing=Uniform(), tokens=tokens, seed=3))


def work_of(point, ep_rank=0):
    noise = torch.tensor(payload.noise(point.load.seed, HIDDEN))
    sources = tuple(Source(point=point, ep_rank=each) for each in range(point.exchange.ep_size))
    return Work(point=point, ep_rank=ep_rank, device=torch.device("cpu"), noise=noise, sources=sources)


def oracle_of(point):
    return Oracle(load=point.load, experts=EXPERTS, top_k=TOP_K, hidden=HIDDEN, ep_size=EP_SIZE)


def received_by_the_book(point, target=0):
    """What dispatch must bring to `target`, from the NumPy oracle, each source's rows in reverse."""
    oracle, rows, experts, weights, counts = oracle_of(point), [], [], [], []
    for source, tokens in oracle.received(target).items():
        rows.append(oracle.rows(source)[tokens[::-1]])
        experts.append(oracle.experts_TK(source)[tokens[::-1]])
        weights.append(point.load.weights_TK(source, top_k=TOP_K)[tokens[::-1]])
        counts.append(len(tokens))
    return Received(
        payloads=(torch.from_numpy(np.concatenate(rows)).to(torch.bfloat16),),
        experts=torch.from_numpy(np.concatenate(experts)),
        weights=torch.from_numpy(np.concatenate(weights)),
        counts_R=tuple(counts),
        starts_R=tuple(np.cumsum([0, *counts[:-1]]).tolist()),
        handle=Handle(batch=None, rows=sum(counts)),
    )


def test_right_rows_pass_and_their_tokens_are_named():
    point = point_of()
    tokens_of = check_received(work_of(point), received_by_the_book(point))
    expected = oracle_of(point).received(0)
    assert [tokens.tolist() for tokens in tokens_of] == [expected[source][::-1].tolist() for source in range(EP_SIZE)]


def test_a_changed_value_is_named_by_source_token_and_column():
    point = point_of()
    received = received_by_the_book(point)
    received.payloads[0][1, 20] += 1
    token = oracle_of(point).received(0)[0][::-1][1]
    with pytest.raises(WrongResult, match=rf"payload 0 of ep_rank 0, token {token}, column 20 is .* where .* is due"):
        check_received(work_of(point), received)


@pytest.mark.parametrize("is_due", [True, False])
def test_a_row_of_another_rank_is_named_by_its_header(is_due):
    """In place of a token of the same number, and of one that ep_rank 0 did not send here."""
    point = point_of()
    received, due = received_by_the_book(point), oracle_of(point).received(0)
    token = next(t for t in due[2].tolist() if (t in due[0]) == is_due)
    place = due[0][::-1].tolist().index(token) if is_due else 0
    received.payloads[0][place] = received.payloads[0][received.block(2)][due[2][::-1].tolist().index(token)]
    found = "got tokens .* of ep_rank 0, due were"
    if is_due:
        found = f"payload 0 of ep_rank 0, token {token}, column 0 is 2.0 where 0.0 is due"
    with pytest.raises(WrongResult, match=rf"{found}.* \(the row says it is token {token} of ep_rank 2\)$"):
        check_received(work_of(point), received)


def test_a_missing_row_is_named():
    point = point_of()
    received = received_by_the_book(point)
    short = Received(**(vars(received) | {"counts_R": (received.counts_R[0] - 1, *received.counts_R[1:])}))
    with pytest.raises(WrongResult, match=r"ep_rank 0 got tokens \d+ .* of ep_rank 0, due were"):
        check_received(work_of(point), short)


def test_nothing_may_come_from_a_rank_that_takes_no_part():
    point = point_of()
    received = received_by_the_book(point)
    with pytest.raises(WrongResult, match=r"got tokens .* of ep_rank 2, due were 0"):
        check_received(work_of(point), received, active_ranks=(0, 1))
    none = Received(**(vars(received) | {"counts_R": (*received.counts_R[:2], 0)}))
    tokens_R = check_received(work_of(point), none, active_ranks=(0, 1))
    assert [len(tokens) for tokens in tokens_R] == [*received.counts_R[:2], 0]


def test_a_wrong_weight_is_noticed():
    point = point_of()
    received = received_by_the_book(point)
    received.weights[0] *= 1.01
    with pytest.raises(WrongResult, match="ids and weights of ep_rank 0"):
        check_received(work_of(point), received)


@pytest.mark.parametrize("fields", [{}, {"combine_dtype": "fp32"}, {"low_precision_combine": True}])
def test_the_oracle_of_numpy_passes_bit_for_bit(fields):
    point = point_of(**fields)
    oracle = Oracle(
        load=point.load,
        experts=EXPERTS,
        top_k=TOP_K,
        hidden=HIDDEN,
        ep_size=EP_SIZE,
        **{"combine_dtype": "bf16"} | fields,
    )
    dtype = torch.float32 if fields.get("combine_dtype") == "fp32" else torch.bfloat16
    for ep_rank in (0, 2):
        combined = torch.from_numpy(oracle.combined(ep_rank)).to(dtype)
        assert check_combined(work_of(point, ep_rank), combined) == "exact"


def test_one_bit_off_is_wrong_in_one_sided_but_rounding_passes_elsewhere():
    combined = torch.from_numpy(oracle_of(point_of()).combined(2)).to(torch.bfloat16)
    three = np.flatnonzero(~oracle_of(point_of()).order_free(2))[0]
    combined.view(torch.int16)[three, 17] ^= 1
    with pytest.raises(WrongResult, match=rf"combined row, token {three}, column 17"):
        check_combined(work_of(point_of(), 2), combined)
    assert check_combined(work_of(point_of("all_to_all"), 2), combined) == "bounded"


def test_a_sum_of_two_must_be_exact_in_every_mode_but_the_one_that_rounds_on_its_way():
    oracle = oracle_of(point_of())
    combined = torch.from_numpy(oracle.combined(2)).to(torch.bfloat16)
    two = np.flatnonzero(oracle.order_free(2))[0]
    combined.view(torch.int16)[two, 17] ^= 1
    with pytest.raises(WrongResult, match=f"token {two}, column 17"):
        check_combined(work_of(point_of("all_to_all"), 2), combined)
    assert check_combined(work_of(point_of("allgather_reducescatter"), 2), combined) == "bounded"


def test_a_missing_partial_is_beyond_rounding():
    combined = torch.from_numpy(oracle_of(point_of()).combined(2)).to(torch.bfloat16)
    combined[4] *= 0.5
    with pytest.raises(WrongResult, match="token 4"):
        check_combined(work_of(point_of("allgather_reducescatter"), 2), combined)


def test_points_go_layout_by_layout():
    sweep = Sweep(
        layouts=(Layout(dp=2), Layout(tp=2)),
        tokens=(1, 16),
        modes=("one_sided", "all_to_all"),
        hidden=64,
        experts=4,
        top_k=2,
    )
    points = list(sweep.points())
    assert len(points) == 8
    assert [p.exchange.layout.tp for p in points] == [1] * 4 + [2] * 4
    assert [p.exchange.max_tokens for p in points[:4]] == [1, 16, 1, 16]


def test_options_reach_their_mode_alone():
    options = {"one_sided": {"payload_in_workspace": True}}
    sweep = Sweep(layouts=(Layout(dp=2),), tokens=(1,), hidden=64, experts=4, top_k=2, options=options)
    assert {p.exchange.mode: p.exchange.payload_in_workspace for p in sweep.points()} == {
        "one_sided": True,
        "two_sided": False,
    }


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: Point(**vars(point_of()) | {"clock": "wall"}), "clock 'wall' is not known"),
        (lambda: Point(**vars(point_of()) | {"clock": "graph", "delay": Delay(delay_us=5)}), "delay of 5 us"),
        (lambda: Point(**vars(point_of()) | {"clock": "graph", "cold_l2": True}), "cold_l2 is True with clock graph"),
        (lambda: Point(**vars(point_of()) | {"clock": "kernel", "cold_l2": True}), "cold_l2 is True with clock kernel"),
        (lambda: Sampling(min_samples=9, max_samples=3), "min_samples is 9 and max_samples 3"),
        (lambda: Sweep(layouts=(), tokens=(1,), hidden=1, experts=1, top_k=1), "layouts is empty"),
        (
            lambda: Sweep(layouts=(Layout(),), tokens=(1,), hidden=1, experts=1, top_k=1, fabric="ib"),
            "fabric 'ib' is not known",
        ),
        (lambda: require_cuda("graph", torch.device("cpu")), "clock graph on device cpu"),
    ],
)
def test_bad_points_are_refused(make, words):
    with pytest.raises(Refused, match=words):
        make()


def test_the_uncertainty_of_a_median_comes_from_order_statistics():
    values = np.arange(1.0, 101.0)  # median 50.5, enclosed by the 40th and the 61st value with 96.5 %
    assert median_uncertainty(np.random.default_rng(0).permutation(values)) == pytest.approx((61 - 40) / 2 / 50.5)
    assert median_uncertainty(np.ones(5)) == np.inf
    assert median_uncertainty(np.ones(6)) == 0


class Alone:
    """A group of one rank."""

    def allgather(self, obj, *, call=""):
        return [obj]


def rounds(latencies_us):
    for iteration, latency_us in enumerate(latencies_us):
        yield [Sample(phase="round", iteration=iteration, start_us=0, latency_us=latency_us)]


@pytest.mark.parametrize(
    ("latencies_us", "sampling", "reason", "count"),
    [
        ([5.0] * 50, Sampling(min_samples=10, budget_s=1e9), "converged", 10),
        ([1.0, 9.0] * 50, Sampling(min_samples=10, max_samples=40, budget_s=1e9), "max_samples", 40),
        ([1.0, 9.0] * 50, Sampling(min_samples=10, budget_s=0), "budget", 10),
    ],
)
def test_sampling_ends_for_a_reason(latencies_us, sampling, reason, count):
    samples, stopped = collect(rounds(latencies_us), sampling, Alone())
    assert (stopped, len(samples)) == (reason, count)


def test_the_slowest_rank_decides_whether_sampling_has_converged():
    noisy = SimpleNamespace(allgather=lambda mine, call: [mine, (mine[0], [1.0, 99.0] * (len(mine[1]) // 2))])
    _, stopped = collect(rounds([5.0] * 50), Sampling(min_samples=10, max_samples=20, budget_s=1e9), noisy)
    assert stopped == "max_samples"


def test_kernel_spans_are_the_device_side_of_the_annotations():
    def event(name, start, end, device=torch.autograd.DeviceType.CUDA):
        time_range = SimpleNamespace(start=start, end=end, elapsed_us=lambda: end - start)
        return SimpleNamespace(name=ANNOTATION + name, device_type=device, time_range=time_range)

    host = event("dispatch", 0, 999, torch.autograd.DeviceType.CPU)
    events = [
        event("combine", 30, 37),
        host,
        event("dispatch", 10, 15),
        event("dispatch", 50, 56),
        event("combine", 60, 61),
    ]
    found = [[(s.phase, s.iteration, s.latency_us) for s in samples] for samples in spans(events, first=4)]
    assert found == [[("dispatch", 4, 5), ("combine", 4, 7)], [("dispatch", 5, 6), ("combine", 5, 1)]]


def test_a_point_comes_home_as_a_tidy_table(host_ranks):
    sweep = Sweep(
        layouts=(Layout(tp=2, dp=2),),
        tokens=((3, 0, 8, 1),),
        hidden=64,
        experts=8,
        top_k=2,
        modes=("one_sided",),
        sampling=Sampling(warmup=1, min_samples=6, max_samples=6, budget_s=0.0),
    )
    table = measure(next(sweep.points()), host_ranks)
    assert table.groupby(["rank", "phase"]).size().unique().tolist() == [6]
    assert list(table["phase"].unique()) == ["dispatch", "experts", "combine", "round"]
    assert table["tokens"].unique().tolist() == [8]
    assert (table["latency_us"] > 0).all()
    assert table["checked"].unique().tolist() == ["exact"]


def test_a_straggler_holds_the_others_by_its_delay(host_ranks):
    point = Point(
        exchange=Exchange(mode="one_sided", layout=Layout(dp=4), max_tokens=4, hidden=64, experts=8, top_k=2),
        load=Load(routing=Uniform(), tokens=4),
        sampling=Sampling(warmup=1, min_samples=6, max_samples=6, budget_s=0.0),
        delay=Delay(ep_rank=2, delay_us=30_000),
    )
    table = measure(point, host_ranks)
    dispatch = table[table["phase"] == "dispatch"].groupby("rank")["latency_us"].median()
    assert (dispatch.drop(2) > 20_000).all()  # they cannot be done before rank 2 has begun
    assert dispatch[2] < dispatch.drop(2).min()


def test_pipeline_stages_come_home_as_ep_groups_of_their_own(host_ranks):
    sweep = Sweep(
        layouts=Layout(dp=2, pp=2),
        tokens=((4, 0),),
        runtime_max_tokens=8,
        max_tokens=64,
        modes="one-sided",
        hidden=64,
        experts=8,
        top_k=2,
        sampling=Sampling(warmup=1, min_samples=6, max_samples=6, budget_s=0.0),
    )
    table = measure(next(sweep.points()), host_ranks)
    counts = table[["tokens", "token_counts", "runtime_max_tokens", "max_tokens"]].drop_duplicates()
    assert counts.to_numpy().tolist() == [[4, "4,0", 8, 64]]
    assert table["checked"].unique().tolist() == ["exact"]
    rounds = slowest_rank(table[table["phase"] == "round"])
    assert rounds.groupby("ep_group").size().tolist() == [6, 6]

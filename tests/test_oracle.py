"""The oracle against plain loops over tokens, choices and ranks, with torch's own casts."""

import re
from fractions import Fraction

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mnnvl_lab.errors import Refused
from mnnvl_lab.oracle import Oracle, expert_factor, kernel_rules, partial_factor, payload, reduce_slots
from mnnvl_lab.routing import HotRank, Load, Replay, Uniform

DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}


# The groupings as written out in moeAlltoAllKernels.cu, vectorized_combine_impl (FlashInfer 0.7.2), in its own order.
KERNEL = {
    1: [],
    2: ["0+=1"],
    4: ["0+=1", "2+=3", "0+=2"],
    6: ["0+=1", "2+=3", "4+=5", "0+=2", "0+=4"],
    8: ["0+=1", "2+=3", "4+=5", "6+=7", "0+=2", "4+=6", "0+=4"],
    10: ["0+=1", "2+=3", "4+=5", "6+=7", "8+=9", "0+=2", "4+=6", "0+=4", "0+=8"],
    16: [
        *["0+=1", "2+=3", "4+=5", "6+=7", "8+=9", "10+=11", "12+=13", "14+=15"],
        *["0+=2", "4+=6", "8+=10", "12+=14", "0+=4", "8+=12", "0+=8"],
    ],
    22: [
        *["0+=1", "2+=3", "4+=5", "6+=7", "8+=9", "10+=11", "12+=13", "14+=15", "16+=17", "18+=19", "20+=21"],
        *["0+=2", "4+=6", "8+=10", "12+=14", "16+=18", "0+=4", "8+=12", "16+=20", "0+=8", "0+=16"],
    ],
} | {k: [f"0+={i}" for i in range(1, k)] for k in (12, 14, 18)}


def as_the_kernel(top_k, slots):
    """Carry out the kernel's statements one after the other."""
    acc = list(slots)
    for left, right in (map(int, step.split("+=")) for step in KERNEL[top_k]):
        acc[left] = acc[left] + acc[right]
    return acc[0]


class Term(str):
    """A symbol whose sum spells out its grouping."""

    def __add__(self, other):
        return Term(f"({self} {other})")


@pytest.mark.parametrize("top_k", sorted(KERNEL))
def test_slots_are_grouped_as_in_the_kernel(top_k):
    slots = [Term(i) for i in range(top_k)]
    spelled = reduce_slots(slots)
    assert spelled == as_the_kernel(top_k, slots)
    assert sorted(map(int, re.findall(r"\d+", spelled))) == list(range(top_k))


def test_slots_may_be_torch_tensors():
    slots = torch.randn(8, 5, generator=torch.Generator().manual_seed(0))
    assert reduce_slots(list(slots)).tolist() == reduce_slots(list(slots.numpy())).tolist()


@st.composite
def rounds(draw):
    ep_size = draw(st.integers(1, 6))
    experts = draw(st.integers(ep_size, 20))
    top_k = draw(st.sampled_from([k for k in KERNEL if k <= experts]))
    tokens = tuple(draw(st.lists(st.integers(0, 4), min_size=ep_size, max_size=ep_size)))
    load = Load(
        routing=draw(st.sampled_from([Uniform(), HotRank(share=0.7)])), tokens=tokens, seed=draw(st.integers(0, 9))
    )
    active = draw(st.none() | st.sets(st.integers(0, ep_size - 1), min_size=1).map(lambda ranks: tuple(sorted(ranks))))
    return {"load": load, "experts": experts, "top_k": top_k, "ep_size": ep_size, "active_ranks": active}


class Dense:
    """The same round by plain loops: who sends what to whom, and every addition spelled out."""

    def __init__(self, *, load, experts, top_k, ep_size, active_ranks, hidden, dtype, fp8=False):
        self.load, self.top_k, self.ep_size, self.hidden, self.dtype, self.fp8 = (
            load,
            top_k,
            ep_size,
            hidden,
            dtype,
            fp8,
        )
        sizes = [experts // ep_size + (rank < experts % ep_size) for rank in range(ep_size)]
        self.owner = [rank for rank, size in enumerate(sizes) for _ in range(size)]
        self.active = range(ep_size) if active_ranks is None else active_ranks
        self.chosen = [
            load.experts_TK(r, experts=experts, top_k=top_k, ep_size=ep_size).tolist() for r in range(ep_size)
        ]
        self.weights = [load.weights_TK(r, top_k=top_k) for r in range(ep_size)]

    def targets(self, source, token):
        slots, seen = [], set()
        for expert in self.chosen[source][token]:
            rank = self.owner[expert]
            sent = source in self.active and rank in self.active and rank not in seen
            slots.append(rank if sent else -1)
            seen.add(rank)
        return slots

    def received(self, target):
        return {
            source: [t for t in range(len(self.chosen[source])) if target in self.targets(source, t)]
            for source in range(self.ep_size)
        }

    def partial(self, source, token, target):
        x = payload.rows(seed=self.load.seed, rank=source, tokens=token + 1, hidden=self.hidden)[token]
        factor = np.float32(0)
        for k, expert in enumerate(self.chosen[source][token]):
            if self.owner[expert] == target:
                factor = factor + self.weights[source][token, k] * np.float32(1 + expert * 45 % 128 / 128)
        sent = torch.from_numpy(x * factor).to(self.dtype).float()
        if self.fp8:
            sent = sent.clamp(-448, 448).to(torch.float8_e4m3fn).float()
        return sent.numpy()

    def combined(self, source, token):
        nothing = np.zeros(self.hidden, dtype=np.float32)
        slots = [nothing if r < 0 else self.partial(source, token, r) for r in self.targets(source, token)]
        total = torch.from_numpy(as_the_kernel(self.top_k, slots))
        return total.to(torch.bfloat16 if self.fp8 else self.dtype).float().numpy()

    def exact(self, source, token):
        partials = [self.partial(source, token, r) for r in self.targets(source, token) if r >= 0]
        return [float(sum((Fraction(float(p[h])) for p in partials), Fraction(0))) for h in range(self.hidden)]


def both(case, combine_dtype="bf16", low_precision=False):
    oracle = Oracle(**case, hidden=8, combine_dtype=combine_dtype, low_precision_combine=low_precision)
    return oracle, Dense(**case, hidden=8, dtype=DTYPES[combine_dtype], fp8=low_precision)


def living(oracle):
    return oracle.active_ranks if oracle.active_ranks is not None else range(oracle.ep_size)


@settings(max_examples=60, deadline=None)
@given(case=rounds())
def test_dispatch_equals_plain_loops(case):
    oracle, dense = both(case)
    for rank, tokens in enumerate(case["load"].tokens_R(oracle.ep_size)):
        assert oracle.targets_TK(rank).tolist() == [dense.targets(rank, t) for t in range(tokens)]
        received = {source: sent.tolist() for source, sent in oracle.received(rank).items()}
        assert received == dense.received(rank)
        assert oracle.counts_RR()[:, rank].tolist() == [len(sent) for sent in received.values()]


@settings(max_examples=60, deadline=None)
@given(case=rounds(), combine_dtype=st.sampled_from(sorted(DTYPES)))
def test_combine_equals_plain_loops_to_the_last_bit(case, combine_dtype):
    oracle, dense = both(case, combine_dtype)
    for rank in living(oracle):
        ours, truth = oracle.combined(rank), oracle.combined_float64(rank)
        assert ours.dtype == np.float32
        for token in range(len(ours)):
            assert ours[token].tobytes() == dense.combined(rank, token).tobytes()
            assert truth[token].tolist() == dense.exact(rank, token)


@settings(max_examples=30, deadline=None)
@given(case=rounds())
def test_low_precision_combine_equals_plain_loops(case):
    oracle, dense = both(case, low_precision=True)
    for rank in living(oracle):
        for token, row in enumerate(oracle.combined(rank)):
            assert row.tobytes() == dense.combined(rank, token).tobytes()


@settings(max_examples=30, deadline=None)
@given(case=rounds())
def test_partials_equal_plain_loops(case):
    oracle, dense = both(case)
    for target in range(oracle.ep_size):
        for source, tokens in oracle.received(target).items():
            partials = oracle.partials(target, source)
            assert partials.shape == (len(tokens), 8)
            for token, row in zip(tokens, partials, strict=True):
                assert row.tobytes() == dense.partial(source, token, target).tobytes()


def test_chunks_do_not_show(monkeypatch):
    oracle = Oracle(load=Load(routing=Uniform(), tokens=11), experts=16, top_k=4, hidden=16, ep_size=4)
    whole = oracle.combined(2)
    monkeypatch.setattr("mnnvl_lab.oracle.oracle.CHUNK_BYTES", 3 * 4 * 16)
    np.testing.assert_array_equal(oracle.combined(2), whole)


def test_where_two_partials_meet_any_order_gives_the_same():
    oracle = Oracle(load=Load(routing=Uniform(), tokens=60, seed=3), experts=16, top_k=4, hidden=64, ep_size=4)
    free, combined = oracle.order_free(1), oracle.combined(1)
    ranks_T = [len({e // 4 for e in chosen}) for chosen in oracle.experts_TK(1).tolist()]
    assert free.tolist() == [ranks <= 2 for ranks in ranks_T]
    assert 0 < free.sum() < 60
    backwards = np.zeros_like(combined)
    for target in reversed(range(4)):
        backwards[oracle.sent_tokens(1, target)] += oracle.partials(target, 1)
    backwards = torch.from_numpy(backwards).to(torch.bfloat16).float().numpy()
    np.testing.assert_array_equal(backwards[free], combined[free])


def test_rounding_separates_the_truth_from_the_result():
    oracle = Oracle(load=Load(routing=Uniform(), tokens=200), experts=64, top_k=8, hidden=64, ep_size=8)
    combined, truth = oracle.combined(0), oracle.combined_float64(0)
    assert (combined != truth).any()
    assert (np.abs(combined - truth) <= np.abs(truth) * 2**-8 + 1e-5).all()


def test_negative_zero_survives_only_where_nothing_is_added():
    assert np.signbit(reduce_slots([np.float32(-0.0)]))
    assert not np.signbit(reduce_slots([np.float32(-0.0), np.float32(0)]))


def test_a_dead_rank_is_left_out():
    load = Load(routing=Replay([[0, 2], [1, 3]]), tokens=1)
    shape = {"experts": 4, "top_k": 2, "ep_size": 2, "hidden": 8}
    alone = Oracle(load=load, **shape, active_ranks=(0,))
    assert alone.targets_TK(0).tolist() == [[0, -1]]
    assert [len(sent) for sent in alone.received(1).values()] == [0, 0]
    assert alone.received(0)[0].tolist() == [0]
    np.testing.assert_array_equal(alone.combined(0), alone.partials(0, 0))
    with pytest.raises(Refused, match="rank 1 is none of active_ranks"):
        alone.combined(1)
    with pytest.raises(Refused, match=r"active_ranks are \(2,\): each must lie in \[0, ep_size = 2\)"):
        Oracle(load=load, **shape, active_ranks=(2,))


def test_worked_example_of_targets():
    """7 experts on 2 ranks: rank 0 owns 0 to 3."""
    chosen = np.array([[6, 0, 5, 1], [0, 1, 2, 3], [3, 4, 0, 6]])
    targets = kernel_rules.target_ranks(chosen, experts=7, ep_size=2)
    assert targets.tolist() == [[1, 0, -1, -1], [0, -1, -1, -1], [0, 1, -1, -1]]
    assert kernel_rules.sent_tokens(targets, 1).tolist() == [0, 2]
    assert kernel_rules.counts_RR([targets, targets[:0]], ep_size=2).tolist() == [[3, 2], [0, 0]]


def test_gains_tell_neighbouring_experts_apart():
    gains = expert_factor(np.arange(1024))
    assert all(len(set(gains[i : i + 128].tolist())) == 128 for i in range(1024 - 127))
    assert (gains * 128 == np.round(gains * 128)).all()
    assert gains.min() == 1
    assert gains.max() < 2


def test_partial_gains_add_up_to_the_whole():
    load = Load(routing=Uniform(), tokens=50)
    shape = {"experts": 10, "ep_size": 4}
    chosen, weights = load.experts_TK(0, top_k=6, **shape), load.weights_TK(0, top_k=6)
    parts = [partial_factor(chosen, weights, ep_rank=r, **shape) for r in range(4)]
    assert parts[0].dtype == np.float32
    np.testing.assert_allclose(sum(parts), (weights * expert_factor(chosen)).sum(axis=1), rtol=1e-6)
    assert (parts[3] > 0).tolist() == ((chosen == 8) | (chosen == 9)).any(axis=1).tolist()


def test_other_slot_counts_are_added_in_order():
    assert kernel_rules.reduce_slots([Term(i) for i in range(5)]) == "((((0 1) 2) 3) 4)"

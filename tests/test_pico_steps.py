"""Pico in steps, as notebook 12 shows them."""

import os
from pathlib import Path

import pytest

from mnnvl_lab.errors import Refused
from mnnvl_lab.exchange import Exchange
from mnnvl_lab.layout import Layout
from mnnvl_lab.routing import Load, Uniform
from mnnvl_lab.transport.pico import steps
from mnnvl_lab.transport.pico.launch import COUNTED_TOKENS, MOST_SPLIT, PULLED_TOKENS, Tuning, power_of_two
from tests import transport_helpers as on
from tools.pico_stress import BROKEN, SIZES

TARGETS = [[0, 1], [1, 1], [1, 0]]


def rows_of(two, rank):
    return two.memory[rank, :14].view(7, 2).tolist()


def test_without_slots_rows_overwrite_each_other():
    two = steps.TwoRanks().put(TARGETS, count=False, distinct=False, flag=False)
    assert rows_of(two, 1) == [[12, 2]] + [[0, 0]] * 6


def test_with_slots_a_rank_named_twice_gets_two_rows():
    two = steps.TwoRanks().put(TARGETS, distinct=False)
    assert rows_of(two, 1)[:4] == [[10, 0], [11, 1], [11, 1], [12, 2]]
    assert two.memory[:, 14].tolist() == [2, 4]


def test_distinct_rows_with_counts_and_flags():
    two = steps.TwoRanks().put(TARGETS, epoch=3)
    assert rows_of(two, 1)[:3] == [[30, 0], [31, 1], [32, 2]]
    assert two.memory[:, 14:].tolist() == [[2, 3], [3, 3]]


def test_a_later_round_leaves_old_rows_behind_its_count():
    two = steps.TwoRanks().put(TARGETS, epoch=1).put([[0, 0]], epoch=2)
    assert two.memory[:, 14:].tolist() == [[1, 2], [0, 2]]
    assert rows_of(two, 1)[0] == [10, 0]


def test_ranks_that_are_started_later_compile_their_kernels(monkeypatch):
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    steps.TwoRanks().put(TARGETS)
    assert steps.source_of("signal").startswith("@")
    assert "TRITON_INTERPRET" not in os.environ


def test_the_recorded_ladder_is_below_flashinfer_at_every_size():
    fastest = steps.fastest(steps.ladder())
    assert list(fastest.index) == [2**n for n in range(13)]
    assert (fastest["pico"] < fastest["FlashInfer"]).all()


def test_only_pairs_push_and_only_in_large_rounds():
    pushing = {
        (tokens, ranks)
        for tokens in (1, 128, 2048, 4096, 8192)
        for ranks in (1, 2, 4, 8)
        if Tuning.of(tokens, ranks).pushers
    }
    assert {ranks for _, ranks in pushing} == {1, 2}
    assert {tokens for tokens, _ in pushing} == {4096, 8192}


EVERY_WAY = {(False, False, False), (True, False, False), (True, True, False), (True, True, True)}
INTERPRETED_SIZES = (5, 6, 12, 40)  # tokens per rank


def ways(tuning, sizes):
    """Slots by atomics or counted, one flag or one per program, pushed or pulled: at each of these sizes."""
    return [(chosen.atomics, chosen.one_flag, bool(chosen.pushers)) for chosen in map(tuning, sizes)]


def test_the_stress_takes_every_way_through_the_kernels():
    assert set(ways(Tuning.of, SIZES)) == EVERY_WAY


def test_rounds_that_take_turns_at_every_way_are_right(host_ranks):
    """Slot counters that a round leaves behind, or flags that it does not raise, would show in the next one."""
    assert set(ways(Tuning.interpreted, INTERPRETED_SIZES)) == EVERY_WAY
    exchange = Exchange(mode="pico", layout=Layout(dp=2), max_tokens=40, hidden=64, experts=8, top_k=2)
    sizes = (*INTERPRETED_SIZES, *reversed(INTERPRETED_SIZES), (6, 0), (0, 12), 6)
    loads = [Load(routing=Uniform(), tokens=tokens, seed=seed) for seed, tokens in enumerate(sizes)]
    host_ranks.use(exchange.layout)
    assert host_ranks.run(on.rounds, exchange, loads, timeout_s=60) == [len(sizes)] * 2


def test_one_flag_for_counted_slots_is_refused():
    with pytest.raises(Refused, match="one_flag is set and atomics is not"):
        Tuning(one_flag=True)


@pytest.mark.parametrize("tuning", [Tuning.of, Tuning.interpreted])
def test_programs_have_a_flag_each_and_slots_by_atomics_whole_rows(tuning):
    for tokens in range(1, 2 * PULLED_TOKENS):
        chosen = tuning(tokens)
        if chosen.atomics:
            assert chosen.dispatch_split == 1
        else:
            assert tokens <= COUNTED_TOKENS
            assert chosen.dispatch_split <= MOST_SPLIT
        assert not chosen.pushers or chosen.combine_split == 1


def test_powers_of_two():
    assert [power_of_two(n) for n in (1, 2, 3, 8, 9)] == [1, 2, 4, 8, 16]


@pytest.mark.parametrize("name", BROKEN)
def test_what_a_broken_variant_takes_out_is_in_the_kernels(name):
    for old, new in BROKEN[name].items():
        assert old in (Path(steps.__file__).parent / "kernels.py").read_text()
        assert old != new

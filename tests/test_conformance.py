"""The recorded rounds of FlashInfer's kernels, reproduced by the `host` transports and by the oracle."""

from dataclasses import replace
from functools import cache
from pathlib import Path

import numpy as np
import pytest

from mnnvl_lab.errors import RecordError
from mnnvl_lab.oracle import Oracle, payload
from tools import conformance

FILES = sorted((Path(__file__).parents[1] / "data" / "conformance").glob("*.npz"))
RANKS = (2, 4, 8)


@cache
def recorded(ranks):
    """Cases of so many ranks, with each rank's arrays; read once, and changed by no test."""
    return [(case, arrays) for case, arrays, _ in map(conformance.load, FILES) if len(case.tokens) == ranks]


def oracle_of(case, index):
    load = case.point(index).load
    return Oracle(
        load=load, experts=case.experts, top_k=case.top_k, hidden=conformance.HIDDEN, ep_size=len(case.tokens)
    )


def bf16_bits(values):
    return (np.ascontiguousarray(values, dtype=np.float32).view(np.uint32) >> 16).astype(np.uint16)


def test_every_case_was_recorded_with_its_origin():
    assert {case.name for case in conformance.cases(RANKS)} == {path.stem for path in FILES}
    for path in FILES:
        _, _, provenance = conformance.load(path)
        assert "H100" in provenance["device"]
        assert provenance["commit"]
        assert provenance["flashinfer"] == "0.7.2.post1"


@pytest.mark.parametrize("ranks", RANKS)
def test_the_host_transports_leave_what_the_kernels_left(host_ranks, ranks):
    """Regions byte for byte, rows up to their order within a source, combined rows bit for bit."""
    for case, per_rank in recorded(ranks):
        host_ranks.use(case.layout)
        for ep_rank, (here, there) in enumerate(zip(host_ranks.run(conformance.replay, case), per_rank, strict=True)):
            ours, theirs = conformance.normalised(case, here), conformance.normalised(case, there)
            assert ours.keys() == theirs.keys()
            for name in theirs:
                np.testing.assert_array_equal(ours[name], theirs[name], err_msg=f"{case.name}, rank {ep_rank}, {name}")


@pytest.mark.parametrize("ranks", [2, 4])  # all cases of 4 and 8 ranks pass too, and take the interpreter a minute
def test_pico_leaves_what_the_one_sided_kernels_left(host_ranks, ranks):
    """Every region, for its layout is FlashInfer's; `test_the_host_transports_leave_...` says how they are compared."""
    for case, per_rank in recorded(ranks):
        if case.mode == "one_sided" and (ranks == 2 or len(set(case.tokens)) > 1):
            pico = replace(case, mode="pico")
            host_ranks.use(case.layout)
            for here, there in zip(host_ranks.run(conformance.replay, pico), per_rank, strict=True):
                ours, theirs = conformance.normalised(pico, here), conformance.normalised(case, there)
                assert ours.keys() == theirs.keys()
                for name in theirs:
                    np.testing.assert_array_equal(ours[name], theirs[name], err_msg=f"{case.name}, {name}")


@pytest.mark.parametrize("ranks", RANKS)
def test_the_oracle_says_what_the_kernels_combined(ranks):
    for case, per_rank in recorded(ranks):
        for index in range(conformance.ROUNDS):
            oracle = oracle_of(case, index)
            for ep_rank, arrays in enumerate(per_rank):
                expected, found = bf16_bits(oracle.combined(ep_rank)), arrays[f"round{index}/combined"]
                sure = np.ones(len(found), bool) if case.mode == "one_sided" else oracle.order_free(ep_rank)
                np.testing.assert_array_equal(found[sure], expected[sure], err_msg=f"{case.name}, rank {ep_rank}")


@pytest.mark.parametrize("ranks", RANKS)
def test_the_oracle_says_what_the_kernels_delivered(ranks):
    for case, per_rank in recorded(ranks):
        for index in range(conformance.ROUNDS):
            oracle = oracle_of(case, index)
            rows = [oracle.rows(source) for source in range(ranks)]
            for target, arrays in enumerate(per_rank):
                due = [rows[source][tokens] for source, tokens in oracle.received(target).items()]
                assert arrays[f"round{index}/counts"].tolist() == [len(each) for each in due]
                found = arrays[f"round{index}/rows"]
                expected = bf16_bits(payload.to_bf16(np.concatenate(due)))
                assert sorted(map(bytes, found)) == sorted(map(bytes, expected))


def test_a_changed_bit_does_not_pass():
    case, per_rank = next((c, a) for c, a in recorded(2) if c.tokens == (5, 5))
    changed = {name: array.copy() for name, array in per_rank[0].items()}
    changed["round0/combined"][0, 0] ^= 1
    assert not np.array_equal(
        conformance.normalised(case, changed)["round0/combined"],
        conformance.normalised(case, per_rank[0])["round0/combined"],
    )


def test_slots_are_compared_as_sets_but_not_ignored():
    case, per_rank = next((c, a) for c, a in recorded(2) if c.mode == "one_sided" and c.top_k == 2)
    changed = {name: array.copy() for name, array in per_rank[0].items()}
    slots = conformance.regions(case, changed["round0/aux_after_dispatch"])["topk_send_indices"]
    slots[np.flatnonzero(slots >= 0)[0]] += 1
    ours, theirs = (conformance.normalised(case, arrays) for arrays in (changed, per_rank[0]))
    name = "round0/dispatch/topk_send_indices"
    assert not np.array_equal(ours[name], theirs[name])


@pytest.mark.parametrize("content", [b"", b"PK\x03\x04 cut off", b"no archive"])
def test_a_broken_file_is_refused_by_name(tmp_path, content):
    path = tmp_path / "case.npz"
    path.write_bytes(content)
    with pytest.raises(RecordError, match=r"case\.npz is no conformance record"):
        conformance.load(path)


def test_pickled_objects_are_refused(tmp_path):
    path = tmp_path / "case.npz"
    np.savez(path, header=np.array([{"case": 1}], dtype=object))
    with pytest.raises(RecordError):
        conformance.load(path)

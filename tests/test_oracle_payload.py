"""Payload rows: exact, distinct, and able to say where they come from."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from mnnvl_lab.errors import Refused
from mnnvl_lab.oracle import payload


def test_rows_are_exact_in_every_format_they_travel_in():
    rows = payload.rows(seed=3, rank=2, tokens=300, hidden=64)
    assert rows.shape == (300, 64)
    assert rows.dtype == np.float32
    for exact in (payload.to_bf16, payload.to_fp16):
        np.testing.assert_array_equal(exact(rows), rows)


def test_noise_has_both_signs_and_many_magnitudes():
    values = payload.noise(0, 64)
    assert abs((values > 0).mean() - 0.5) < 0.01
    assert abs(values.std() - np.sqrt(4 / 12 * 2**32) / 2**15) < 0.02
    assert np.abs(values).min() == payload.LEAST_MAGNITUDE
    assert len(np.unique(values)) > 1000
    assert (payload.noise(1, 64) != values).mean() > 0.9


@pytest.mark.parametrize(
    "make", [lambda **key: payload.rows(hidden=24, **key), lambda **key: payload.raw_bytes(row_bytes=24, **key)]
)
def test_rows_are_distinct_and_name_their_origin(make):
    rows = {(rank, token): row for rank in (0, 1, 63) for token, row in enumerate(make(seed=8, rank=rank, tokens=600))}
    assert all(payload.identify(row) == origin for origin, row in rows.items())
    assert len({row[payload.HEADER_WIDTH :].tobytes() for row in rows.values()}) == len(rows)


@given(rank=st.integers(0, 255), token=st.integers(0, 2**24 - 1))
def test_every_origin_can_be_written_and_read(rank, token):
    row = payload.rows(seed=1, rank=rank, tokens=[token], hidden=8)[0]
    assert payload.identify(row) == (rank, token)
    assert payload.identify(torch.from_numpy(row).to(torch.bfloat16).float().numpy()) == (rank, token)


def test_some_tokens_are_those_tokens_of_all():
    some = np.array([7, 0, 7, 31])
    for make in (
        lambda t: payload.rows(seed=5, rank=3, tokens=t, hidden=16),
        lambda t: payload.raw_bytes(seed=5, rank=3, tokens=t, row_bytes=16),
    ):
        np.testing.assert_array_equal(make(some), make(40)[some])
        assert make(0).shape == (0, 16)


def test_a_gather_in_torch_gives_the_same_rows():
    vector = torch.tensor(payload.noise(4, 32))
    rows = vector.unfold(0, 32, 1)[torch.from_numpy(payload.starts(4, 1, 50))]
    rows[:, : payload.HEADER_WIDTH] = torch.from_numpy(payload.header(1, 50))
    np.testing.assert_array_equal(rows.numpy(), payload.rows(seed=4, rank=1, tokens=50, hidden=32))


def test_parts_have_noise_of_their_own():
    parts = [
        payload.raw_bytes(seed=1, rank=0, tokens=9, row_bytes=40, part=p)[:, payload.HEADER_WIDTH :] for p in (0, 1)
    ]
    assert (parts[0] != parts[1]).mean() > 0.9


def test_bytes_of_a_narrow_row():
    assert payload.raw_bytes(seed=1, rank=6, tokens=3, row_bytes=2).tolist() == [[6, 0], [6, 1], [6, 2]]


@pytest.mark.parametrize("column", range(payload.HEADER_WIDTH))
def test_a_changed_header_is_refused(column):
    for change in (1, -1, 0.5, np.nan, np.inf, 256):
        row = payload.rows(seed=0, rank=9, tokens=70_000, hidden=8)[-1]
        row[column] += change
        with pytest.raises(
            Refused, match=r"row begins with .*: no payload's header; the row is torn, stale or foreign"
        ):
            payload.identify(row)


@pytest.mark.parametrize("row", [np.zeros(8), np.full(8, np.nan), np.ones(3), payload.noise(0, 8)[:8]])
def test_what_is_no_row_is_refused(row):
    with pytest.raises(Refused, match=r"row begins with .*: no payload's header; the row is torn, stale or foreign"):
        payload.identify(row)


@pytest.mark.parametrize(
    "key",
    [
        {"rank": 256, "tokens": 1},
        {"rank": -1, "tokens": 1},
        {"rank": 0, "tokens": [2**24]},
        {"rank": 0, "tokens": [-1]},
    ],
)
def test_origins_beyond_the_header_are_refused(key):
    with pytest.raises(Refused, match="headers hold"):
        payload.rows(seed=0, hidden=8, **key)


def test_a_row_must_hold_its_header():
    with pytest.raises(Refused, match="hidden is 4"):
        payload.rows(seed=0, rank=0, tokens=1, hidden=4)

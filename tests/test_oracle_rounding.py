"""Roundings against torch's casts: every upper half of a float32, with the lower halves that decide ties."""

import numpy as np
import pytest
import torch

from mnnvl_lab.errors import Refused
from mnnvl_lab.oracle import payload

LOWER_HALVES = (0x0000, 0x0001, 0x1000, 0x7FFF, 0x8000, 0x8001, 0xFFFF)


def every_upper_half():
    upper = np.arange(65536, dtype=np.uint32) << np.uint32(16)
    return np.concatenate([upper | np.uint32(low) for low in LOWER_HALVES]).view(np.float32)


def by_torch(x, dtype):
    return torch.from_numpy(x).to(dtype).to(torch.float32).numpy()


def assert_same_bits(ours, theirs):
    assert ours.dtype == np.float32
    nan = np.isnan(theirs)
    np.testing.assert_array_equal(np.isnan(ours), nan)
    np.testing.assert_array_equal(ours[~nan].view(np.uint32), theirs[~nan].view(np.uint32))


@pytest.mark.parametrize(("name", "dtype"), [("bf16", torch.bfloat16), ("fp16", torch.float16)])
def test_halves_round_as_torch(name, dtype):
    x = every_upper_half()
    assert_same_bits(payload.ROUNDINGS[name](x), by_torch(x, dtype))


def test_fp16_ties_between_all_neighbours():
    grid = np.arange(0x7BFF, dtype=np.uint16).view(np.float16).astype(np.float32)
    ties = (grid[1:] + grid[:-1]) / 2
    for x in (ties, -ties, np.nextafter(ties, np.float32(0)), np.nextafter(ties, np.float32(np.inf))):
        assert_same_bits(payload.to_fp16(x), by_torch(x, torch.float16))


def test_fp8_rounds_as_torch_and_saturates():
    x = every_upper_half()
    inside = np.clip(x, -448, 448)
    assert_same_bits(payload.to_fp8_e4m3(x), by_torch(inside, torch.float8_e4m3fn))
    assert payload.to_fp8_e4m3(np.array([448.1, 1e9, np.inf, -np.inf])).tolist() == [448, 448, 448, -448]


def test_fp8_ties_between_all_neighbours():
    grid = torch.arange(0x7F, dtype=torch.uint8).view(torch.float8_e4m3fn).to(torch.float32).numpy()
    ties = (grid[1:] + grid[:-1]) / 2
    for x in (grid, ties, -ties, np.nextafter(ties, np.float32(0)), np.nextafter(ties, np.float32(500))):
        assert_same_bits(payload.to_fp8_e4m3(x), by_torch(x, torch.float8_e4m3fn))


def test_fp32_is_left_alone():
    x = every_upper_half()
    assert_same_bits(payload.to_fp32(x), x)


def test_an_unknown_dtype_is_refused():
    with pytest.raises(Refused, match="combine dtype is 'int4': it must be one of bf16, fp16, fp32, fp8_e4m3"):
        payload.require_rounding("int4")

"""float32 rounded to the formats that rows travel in, to nearest and ties to even; the result is float32 again."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import MappingProxyType

import numpy as np

from mnnvl_lab.errors import Refused

E4M3_MAX = 448.0


def to_bf16(x: np.ndarray) -> np.ndarray:
    """To bfloat16: the upper half of the word, rounded; NaN stays NaN."""
    x = np.ascontiguousarray(x, dtype=np.float32)
    words = x.view(np.uint32)
    half = np.uint32(0x7FFF) + ((words >> np.uint32(16)) & np.uint32(1))
    rounded = ((words + half) & np.uint32(0xFFFF0000)).view(np.float32)
    nan = np.isnan(x)
    return np.where(nan, np.float32(np.nan), rounded) if nan.any() else rounded


def to_fp16(x: np.ndarray) -> np.ndarray:
    """To float16; beyond 65504 to infinity."""
    with np.errstate(over="ignore"):
        return np.asarray(x, dtype=np.float32).astype(np.float16).astype(np.float32)


def to_fp32(x: np.ndarray) -> np.ndarray:
    """To float32: nothing to round."""
    return np.asarray(x, dtype=np.float32)


def to_fp8_e4m3(x: np.ndarray) -> np.ndarray:
    """To float8 e4m3 (3 mantissa bits, least exponent -6), saturating at 448 as `cvt.rn.satfinite` does."""
    x = np.clip(np.asarray(x, dtype=np.float32), -E4M3_MAX, E4M3_MAX)
    _, exponent = np.frexp(x)  # |x| in [2^(exponent - 1), 2^exponent)
    step = np.ldexp(np.float32(1), np.maximum(exponent - 1, -6) - 3)
    with np.errstate(invalid="ignore"):  # a signalling NaN stays NaN without a word
        return np.rint(x / step) * step


ROUNDINGS: Mapping[str, Callable[[np.ndarray], np.ndarray]] = MappingProxyType(
    {"bf16": to_bf16, "fp16": to_fp16, "fp32": to_fp32, "fp8_e4m3": to_fp8_e4m3}
)


def require_rounding(dtype: str) -> Callable[[np.ndarray], np.ndarray]:
    """The rounding of a dtype by its name in `ROUNDINGS`.

    Raises:
        Refused: there is none.
    """
    if dtype not in ROUNDINGS:
        raise Refused(f"combine dtype is {dtype!r}: it must be one of {', '.join(ROUNDINGS)}")
    return ROUNDINGS[dtype]

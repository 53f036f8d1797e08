"""float32 rounded to the formats that rows travel in, to nearest and ties to even; the result is float32 again.

By `ml_dtypes` and NumPy: the transports round by torch or in FlashInfer's kernels, so the two can be compared.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import MappingProxyType

import ml_dtypes
import numpy as np

from mnnvl_lab.errors import Refused

E4M3_MAX = 448.0


def to_bf16(x: np.ndarray) -> np.ndarray:
    """To bfloat16."""
    return _cast(x, ml_dtypes.bfloat16)


def to_fp16(x: np.ndarray) -> np.ndarray:
    """To float16; beyond 65504 to infinity."""
    return _cast(x, np.float16)


def to_fp32(x: np.ndarray) -> np.ndarray:
    """To float32: nothing to round."""
    return np.asarray(x, dtype=np.float32)


def to_fp8_e4m3(x: np.ndarray) -> np.ndarray:
    """To float8 e4m3 (3 mantissa bits, least exponent -6), saturating at 448 as `cvt.rn.satfinite` does."""
    return _cast(np.clip(np.asarray(x, dtype=np.float32), -E4M3_MAX, E4M3_MAX), ml_dtypes.float8_e4m3fn)


def _cast(x: np.ndarray, dtype: type) -> np.ndarray:
    with np.errstate(over="ignore", invalid="ignore"):  # infinities and NaN are results here, not mistakes
        return np.asarray(x, dtype=np.float32).astype(dtype).astype(np.float32)


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

"""Payloads: rounding of float32 to the dispatch formats (to nearest, ties to even), and rows that name their token.

By `ml_dtypes` and NumPy: the transports round by torch or in FlashInfer's kernels, so the two can be compared.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import lru_cache
from types import MappingProxyType

import ml_dtypes
import numpy as np

from mnnvl_lab.errors import Refused
from mnnvl_lab.routing.random_bits import Purpose, bits

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


HEADER_WIDTH = 5  # rank, three digits of the token, a check digit
BASE = 256  # digits below 256 are exact in bf16 and are bytes
WINDOWS = 65521  # a prime: tokens of one rank repeat a window only after as many
LEAST_MAGNITUDE = 2.0**-6  # keeps every value exact in fp16 too

Tokens = int | Sequence[int] | np.ndarray


@lru_cache(maxsize=8)  # a checked round asks a dozen times for the same, which takes longer to make than all else
def noise(seed: int, hidden: int) -> np.ndarray:
    """float32 `[WINDOWS + H]`: bell-shaped with deviation 1.15, each value exact in bf16 and in fp16, none near zero.

    A sum of four 16-bit numbers: integer arithmetic, so the same bits on every platform. Kept, hence read-only.
    """
    words = bits(WINDOWS + hidden, seed=seed, purpose=Purpose.NOISE)
    quarters = words.view(np.uint16).reshape(-1, 4).astype(np.int32).T
    sums = quarters[0] + quarters[1] + quarters[2] + quarters[3] - 2 * 65535  # `sum(axis=1)` takes ten times as long
    values = to_bf16(sums.astype(np.float32) * np.float32(2.0**-15))
    return _read_only(np.where(np.abs(values) < LEAST_MAGNITUDE, np.float32(LEAST_MAGNITUDE), values))


@lru_cache(maxsize=16)
def noise_bytes(seed: int, row_bytes: int, *, part: int = 0) -> np.ndarray:
    """uint8 `[WINDOWS + row_bytes]`; each `part` of a format (rows, scales, extras) has noise of its own. Read-only."""
    length = WINDOWS + row_bytes
    words = bits(-(-length // 8), seed=seed, purpose=Purpose.NOISE, block=1 + part)
    return _read_only(words.view(np.uint8)[:length])


def starts(seed: int, rank: int, tokens: Tokens) -> np.ndarray:
    """int64 `[T]`: where in the noise each token's row begins; neighbours begin far apart."""
    return (_indices(tokens) * 25013 + rank * 7919 + seed % WINDOWS) % WINDOWS


def header(rank: int, tokens: Tokens) -> np.ndarray:
    """float32 `[T, HEADER_WIDTH]`: integers below 256.

    Raises:
        Refused: a rank or token beyond what the digits hold.
    """
    token_T = _indices(tokens)
    if not 0 <= rank < BASE or (token_T.size and not 0 <= token_T.min() <= token_T.max() < BASE**3):
        raise Refused(f"a token of rank {rank}: headers hold ranks below {BASE} and tokens below {BASE**3}")
    digits_DT = np.stack([np.full_like(token_T, rank), token_T % BASE, token_T // BASE % BASE, token_T // BASE**2])
    return np.vstack([digits_DT, _check_digit(digits_DT)]).T.astype(np.float32)


def rows(*, seed: int, rank: int, tokens: Tokens, hidden: int) -> np.ndarray:
    """float32 `[T, H]`, every value exact in bf16: the rows of `rank`'s tokens.

    Raises:
        Refused: H is too small for the header, or see `header`.
    """
    if hidden < HEADER_WIDTH:
        raise Refused(f"hidden is {hidden}: a row's header takes {HEADER_WIDTH} columns; use a larger hidden")
    return _windows(noise(seed, hidden), starts(seed, rank, tokens), header(rank, tokens), hidden)


def raw_bytes(*, seed: int, rank: int, tokens: Tokens, row_bytes: int, part: int = 0) -> np.ndarray:
    """uint8 `[T, row_bytes]` for quantised formats, whose content transports must not touch.

    Columns beyond the row's width are cut off the header, so a row of fewer than `HEADER_WIDTH` bytes has no name.
    """
    heads = header(rank, tokens).astype(np.uint8)
    return _windows(noise_bytes(seed, row_bytes, part=part), starts(seed, rank, tokens), heads, row_bytes)


def identify(row: np.ndarray) -> tuple[int, int]:
    """(rank, token) of a row of `rows` or `raw_bytes`, on whichever rank it turned up.

    Raises:
        Refused: no row begins like this: it is torn, stale or foreign.
    """
    digits = np.asarray(row)[:HEADER_WIDTH].astype(np.float64)
    whole = len(digits) == HEADER_WIDTH and np.isfinite(digits).all() and (digits == np.floor(digits)).all()
    if not whole or digits.min() < 0 or digits.max() >= BASE or digits[-1] != _check_digit(digits[:-1]):
        raise Refused(f"row begins with {digits.tolist()}: no payload's header; the row is torn, stale or foreign")
    rank, low, middle, high = digits[:-1].astype(int).tolist()
    return rank, low + BASE * (middle + BASE * high)


def expert_factor(expert_ids: np.ndarray) -> np.ndarray:
    """float32: what an expert multiplies a row by. Dyadic, in [1, 2), distinct within any 128 neighbours."""
    return (1 + np.asarray(expert_ids) * 45 % 128 / 128).astype(np.float32)


def _read_only(array: np.ndarray) -> np.ndarray:
    array.flags.writeable = False
    return array


def _indices(tokens: Tokens) -> np.ndarray:
    return np.arange(tokens, dtype=np.int64) if np.ndim(tokens) == 0 else np.asarray(tokens, dtype=np.int64)


def _check_digit(digits: np.ndarray) -> np.ndarray:
    """Along the first axis; at least 5, so that a row of zeros has no header."""
    weights = np.array([3, 7, 31, 127]).reshape(-1, *[1] * (np.ndim(digits) - 1))
    return (np.asarray(digits) * weights).sum(axis=0) % 251 + 5


def _windows(vector: np.ndarray, starts_T: np.ndarray, header_TD: np.ndarray, width: int) -> np.ndarray:
    rows_TH = np.lib.stride_tricks.sliding_window_view(vector, width)[starts_T]
    shown = min(width, HEADER_WIDTH)
    rows_TH[:, :shown] = header_TD[:, :shown]
    return rows_TH

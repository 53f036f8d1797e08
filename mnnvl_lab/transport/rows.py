"""Rows as bytes: what moves them must not care what they mean."""

from __future__ import annotations

import torch

from mnnvl_lab.model import Part


def as_bytes(rows: torch.Tensor) -> torch.Tensor:
    """uint8 `[T, row_bytes]`, the same memory."""
    if rows.numel():
        return rows.view(torch.uint8)
    return torch.empty(rows.shape[0], rows.shape[1] * rows.element_size(), dtype=torch.uint8, device=rows.device)


def as_e4m3(rows: torch.Tensor) -> torch.Tensor:
    """fp8 e4m3 without a scale, saturating, as `cvt.rn.satfinite` casts; torch alone makes NaN of what is beyond."""
    limit = torch.finfo(torch.float8_e4m3fn).max
    return rows.float().clamp(-limit, limit).to(torch.float8_e4m3fn)


def typed(rows: torch.Tensor, part: Part) -> torch.Tensor:
    """`[T, width]` of the part's dtype, the same memory as its bytes."""
    dtype = getattr(torch, part.dtype)
    return rows.view(dtype) if rows.numel() else torch.empty(len(rows), part.width, dtype=dtype, device=rows.device)


class Landing:
    """Memory that rows arrive in, kept from round to round: taking fresh pages would cost more than the copy."""

    def __init__(self):
        self._bytes = torch.empty(0, dtype=torch.uint8)

    def rows(self, count: int, row_bytes: int) -> torch.Tensor:
        """uint8 `[count, row_bytes]`; the same memory at every call, with whatever it held."""
        if self._bytes.numel() < count * row_bytes:
            self._bytes = torch.empty(count * row_bytes, dtype=torch.uint8)
        return self._bytes[: count * row_bytes].view(count, row_bytes)

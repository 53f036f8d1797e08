"""What combine must return: each token's slots, added in the oracle's order, on the rank's own device."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch

from mnnvl_lab.oracle import reduce_slots
from mnnvl_lab.oracle.payload import E4M3_MAX

if TYPE_CHECKING:
    from mnnvl_lab.exchange import Exchange
    from mnnvl_lab.measure.workload import Work

CHUNK_BYTES = {"cpu": 2**21, "cuda": 2**27}  # of one float32 slot: in the cache of a core, or large enough for a GPU


@dataclass(frozen=True, kw_only=True)
class Chunk:
    """Some tokens' K slots, each `[t, H]` float32; a slot that no rank serves holds +0."""

    tokens: np.ndarray
    slots: list[torch.Tensor]
    contributors_T: torch.Tensor

    def exact(self, exchange: Exchange) -> torch.Tensor:
        """The slots added in the kernel's order, rounded once."""
        final = torch.bfloat16 if exchange.low_precision_combine else _dtype(exchange.combine_dtype)
        return reduce_slots(self.slots).to(final)


def chunks(work: Work, tokens: np.ndarray) -> Iterator[Chunk]:
    """These tokens of this rank, as many at a time as fit a cache."""
    own = work.sources[work.ep_rank]
    targets_TK = own.targets_TK
    factors_TR = np.stack([own.factors_T(rank) for rank in range(work.point.exchange.ep_size)], axis=1)
    step = max(1, CHUNK_BYTES[work.device.type] // (4 * work.point.exchange.hidden))
    for start in range(0, len(tokens), step):
        chosen = tokens[start : start + step]
        rows, targets = work.rows(work.ep_rank, chosen), targets_TK[chosen]
        gains = np.take_along_axis(factors_TR[chosen], np.maximum(targets, 0), axis=1)
        slots = [_slot(work, rows, gains[:, k], targets[:, k] >= 0) for k in range(targets.shape[1])]
        contributors = work.on_device((targets >= 0).sum(axis=1))
        yield Chunk(tokens=chosen, slots=slots, contributors_T=contributors)


def _slot(work: Work, rows: torch.Tensor, factor: np.ndarray, served: np.ndarray) -> torch.Tensor:
    x = work.point.exchange
    partial = (rows * work.on_device(factor)[:, None]).to(_dtype(x.combine_dtype))
    if x.low_precision_combine:
        partial = rounded_to_e4m3(partial)
    return torch.where(work.on_device(served)[:, None], partial.float(), 0.0)


def rounded_to_e4m3(rows: torch.Tensor) -> torch.Tensor:
    """float32: `rows` rounded to fp8 e4m3 (3 mantissa bits, least exponent -6), ties to even, saturating at 448.

    By arithmetic on the exponent, on whatever device: transports round by a cast of torch or of the kernels.
    """
    rows = rows.float().clamp(-E4M3_MAX, E4M3_MAX)
    exponent = torch.frexp(rows).exponent  # |row| in [2^(exponent - 1), 2^exponent)
    step = torch.ldexp(torch.ones_like(rows), exponent.sub(1).clamp(min=-6) - 3)
    return torch.round(rows / step) * step


def combined(work: Work) -> torch.Tensor:
    """`[T, H]`: what combine returns where it adds in the kernel's order."""
    x = work.point.exchange
    return torch.cat([chunk.exact(x) for chunk in chunks(work, np.arange(len(work.experts_TK)))] or [_no_rows(work)])


def _no_rows(work: Work) -> torch.Tensor:
    x = work.point.exchange
    final = torch.bfloat16 if x.low_precision_combine else _dtype(x.combine_dtype)
    return torch.empty(0, x.hidden, dtype=final, device=work.device)


def _dtype(name: str) -> torch.dtype:
    return {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}[name]

"""Input and expected result of endurance rounds: tensors on the rank's device, the same on every rank.

Everything follows from a counter by integer arithmetic, so that a CUDA graph makes fresh routing at each replay and no
rank has to be told what another sends. All numbers are small integers: sums are exact in bf16 in any order. Shapes: G
rounds of a block, R ranks, M tokens at most, K top_k, H hidden, N = R * M received rows at most.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from mnnvl_lab.exchange import Exchange
from mnnvl_lab.model import Part
from mnnvl_lab.transport.base import typed

DIGITS = 3  # of a token, base 16, in the first columns of its row; the source follows
BASE = 16
MOST_TOKENS = BASE**DIGITS
KINDS = ("what came", "rows", "ids", "weights", "sums")
"""What is compared of a round: which rows came from whom, and each part of them; then combine's result."""
_STEP, _MIX_1, _MIX_2 = 0x9E3779B97F4A7C, 0x3F58476D1CE4E5B9, 0x14D049BB133111EB


def mixed(values: torch.Tensor) -> torch.Tensor:
    """Well mixed int64 from int64, as splitmix64 does it."""
    values = (values ^ (values >> 30)) * _MIX_1
    values = (values ^ (values >> 27)) * _MIX_2
    return (values ^ (values >> 31)) & 0x7FFFFFFFFFFFFFFF


@dataclass(frozen=True, kw_only=True)
class Tables:
    """Rows that a rank could send or receive, made once.

    Attributes:
        parts: of each payload tensor `[R, max_tokens, width]` in its dtype.
        values: bfloat16 `[R, max_tokens, H]`, the rows as numbers.
    """

    parts: tuple[torch.Tensor, ...]
    values: torch.Tensor

    @classmethod
    def of(cls, exchange: Exchange, device: torch.device) -> Tables:
        shape = (exchange.ep_size, exchange.max_tokens)
        source = torch.arange(shape[0], device=device)[:, None, None]
        token = torch.arange(shape[1], device=device)[None, :, None]
        column = torch.arange(exchange.hidden, device=device)[None, None, :]
        values = mixed((source * MOST_TOKENS + token) * exchange.hidden + column) % BASE
        for digit in range(DIGITS):
            values[:, :, digit] = (token // BASE**digit % BASE)[:, :, 0]
        values[:, :, DIGITS] = source[:, :, 0]
        values = values.to(torch.bfloat16)
        rows, *others = exchange.payload_parts
        parts = (values.to(getattr(torch, rows.dtype)), *(_scales(part, shape, device) for part in others))
        return cls(parts=tuple(part.contiguous() for part in parts), values=values)


def _scales(part: Part, shape: tuple[int, int], device: torch.device) -> torch.Tensor:
    count = shape[0] * shape[1] * part.row_bytes
    raw = (mixed(torch.arange(count, device=device)) % 251).to(torch.uint8)
    return typed(raw.view(-1, part.row_bytes), part).view(*shape, part.width)


@dataclass(frozen=True, kw_only=True)
class Routing:
    """Routing of a block's rounds, of all sources.

    Attributes:
        ids: int32 `[G, R, M, K]`, distinct for a token; weights: float32.
        present: bool `[G, R, M, R]`: whether a token that is sent has an expert of that rank, and the rank takes part.
    """

    ids: torch.Tensor
    weights: torch.Tensor
    present: torch.Tensor


def routing(exchange: Exchange, counter: torch.Tensor, block: BlockTensors) -> Routing:
    """Fresh routing from the counter; only enqueues.

    Args:
        counter: int64 `[1]` on the device, another one each time.
    """
    x = exchange
    drawn = mixed(block.index + counter * _STEP)
    choice = torch.arange(x.top_k, device=drawn.device)
    per_rank = x.experts // x.ep_size
    ids = (drawn[..., None] + (2 * (drawn >> 20) + 1)[..., None] * choice) % x.experts  # odd steps: all distinct
    hot = block.hot[:, None, None, None]
    ids = torch.where(hot < 0, ids, hot * per_rank + ids % per_rank)
    weights = (((drawn >> 8)[..., None] + 37 * choice) % 256).float() / 256
    owners = ids // per_rank
    present = torch.stack([(owners == rank).any(-1) for rank in range(x.ep_size)], dim=-1)
    return Routing(
        ids=ids.int().contiguous(), weights=weights.contiguous(), present=present & block.sent[..., None] & block.active
    )


@dataclass(frozen=True, kw_only=True)
class BlockTensors:
    """A block's choices on the device.

    Attributes:
        index: int64 `[G, R, M]`, a number of its own for each token.
        hot: int64 `[G]`: the rank that all tokens of a round go to, or -1.
        sent: bool `[G, R, M]`: tokens that are really sent.
        active: bool `[R]`: ranks that take part.
        tokens_GR: int64.
    """

    index: torch.Tensor
    hot: torch.Tensor
    sent: torch.Tensor
    active: torch.Tensor
    tokens_GR: torch.Tensor

    @classmethod
    def of(cls, *, tokens_GR, limit: int, hot_G, active, ep_size: int, device: torch.device) -> BlockTensors:
        tokens = torch.tensor(tokens_GR, device=device)
        count = len(tokens_GR) * ep_size * limit
        takes_part = torch.tensor([rank in active for rank in range(ep_size)], device=device)
        sent = (torch.arange(limit, device=device) < tokens[..., None]) & takes_part[None, :, None]
        return cls(
            index=torch.arange(count, device=device).view(-1, ep_size, limit),
            hot=torch.tensor(hot_G, device=device),
            sent=sent,
            active=takes_part,
            tokens_GR=tokens,
        )


@dataclass(frozen=True, kw_only=True)
class Staged:
    """What a block's rounds brought to a rank, kept for the comparison.

    Attributes:
        parts: of each payload `[G, N, width]`; ids, weights: `[G, N, K]`.
        starts_GR, counts_GR: first row and rows of each source, int64.
        combined: bfloat16 `[G, M, H]`.
    """

    parts: tuple[torch.Tensor, ...]
    ids: torch.Tensor
    weights: torch.Tensor
    starts_GR: torch.Tensor
    counts_GR: torch.Tensor
    combined: torch.Tensor

    @classmethod
    def empty(cls, exchange: Exchange, rounds: int, limit: int, device: torch.device) -> Staged:
        rows = exchange.ep_size * limit

        def room(*shape, dtype):
            return torch.zeros(rounds, *shape, dtype=dtype, device=device)

        return cls(
            parts=tuple(room(rows, p.width, dtype=getattr(torch, p.dtype)) for p in exchange.payload_parts),
            ids=room(rows, exchange.top_k, dtype=torch.int32),
            weights=room(rows, exchange.top_k, dtype=torch.float32),
            starts_GR=room(exchange.ep_size, dtype=torch.int64),
            counts_GR=room(exchange.ep_size, dtype=torch.int64),
            combined=room(limit, exchange.hidden, dtype=torch.bfloat16),
        )

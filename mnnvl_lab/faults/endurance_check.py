"""Checks a block of endurance rounds against the expected result, on the device: nothing is copied to the host."""

from __future__ import annotations

import torch

from mnnvl_lab.exchange import Exchange
from mnnvl_lab.faults.endurance_load import BASE, DIGITS, BlockTensors, Routing, Staged, Tables
from mnnvl_lab.transport.base import as_bytes


def wrong_rounds(
    exchange: Exchange, ep_rank: int, tables: Tables, block: BlockTensors, routed: Routing, staged: Staged
) -> torch.Tensor:
    """Bool `[G, len(KINDS)]`: what of each round is wrong on this rank; only enqueues."""
    source, valid = _sources(staged)
    token = _tokens(staged.parts[0]).clamp(0, block.sent.shape[2] - 1)
    of_table = source * exchange.max_tokens + token
    of_block = source * block.sent.shape[2] + token
    kinds = (
        _what_came(block, routed, staged, of_block, valid, ep_rank),
        _rows(tables, staged, of_table) & valid,
        _differ(staged.ids, _due_ids(exchange, ep_rank, routed), of_block) & valid,
        _differ(staged.weights, routed.weights, of_block) & valid,
        _sums(exchange, ep_rank, tables, block, routed, staged),
    )
    return torch.stack([kind.flatten(1).any(1) for kind in kinds], dim=1)


def _sources(staged: Staged) -> tuple[torch.Tensor, torch.Tensor]:
    """Of each received row `[G, N]`: the source whose block it lies in, and whether it holds a row at all."""
    rounds, rows = staged.ids.shape[:2]
    place = torch.arange(rows, device=staged.ids.device).expand(rounds, rows).contiguous()
    source = torch.searchsorted(staged.starts_GR, place, right=True) - 1
    end = (staged.starts_GR + staged.counts_GR).gather(1, source)
    return source, place < end


def _tokens(rows: torch.Tensor) -> torch.Tensor:
    """The token that each row names in its first columns."""
    digits = rows[..., :DIGITS].float().nan_to_num(0, 0, 0).long()
    return sum(digits[..., digit] * BASE**digit for digit in range(DIGITS))


def _what_came(
    block: BlockTensors, routed: Routing, staged: Staged, of_block: torch.Tensor, valid: torch.Tensor, ep_rank: int
) -> torch.Tensor:
    """Tokens that did not come exactly as often as they are due, and sources that counted wrong."""
    due = routed.present[..., ep_rank]
    came = torch.zeros(due.shape, dtype=torch.int32, device=due.device).flatten(1)
    came.scatter_add_(1, of_block, valid.int())
    miscounted = staged.counts_GR != due.sum(2)
    return torch.cat([came != due.flatten(1), miscounted], dim=1)


def _rows(tables: Tables, staged: Staged, of_table: torch.Tensor) -> torch.Tensor:
    """Rows that differ in any byte of any part."""
    wrong = torch.zeros_like(of_table, dtype=torch.bool)
    for part, table in zip(staged.parts, tables.parts, strict=True):
        got, due = (as_words(rows.flatten(0, 1)) for rows in (part, table))
        wrong |= (got != due[of_table.flatten()]).any(1).view_as(wrong)
    return wrong


def as_words(rows: torch.Tensor) -> torch.Tensor:
    """The same memory as the widest integers that fit: bits are compared, and fewer of them at a time are slow."""
    raw = as_bytes(rows.contiguous())
    dtype = next(d for d in (torch.int64, torch.int32, torch.int16, torch.uint8) if raw.shape[1] % d.itemsize == 0)
    return raw.view(dtype)


def _due_ids(exchange: Exchange, ep_rank: int, routed: Routing) -> torch.Tensor:
    """One-sided brings all ids of a token; two-sided's prepare writes E over those of other ranks."""
    if exchange.mode == "one_sided":
        return routed.ids
    own = routed.ids // (exchange.experts // exchange.ep_size) == ep_rank
    return torch.where(own, routed.ids, exchange.experts)


def _differ(got: torch.Tensor, due: torch.Tensor, of_block: torch.Tensor) -> torch.Tensor:
    rounds, width = got.shape[0], got.shape[2]
    expected = due.reshape(rounds, -1, width).gather(1, of_block[..., None].expand(-1, -1, width))
    return (got.view(torch.int32) != expected.view(torch.int32)).any(2)


def _sums(
    exchange: Exchange, ep_rank: int, tables: Tables, block: BlockTensors, routed: Routing, staged: Staged
) -> torch.Tensor:
    """Tokens whose sum is wrong: every rank that was due adds the row and its own number."""
    due = routed.present[:, ep_rank].float()
    numbers = torch.arange(1, exchange.ep_size + 1, device=due.device, dtype=torch.float32)
    values = tables.values[ep_rank, : due.shape[1]]
    expected = values * due.sum(-1).bfloat16()[..., None] + (due * numbers).sum(-1).bfloat16()[..., None]
    return (staged.combined != expected).any(2) & block.sent[:, ep_rank]

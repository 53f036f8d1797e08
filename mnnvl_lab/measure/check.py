"""Compare a round with the oracle, on the rank's own device, and name what is wrong.

Nothing is communicated: every rank knows from the seed what it must receive and what combine must return. The order of
additions, the owners of experts and the fp8 rounding are the oracle's or this module's own, never a transport's.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import TYPE_CHECKING

import numpy as np
import torch

from mnnvl_lab.errors import Refused, WrongResult
from mnnvl_lab.measure.expected import Chunk, chunks
from mnnvl_lab.measure.workload import Work, fake_experts, received_factor
from mnnvl_lab.oracle import payload

if TYPE_CHECKING:
    from mnnvl_lab.exchange import Batch, Received
    from mnnvl_lab.transport.base import Transport

UNIT_ROUNDOFF = {"bf16": 2.0**-8, "fp16": 2.0**-11, "fp32": 2.0**-23}


def checked_round(
    transport: Transport, work: Work, batch: Batch, *, validated: bool = False
) -> tuple[torch.Tensor, str]:
    """Dispatch, let the fake experts work, combine, and compare both with the oracle. Collective.

    Args:
        validated: this batch has been validated on this transport before.

    Returns:
        The partials, for rounds that are timed afterwards, and how strict the comparison was (`check_combined`).

    Raises:
        WrongResult: names the rank, the row or token, and both values.
    """
    try:
        received = transport.dispatch(batch, validated=validated)
        partials = fake_experts(transport, work, received, check_received(work, received))
        return partials, check_combined(work, transport.combine(partials, received.handle))
    except WrongResult as error:
        explanation = transport.explanation()
        raise WrongResult(f"{error}; {explanation}" if explanation else str(error)) from error


def check_received(work: Work, received: Received, active_ranks: Collection[int] | None = None) -> list[np.ndarray]:
    """Every row that had to come came, once, with its own content, ids and weights.

    Args:
        active_ranks: ep_ranks that take part; nothing may come from the others. None for all.

    Returns:
        For each source, the token of every row in the order received.

    Raises:
        WrongResult: a row is missing, surplus, torn, or not what its header says.
    """
    every = range(work.point.exchange.ep_size)
    active = every if active_ranks is None else active_ranks
    none = np.empty(0, dtype=np.int64)
    return [_check_block(work, received, source, _due(work, source) if source in active else none) for source in every]


def _check_block(work: Work, received: Received, source: int, due: np.ndarray) -> np.ndarray:
    block = received.block(source)
    rows = received.payloads[0][block]
    tokens = named_tokens(rows)
    if not np.array_equal(np.sort(tokens), due):
        raise WrongResult(
            f"ep_rank {work.ep_rank} got tokens {_short(np.sort(tokens))} of ep_rank {source}, due were {_short(due)}"
            + _name_stranger(rows, tokens, due)
        )
    for index, expected in enumerate(work.payloads(source, tokens)):
        _require_equal(work, received.payloads[index][block], expected, tokens, f"payload {index} of ep_rank {source}")
    factor = received_factor(work, received.experts[block], received.weights[block])
    expected = work.on_device(work.sources[source].factors_T(work.ep_rank)[tokens])
    _require_equal(work, factor[:, None], expected[:, None], tokens, f"ids and weights of ep_rank {source}")
    return tokens


def named_tokens(rows: torch.Tensor) -> np.ndarray:
    """int64 `[rows]`: tokens by the headers; a torn header gives a token that is not due."""
    numeric = rows if rows.dtype in (torch.bfloat16, torch.float16, torch.float32) else rows.view(torch.uint8)
    digits = torch.nan_to_num(numeric[:, : payload.HEADER_WIDTH].float()).cpu().numpy().astype(np.int64)
    return digits[:, 1] + payload.BASE * (digits[:, 2] + payload.BASE * digits[:, 3])


def _due(work: Work, source: int) -> np.ndarray:
    """Tokens of `source` that must arrive here: those routed here, or all where everything is gathered."""
    if work.point.exchange.mode == "allgather_reducescatter":
        return np.arange(work.rows_of(source))
    return work.sources[source].tokens_to(work.ep_rank)


def check_combined(work: Work, combined: torch.Tensor) -> str:
    """What combine returned is the sum of the partials.

    One-sided must agree with the kernel's own order of additions to the last bit. The others leave the order to a
    library: they must agree to the last bit where a token has at most two partials (then any order rounds alike), and
    elsewhere within what rounding allows. All-gather/reduce-scatter also rounds on the way: bounded everywhere.

    Returns:
        `exact` if every token agreed to the last bit, else `bounded`.

    Raises:
        WrongResult: names the first wrong token, with both values.
    """
    same = _same_bits(combined, work.combined)
    if bool(same.all()):
        return "exact"
    for chunk in chunks(work, np.flatnonzero(~same.all(dim=1).cpu().numpy())):
        rows = work.on_device(chunk.tokens)
        right = _within_rounding(work, chunk, combined[rows]) & ~_must_be_exact(work, chunk)
        _require(work, same[rows] | right[:, None], combined[rows], work.combined[rows], chunk.tokens)
    return "bounded"


def _must_be_exact(work: Work, chunk: Chunk) -> torch.Tensor:
    mode = work.point.exchange.mode
    if mode == "allgather_reducescatter":
        return torch.zeros_like(chunk.contributors_T, dtype=torch.bool)
    return (chunk.contributors_T <= 2) | (mode in ("one_sided", "pico"))


def _within_rounding(work: Work, chunk: Chunk, result: torch.Tensor) -> torch.Tensor:
    """Tokens whose every value lies within the rounding error of a sum in any order (Higham, section 4.2)."""
    x = work.point.exchange
    true = sum(slot.double() for slot in chunk.slots)
    scale = sum(slot.double().abs() for slot in chunk.slots)
    roundings = x.ep_size if x.mode == "allgather_reducescatter" else 1
    bound = roundings * UNIT_ROUNDOFF[x.combine_dtype] * scale
    return ((result.double() - true).abs() <= bound).all(dim=1)


def _same_bits(result: torch.Tensor, expected: torch.Tensor) -> torch.Tensor:
    if result.shape != expected.shape or result.dtype != expected.dtype:
        raise WrongResult(
            f"{list(result.shape)} of {result.dtype} where {list(expected.shape)} of {expected.dtype} is due"
        )
    bits = {1: torch.uint8, 2: torch.int16, 4: torch.int32}[result.element_size()]
    return result.contiguous().view(bits) == expected.contiguous().view(bits)


def _require_equal(work: Work, got: torch.Tensor, expected: torch.Tensor, tokens: np.ndarray, what: str) -> None:
    _require(work, _same_bits(got, expected), got, expected, tokens, what)


def _require(work: Work, right: torch.Tensor, got, expected, tokens: np.ndarray, what: str = "combined row") -> None:
    if bool(right.all()):
        return
    wrong_row, wrong_column = (~right).nonzero()[0].tolist()
    values = [float(side.float()[wrong_row, wrong_column]) for side in (got, expected)]
    raise WrongResult(
        f"ep_rank {work.ep_rank}, mode {work.point.exchange.mode}: {what}, token {tokens[wrong_row]}, column "
        f"{wrong_column} is {values[0]} where {values[1]} is due{_name_row(got[wrong_row])}"
    )


def _name_stranger(rows: torch.Tensor, tokens: np.ndarray, due: np.ndarray) -> str:
    """The first row that was not due, if it still has a header."""
    strangers = np.flatnonzero(~np.isin(tokens, due))
    return _name_row(rows[strangers[0]]) if len(strangers) else ""


def _name_row(row: torch.Tensor) -> str:
    """Whose row it is, if it still has a header."""
    numeric = row if row.dtype in (torch.bfloat16, torch.float16, torch.float32) else row.view(torch.uint8)
    try:
        rank, token = payload.identify(numeric[: payload.HEADER_WIDTH].float().cpu().numpy())
    except Refused:
        return ""
    return f" (the row says it is token {token} of ep_rank {rank})"


def _short(tokens: np.ndarray) -> str:
    return f"{len(tokens)} {tokens[:6].tolist()}{'...' if len(tokens) > 6 else ''}"

"""Workload of one rank: the batch that it sends and the fake experts' results, on the rank's own device.

Every rank makes all its data from the seed, so nothing has to be communicated to check a result. The fake
experts multiply a row by a scale that depends on the experts chosen: cheap, and a wrong row or weight shows.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np
import torch

from mnnvl_lab.exchange import Batch, Received
from mnnvl_lab.measure.point import Point
from mnnvl_lab.model import Part
from mnnvl_lab.oracle import kernel_rules, partial_factor, payload
from mnnvl_lab.ranks.rank import Rank

if TYPE_CHECKING:
    from mnnvl_lab.transport.base import Transport

FLOAT_ROWS = ("bfloat16", "float16", "float32")  # formats whose rows are numbers; others travel as bytes


@dataclass(frozen=True, kw_only=True)
class Source:
    """What one rank of a point sends, as every rank computes it from the seed; each array is made once.

    Attributes:
        point: what is measured.
        ep_rank: the rank that sends.
    """

    point: Point
    ep_rank: int

    @cached_property
    def experts_TK(self) -> np.ndarray:
        x = self.point.exchange
        return self.point.load.experts_TK(self.ep_rank, experts=x.experts, top_k=x.top_k, ep_size=x.ep_size)

    @cached_property
    def weights_TK(self) -> np.ndarray:
        return self.point.load.weights_TK(self.ep_rank, top_k=self.point.exchange.top_k)

    @cached_property
    def targets_TK(self) -> np.ndarray:
        """int32 `[T, K]`: the rank at the first choice that names it, -1 at the others."""
        x = self.point.exchange
        shape = {"experts": x.experts, "ep_size": x.ep_size, "invalid_ids": x.invalid_ids}
        return kernel_rules.target_ranks(self.experts_TK, **shape)

    def factors_T(self, ep_rank: int) -> np.ndarray:
        """float32 `[T]`: what this rank's experts multiply each of the rows by."""
        if ep_rank not in self._factors:
            shape = {"experts": self.point.exchange.experts, "ep_size": self.point.exchange.ep_size}
            self._factors[ep_rank] = partial_factor(self.experts_TK, self.weights_TK, ep_rank=ep_rank, **shape)
        return self._factors[ep_rank]

    def tokens_to(self, ep_rank: int) -> np.ndarray:
        """int64: the tokens routed to this rank, ascending."""
        if ep_rank not in self._tokens:
            self._tokens[ep_rank] = kernel_rules.sent_tokens(self.targets_TK, ep_rank)
        return self._tokens[ep_rank]

    @cached_property
    def _factors(self) -> dict[int, np.ndarray]:
        """Of the ranks asked for so far."""
        return {}

    @cached_property
    def _tokens(self) -> dict[int, np.ndarray]:
        """To the ranks asked for so far."""
        return {}


@dataclass(frozen=True, kw_only=True)
class Work:
    """One rank's side of a point.

    Attributes:
        point: what is measured.
        ep_rank: whose side.
        device: where the tensors live.
        noise: the seeded vector of which every row is a window (`oracle.payload`).
        sources: what each rank sends.
    """

    point: Point
    ep_rank: int
    device: torch.device
    noise: torch.Tensor
    sources: tuple[Source, ...]

    @classmethod
    def of(cls, rank: Rank, point: Point) -> Work:
        noise = torch.tensor(payload.noise(point.load.seed, point.exchange.hidden), device=rank.device)
        sources = tuple(Source(point=point, ep_rank=each) for each in range(point.exchange.ep_size))
        return cls(point=point, ep_rank=rank.group("ep").rank, device=rank.device, noise=noise, sources=sources)

    @property
    def experts_TK(self) -> np.ndarray:
        return self.sources[self.ep_rank].experts_TK

    @property
    def weights_TK(self) -> np.ndarray:
        return self.sources[self.ep_rank].weights_TK

    @cached_property
    def combined(self) -> torch.Tensor:
        """`[T, H]`: what combine must return here (`measure.expected`); computed once for all rounds of the point."""
        from mnnvl_lab.measure.expected import combined

        return combined(self)

    @cached_property
    def parts(self) -> tuple[Part, ...]:
        """The payloads of a row."""
        return self.point.exchange.payload_parts

    def rows_of(self, rank: int) -> int:
        """Rows of a rank's batch: its tokens and its padding."""
        return self.point.load.rows_R(self.point.exchange.ep_size)[rank]

    def rows(self, rank: int, tokens: np.ndarray) -> torch.Tensor:
        """Float32 `[len(tokens), H]`: what `rank` holds for these tokens, exact in bf16.

        The torch twin of `oracle.payload.rows`: windows of the noise under a header.
        """
        starts = payload.starts(self.point.load.seed, rank, tokens)
        rows = self.noise.unfold(0, self.point.exchange.hidden, 1)[self.on_device(starts)]
        rows[:, : payload.HEADER_WIDTH] = self.on_device(payload.header(rank, tokens))
        return rows

    def on_device(self, array: np.ndarray) -> torch.Tensor:
        return torch.from_numpy(np.ascontiguousarray(array)).to(self.device)

    def batch(self) -> Batch:
        """What this rank sends."""
        return Batch(
            payloads=self.payloads(self.ep_rank, np.arange(len(self.experts_TK))),
            experts_TK=self.on_device(self.experts_TK),
            weights_TK=self.on_device(self.weights_TK),
            runtime_max_tokens=self.point.load.runtime_max,
        )

    def payloads(self, rank: int, tokens: np.ndarray) -> tuple[torch.Tensor, ...]:
        """The payload tensors that `rank` sends for these tokens, in the dispatch format."""
        return tuple(self._payload(part, index, rank, tokens) for index, part in enumerate(self.parts))

    def _payload(self, part: Part, index: int, rank: int, tokens: np.ndarray) -> torch.Tensor:
        if index == 0 and part.dtype in FLOAT_ROWS:
            return self.rows(rank, tokens).to(getattr(torch, part.dtype))
        raw = payload.raw_bytes(
            seed=self.point.load.seed, rank=rank, tokens=tokens, row_bytes=part.row_bytes, part=index
        )
        dtype = getattr(torch, part.dtype)
        rows = self.on_device(raw)
        return rows.view(dtype) if len(tokens) else torch.empty(0, part.width, dtype=dtype, device=self.device)


def fake_experts(transport: Transport, work: Work, received: Received, tokens_of: Sequence[np.ndarray]) -> torch.Tensor:
    """The fake experts: `[rows, H]` partial sums in `combine_dtype`, written where `combine` wants them.

    Rows, ids and weights have been compared with what was sent (`check.check_received`).

    Args:
        tokens_of: for each source, the token of every row it sent, in the order received (`check.check_received`).
    """
    partials = transport.partials_buffer(received.handle)
    for source, tokens in enumerate(tokens_of):
        block = received.block(source)
        factor = work.on_device(work.sources[source].factors_T(work.ep_rank)[tokens])
        partials[block] = (_received_rows(work, received, source, tokens) * factor[:, None]).to(partials.dtype)
    return partials


def _received_rows(work: Work, received: Received, source: int, tokens: np.ndarray) -> torch.Tensor:
    """Float32 `[len(tokens), H]`: the rows received, or what they stand for where a quantised format travels."""
    first = received.payloads[0]
    if work.parts[0].dtype in FLOAT_ROWS:
        return first[received.block(source)].float()
    return work.rows(source, tokens)


def received_factor(work: Work, experts: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
    """Float32 `[rows]`: what this rank's experts multiply received rows by, from the ids and weights received."""
    x = work.point.exchange
    # Two-sided's prepare writes E over the choices that other ranks own: like padding, they add nothing here.
    factor = partial_factor(
        experts.cpu().numpy(), weights.cpu().numpy(), ep_rank=work.ep_rank, experts=x.experts, ep_size=x.ep_size
    )
    return work.on_device(factor)

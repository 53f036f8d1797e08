"""What a serving engine does without a workspace: plain collectives of torch.distributed, on any fabric.

Gloo carries tensors of the CPU, NCCL those of GPUs. Neither mode has limits on top_k or experts, nor a workspace. How
many rows come from where is settled once for a batch, on the host, as an engine that schedules does ahead of the layer;
dispatching the same batch again only moves rows, and so can be timed and captured in a CUDA graph.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from contextlib import nullcontext

import numpy as np
import torch
import torch.distributed as dist

from mnnvl_lab.exchange import Batch, Exchange, Received
from mnnvl_lab.ranks.rank import Rank
from mnnvl_lab.transport.base import Transport, as_bytes
from mnnvl_lab.transport.host.send_plan import Routes


class Collective(Transport):
    """A mode over the EP group's torch.distributed group. There is nothing to open or to close."""

    def __init__(self, rank: Rank, exchange: Exchange):
        super().__init__(rank, exchange)
        self.fabric = rank.fabric
        alone = self.group.size == 1
        self._processes = None if alone else self.group.device_group
        self._batch = None

    def _dispatch(self, batch: Batch) -> Received:
        if batch is not self._batch:
            self._batch = batch
            self._settle(batch)
        return self._move(batch)

    @abstractmethod
    def _settle(self, batch: Batch) -> None:
        """Exchange counts and find rows, on the host."""

    @abstractmethod
    def _move(self, batch: Batch) -> Received:
        """Move the rows of the batch that was settled."""

    def _as_one(self):
        """NCCL launches the gathers inside as one kernel, as vLLM's grouped `all_gatherv` has it."""
        if self._processes is None or self.rank.device.type != "cuda":
            return nullcontext()
        return dist._coalescing_manager(group=self._processes, device=self.rank.device)

    def close(self) -> None:
        """Nothing was taken: the groups belong to the rank."""

    def _gather_counts(self, counts: Sequence[int]) -> np.ndarray:
        """int64 `[R, len(counts)]`: every rank's."""
        mine = torch.tensor(counts, dtype=torch.int64, device=self.rank.device)
        every = torch.empty(self.ep_size * len(mine), dtype=torch.int64, device=self.rank.device)
        if self._processes is None:
            every.copy_(mine)
        else:
            dist.all_gather_into_tensor(every, mine, group=self._processes)
        return every.view(self.ep_size, -1).cpu().numpy()


class AllgatherReducescatter(Collective):
    """Every rank gets every token; partial sums of all of them are added up on the way back.

    vLLM's default: `all_gatherv` in dispatch, `reduce_scatterv` in combine, which adds up in the rows' own dtype (NCCL
    and Gloo alike: a sum is rounded at every step). Ranks with fewer than M tokens pad to M. A rank's partial must be
    zero for a token of which it owns no expert.
    """

    mode = "allgather_reducescatter"

    def _settle(self, batch: Batch) -> None:
        self._counts_R = tuple(self._gather_counts([batch.tokens])[:, 0].tolist())

    def _move(self, batch: Batch) -> Received:
        M = batch.runtime_max_tokens
        padded = [_padded(tensor, M) for tensor in (*batch.payloads, batch.experts_TK, batch.weights_TK)]
        with self._as_one():
            *payloads, experts, weights = map(self._gather, padded)
        return Received(
            payloads=tuple(payloads),
            experts=experts,
            weights=weights,
            counts_R=self._counts_R,
            starts_R=tuple(range(0, self.ep_size * M, M)),
        )

    def _gather(self, rows: torch.Tensor) -> torch.Tensor:
        """`[R * M, width]` from `[M, width]`."""
        if self._processes is None:
            return rows
        every = rows.new_empty(self.ep_size * len(rows), rows.shape[1])
        dist.all_gather_into_tensor(as_bytes(every), as_bytes(rows), group=self._processes)
        return every

    def _combine(self, partials: torch.Tensor) -> torch.Tensor:
        if self._processes is None:
            return partials[: self._batch.tokens].clone()
        own = partials.new_empty(self._batch.runtime_max_tokens, self.exchange.hidden)
        dist.reduce_scatter_tensor(own, partials, group=self._processes)
        return own[: self._batch.tokens]


class AllToAll(Collective):
    """Each row goes once to every rank that owns one of its token's experts, and a partial sum comes back.

    `all_to_all_single` with splits, after the counts. A token's rows are added up in float32, by ascending rank,
    and rounded once.
    """

    mode = "all_to_all"

    def _settle(self, batch: Batch) -> None:
        x = self.exchange
        self._routes = Routes.of(batch.experts_TK.cpu().numpy(), experts=x.experts, ep_size=self.ep_size)
        self._sent_R = self._routes.counts_R.tolist()
        self._counts_R = self._gather_counts(self._sent_R)[:, self.ep_rank].tolist()
        self._tokens_R = [torch.from_numpy(tokens).to(self.rank.device) for tokens in self._routes.tokens_R]
        self._outgoing = torch.cat(self._tokens_R)

    def _move(self, batch: Batch) -> Received:
        *payloads, experts, weights = map(self._send, (*batch.payloads, batch.experts_TK, batch.weights_TK))
        return Received(
            payloads=tuple(payloads),
            experts=experts,
            weights=weights,
            counts_R=tuple(self._counts_R),
            starts_R=tuple(np.cumsum((0, *self._counts_R[:-1])).tolist()),
        )

    def _send(self, rows: torch.Tensor) -> torch.Tensor:
        """Rows `[sum of counts_R, width]` from all sources."""
        arrived = rows.new_empty(sum(self._counts_R), rows.shape[1])
        self._swap(as_bytes(arrived), as_bytes(rows)[self._outgoing], self._counts_R, self._sent_R)
        return arrived

    def _combine(self, partials: torch.Tensor) -> torch.Tensor:
        home = partials.new_empty(sum(self._sent_R), self.exchange.hidden)
        self._swap(as_bytes(home), as_bytes(partials), self._sent_R, self._counts_R)
        total = torch.zeros(self._batch.tokens, self.exchange.hidden, device=home.device)
        for tokens, rows in zip(self._tokens_R, home.split(self._sent_R), strict=True):
            total.index_add_(0, tokens, rows.float())
        return total.to(home.dtype)

    def _swap(self, into: torch.Tensor, rows: torch.Tensor, into_R: list[int], rows_R: list[int]) -> None:
        if self._processes is None:
            into.copy_(rows)
        else:
            dist.all_to_all_single(into, rows, into_R, rows_R, group=self._processes)


def _padded(rows: torch.Tensor, count: int) -> torch.Tensor:
    """`[count, width]`, zeros behind; the rows themselves if there are as many."""
    if len(rows) == count:
        return rows
    padded = rows.new_zeros(count, rows.shape[1])
    padded[: len(rows)] = rows
    return padded

"""Baselines without a workspace: all-gather with reduce-scatter, and all-to-all, by torch.distributed on any fabric.

Gloo carries tensors of the CPU, NCCL those of GPUs. Neither mode has limits on top_k or experts, nor a workspace. How
many rows come from where is settled once for a batch, on the host, as an engine that schedules does ahead of the layer;
dispatching the same batch again only moves rows, and so can be timed and captured in a CUDA graph.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass

import numpy as np
import torch
import torch.distributed as dist

from mnnvl_lab.exchange import Batch, Exchange, Handle, Received
from mnnvl_lab.ranks.rank import Rank
from mnnvl_lab.transport.base import Transport, as_bytes
from mnnvl_lab.transport.host.send_plan import SendPlan


@dataclass(frozen=True, kw_only=True)
class CollectiveHandle(Handle):
    """A batch whose counts the ranks have exchanged.

    Attributes:
        counts_R: rows that come from each source.
    """

    counts_R: tuple[int, ...]


@dataclass(frozen=True, kw_only=True)
class AllToAllHandle(CollectiveHandle):
    """Also which of the batch's rows go where.

    Attributes:
        sent_R: rows that go to each target.
        sent: int64 `[sum of sent_R]`, their tokens, by target, ascending.
    """

    sent_R: tuple[int, ...]
    sent: torch.Tensor


class Collective(Transport):
    """A mode over the EP group's torch.distributed group. There is nothing to open or to close."""

    def __init__(self, rank: Rank, exchange: Exchange):
        super().__init__(rank, exchange)
        self.fabric = rank.fabric
        alone = self.group.size == 1
        self._processes = None if alone else self.group.device_group
        self._settled: CollectiveHandle | None = None  # a batch that comes again is not settled again

    def _dispatch(self, batch: Batch, prepared: None) -> Received:
        if self._settled is None or self._settled.batch is not batch:
            self._settled = self._settle(batch)
        return self._move(self._settled)

    @abstractmethod
    def _settle(self, batch: Batch) -> CollectiveHandle:
        """Exchange counts and find rows, on the host."""

    @abstractmethod
    def _move(self, handle: CollectiveHandle) -> Received:
        """Move the rows of a settled batch."""

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

    def _settle(self, batch: Batch) -> CollectiveHandle:
        counts_R = tuple(self._gather_counts([batch.tokens])[:, 0].tolist())
        return CollectiveHandle(batch=batch, rows=self.ep_size * batch.runtime_max_tokens, counts_R=counts_R)

    def _move(self, handle: CollectiveHandle) -> Received:
        batch, M = handle.batch, handle.batch.runtime_max_tokens
        padded = [_padded(tensor, M) for tensor in (*batch.payloads, batch.experts_TK, batch.weights_TK)]
        with self._as_one():
            *payloads, experts, weights = map(self._gather, padded)
        return Received(
            payloads=tuple(payloads),
            experts=experts,
            weights=weights,
            counts_R=handle.counts_R,
            starts_R=tuple(range(0, self.ep_size * M, M)),
            handle=handle,
        )

    def _gather(self, rows: torch.Tensor) -> torch.Tensor:
        """`[R * M, width]` from `[M, width]`."""
        if self._processes is None:
            return rows
        every = rows.new_empty(self.ep_size * len(rows), rows.shape[1])
        dist.all_gather_into_tensor(as_bytes(every), as_bytes(rows), group=self._processes)
        return every

    def _combine(self, partials: torch.Tensor, handle: CollectiveHandle) -> torch.Tensor:
        if self._processes is None:
            return partials[: handle.batch.tokens].clone()
        own = partials.new_empty(handle.batch.runtime_max_tokens, self.exchange.hidden)
        dist.reduce_scatter_tensor(own, partials, group=self._processes)
        return own[: handle.batch.tokens]


class AllToAll(Collective):
    """Each row goes once to every rank that owns one of its token's experts, and a partial sum comes back.

    `all_to_all_single` with splits, after the counts. A token's rows are added up in float32, by ascending rank,
    and rounded once.
    """

    mode = "all_to_all"

    def _settle(self, batch: Batch) -> AllToAllHandle:
        x = self.exchange
        plan = SendPlan.of(batch.experts_TK.cpu().numpy(), experts=x.experts, ep_size=self.ep_size)
        counts_R = tuple(self._gather_counts(plan.counts_R.tolist())[:, self.ep_rank].tolist())
        return AllToAllHandle(
            batch=batch,
            rows=sum(counts_R),
            counts_R=counts_R,
            sent_R=tuple(plan.counts_R.tolist()),
            sent=torch.from_numpy(np.concatenate(plan.tokens_R)).to(self.rank.device),
        )

    def _move(self, handle: AllToAllHandle) -> Received:
        batch = handle.batch
        tensors = (*batch.payloads, batch.experts_TK, batch.weights_TK)
        *payloads, experts, weights = (self._send(rows, handle) for rows in tensors)
        return Received(
            payloads=tuple(payloads),
            experts=experts,
            weights=weights,
            counts_R=handle.counts_R,
            starts_R=tuple(np.cumsum((0, *handle.counts_R[:-1])).tolist()),
            handle=handle,
        )

    def _send(self, rows: torch.Tensor, handle: AllToAllHandle) -> torch.Tensor:
        """Rows `[handle.rows, width]` from all sources."""
        arrived = rows.new_empty(handle.rows, rows.shape[1])
        self._swap(as_bytes(arrived), as_bytes(rows)[handle.sent], handle.counts_R, handle.sent_R)
        return arrived

    def _combine(self, partials: torch.Tensor, handle: AllToAllHandle) -> torch.Tensor:
        returned = partials.new_empty(sum(handle.sent_R), self.exchange.hidden)
        self._swap(as_bytes(returned), as_bytes(partials), handle.sent_R, handle.counts_R)
        total = torch.zeros(handle.batch.tokens, self.exchange.hidden, device=returned.device)
        pairs = (tensor.split(handle.sent_R) for tensor in (handle.sent, returned))
        for tokens, rows in zip(*pairs, strict=True):
            total.index_add_(0, tokens, rows.float())
        return total.to(returned.dtype)

    def _swap(self, into: torch.Tensor, rows: torch.Tensor, into_R: Sequence[int], rows_R: Sequence[int]) -> None:
        if self._processes is None:
            into.copy_(rows)
        else:
            dist.all_to_all_single(into, rows, list(into_R), list(rows_R), group=self._processes)


def _padded(rows: torch.Tensor, count: int) -> torch.Tensor:
    """`[count, width]`, zeros behind; the rows themselves if there are as many."""
    if len(rows) == count:
        return rows
    padded = rows.new_zeros(count, rows.shape[1])
    padded[: len(rows)] = rows
    return padded

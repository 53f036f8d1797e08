"""Endurance on one rank: blocks of rounds, captured in CUDA graphs on GPUs, called one by one on `host`."""

from __future__ import annotations

import time

import torch

from mnnvl_lab.exchange import Batch
from mnnvl_lab.faults.endurance import CYCLES_PER_US, Block, Endurance, Endured
from mnnvl_lab.faults.endurance_check import wrong_rounds
from mnnvl_lab.faults.endurance_load import KINDS, BlockTensors, Routing, Staged, Tables, routing
from mnnvl_lab.transport import open_transport


class Runner:
    """Runs blocks and keeps the tally on the device.

    Attributes:
        block: number of the next block.
    """

    def __init__(self, rank, plan: Endurance):
        self.rank, self.plan, self.block = rank, plan, 0
        self._transport = open_transport(rank, plan.exchange)
        self._ep_rank, self._on_gpu = rank.group("ep").rank, rank.device.type == "cuda"
        self._tables = Tables.of(plan.exchange, rank.device)
        self._counter = torch.zeros(1, dtype=torch.int64, device=rank.device)
        self._wrong = torch.zeros(len(KINDS), dtype=torch.int64, device=rank.device)
        self._rounds = self._tokens = self._largest = 0
        self._first_wrong_block = -1

    def run(self, block: Block) -> None:
        """All replays of one block."""
        plan, size = self.plan, self.plan.exchange.ep_size
        if self._ep_rank in block.active:
            self._run(block)
            self._rounds += plan.graph_rounds * plan.replays
            self._tokens += plan.replays * sum(tokens[self._ep_rank] for tokens in block.tokens_GR)
            self._largest = max(self._largest, block.limit)
        else:
            self._counter += plan.replays
        if len(block.active) < size:  # epochs of those left out stand still: only a new workspace takes them in again
            self._transport.close()
            self._transport = open_transport(self.rank, plan.exchange)
        self.block += 1

    def result(self, seconds: float) -> Endured:
        return Endured(
            rounds=self._rounds,
            tokens=self._tokens,
            wrong=dict(zip(KINDS, self._wrong.tolist(), strict=True)),
            first_wrong_block=self._first_wrong_block,
            blocks=self.block,
            largest=self._largest,
            seconds=seconds,
            note=self._transport.note(),
        )

    def __enter__(self):
        return self

    def __exit__(self, *error):
        self._transport.__exit__(*error)

    def _run(self, block: Block) -> None:
        x, device = self.plan.exchange, self.rank.device
        shape = {"tokens_GR": block.tokens_GR, "hot_G": block.hot_G, "active": block.active, "limit": block.limit}
        tensors = BlockTensors.of(**shape, ep_size=x.ep_size, device=device)
        staged = Staged.empty(x, len(block.tokens_GR), block.limit, device)
        before = self._wrong.clone()

        def once() -> None:
            self._counter += 1
            routed = routing(x, self._counter, tensors)
            for index in range(len(block.tokens_GR)):
                self._round(block, index, routed, staged)
            self._wrong += wrong_rounds(x, self._ep_rank, self._tables, tensors, routed, staged).sum(0)

        self._replay(block, once) if self._on_gpu else [once() for _ in range(self.plan.replays)]
        if self._first_wrong_block < 0 and bool((self._wrong != before).any()):  # also waits for the device
            self._first_wrong_block = self.block

    def _replay(self, block: Block, once) -> None:
        """Capture the block and replay it; ranks meet before, since regions move with its size."""
        stream, graph = torch.cuda.Stream(), torch.cuda.CUDAGraph()
        self._transport.meet(self._first_batch(block))
        if self.block == 0:
            once()  # kernels must be loaded before they are captured
        torch.cuda.synchronize()
        with torch.cuda.graph(graph, stream=stream, capture_error_mode="thread_local"):
            once()
        for _ in range(self.plan.replays):
            graph.replay()

    def _first_batch(self, block: Block) -> Batch:
        """A batch of the block's form, for the ranks to agree on."""
        x, device = self.plan.exchange, self.rank.device
        ids = torch.zeros(1, x.top_k, dtype=torch.int32, device=device)
        payloads = tuple(part[self._ep_rank, :1] for part in self._tables.parts)
        return Batch(
            payloads=payloads,
            experts_TK=ids,
            weights_TK=ids.float(),
            runtime_max_tokens=block.limit,
            active_ranks=self._active(block),
        )

    def _active(self, block: Block) -> tuple[int, ...] | None:
        return block.active if self.plan.masked else None

    def _round(self, block: Block, index: int, routed: Routing, staged: Staged) -> None:
        tokens, me = block.tokens_GR[index][self._ep_rank], self._ep_rank
        batch = Batch(
            payloads=tuple(part[me, :tokens] for part in self._tables.parts),
            experts_TK=routed.ids[index, me, :tokens],
            weights_TK=routed.weights[index, me, :tokens],
            runtime_max_tokens=block.limit,
            active_ranks=self._active(block),
        )
        self._pause(block, index, 0)
        enqueue = self._enqueued if self._on_gpu else self._called
        enqueue(block, index, batch, staged)

    def _enqueued(self, block: Block, index: int, batch: Batch, staged: Staged) -> None:
        transport, x = self._transport, self.plan.exchange
        handle = transport.enqueue_dispatch(batch, transport.enqueue_prepare(batch))
        payloads, ids, weights = transport.received_views(handle)
        starts_R, counts_R = transport.received_counts(handle)
        self._keep(staged, index, payloads, ids, weights, starts_R, counts_R)
        rows = payloads[0].to(torch.bfloat16)
        self._pause(block, index, 1)
        partials = transport.partials_buffer(handle) if x.payload_in_workspace else torch.empty_like(rows)
        torch.add(rows, self._ep_rank + 1, out=partials)
        transport.enqueue_combine(partials, handle, output=staged.combined[index, : batch.tokens])

    def _called(self, block: Block, index: int, batch: Batch, staged: Staged) -> None:
        received = self._transport.dispatch(batch)
        places = (torch.tensor(values) for values in (received.starts_R, received.counts_R))
        self._keep(staged, index, received.payloads, received.experts, received.weights, *places)
        self._pause(block, index, 1)
        partials = self._transport.partials_buffer(received.handle)
        torch.add(received.payloads[0].to(torch.bfloat16), self._ep_rank + 1, out=partials)
        staged.combined[index, : batch.tokens] = self._transport.combine(partials, received.handle)

    def _keep(self, staged: Staged, index: int, payloads, ids, weights, starts_R, counts_R) -> None:
        rows = len(ids)
        for room, payload in zip(staged.parts, payloads, strict=True):
            room[index, :rows].copy_(payload)
        staged.ids[index, :rows].copy_(ids)
        staged.weights[index, :rows].copy_(weights)
        staged.starts_GR[index].copy_(starts_R)
        staged.counts_GR[index].copy_(counts_R)

    def _pause(self, block: Block, index: int, place: int) -> None:
        duration_us = block.delays.get((index, place, self._ep_rank), 0.0)
        if duration_us and self._on_gpu:
            torch.cuda._sleep(int(duration_us * CYCLES_PER_US))
        elif duration_us:
            time.sleep(duration_us / 1e6)

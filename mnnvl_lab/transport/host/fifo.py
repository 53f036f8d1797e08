"""FIFOs in shared memory with flow control: a sender is never more than the depth ahead of its receiver.

As in `trtllm_alltoall.cuh`: entries lie at the receiver, `head` and `tail` at the sender; the sender waits until
`tail + depth > head`, fills entry `head % depth` and moves the head on, the receiver empties entry `tail % depth` and
moves the tail on. Both counters go on over all rounds. Where the kernels mark every packet inside an entry with a flag,
so that a receiver may begin before the entry is full, processes look at the head alone.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import chain

import numpy as np
import torch

from mnnvl_lab.errors import RankTimeout
from mnnvl_lab.ranks.sync import Backoff, Fence
from mnnvl_lab.workspace import Region
from mnnvl_lab.workspace.two_sided import FIFO_DEPTH, PACKET_BYTES, packets_per_row

HEAD, TAIL, COUNT = range(3)  # words of a connection (MoeCommFifoConnInfo)


@dataclass(frozen=True, kw_only=True)
class Fifo:
    """One direction between two ranks.

    Attributes:
        entries: uint8 `[depth, entry_bytes]`, at the receiver.
        connection: uint64 `[32]`, at the sender.
        fence: orders rows and counters.
    """

    entries: torch.Tensor
    connection: np.ndarray
    fence: Fence

    @property
    def space(self) -> int:
        return len(self.entries) - self.waiting

    @property
    def waiting(self) -> int:
        """Entries that are filled and not yet emptied."""
        return int(self.connection[HEAD]) - int(self.connection[TAIL])

    def entry(self, counter: int, rows: int, row_bytes: int) -> torch.Tensor:
        """uint8 `[rows, row_bytes]` at the entry that a counter stands at."""
        place = int(self.connection[counter]) % len(self.entries)
        return self.entries[place, : rows * row_bytes].view(rows, row_bytes)

    def advance(self, counter: int) -> None:
        self.fence()
        self.connection[counter] += 1


def sending(fifo: Fifo, rows: torch.Tensor, index: torch.Tensor, rows_per_entry: int) -> Iterator[bool]:
    """Send `rows[index]`, uint8 `[n, row_bytes]`, one entry per step; yields whether it made progress."""
    for part in index.split(rows_per_entry) if len(index) else ():
        while not fifo.space:
            yield False
        fifo.fence()
        torch.index_select(rows, 0, part, out=fifo.entry(HEAD, len(part), rows.shape[1]))
        fifo.advance(HEAD)
        yield True


def receiving(fifo: Fifo, out: torch.Tensor, rows_per_entry: int) -> Iterator[bool]:
    """Fill `out`, uint8 `[n, row_bytes]`, likewise."""
    for part in out.split(rows_per_entry) if len(out) else ():
        while not fifo.waiting:
            yield False
        fifo.fence()
        part.copy_(fifo.entry(TAIL, len(part), out.shape[1]))
        fifo.advance(TAIL)
        yield True


def publishing(connection: np.ndarray, count: int, fence: Fence) -> Iterator[bool]:
    """Publish `count + 1` in the connection's word (0 means empty), once the peer has read the value before.

    The kernels do not wait for that.
    """
    while connection[COUNT]:
        yield False
    fence()
    connection[COUNT] = count + 1
    yield True


def reading(connection: np.ndarray, into: np.ndarray, place: int, fence: Fence) -> Iterator[bool]:
    """Read the count that the peer published into `into[place]`, and empty the word."""
    while not connection[COUNT]:
        yield False
    into[place] = int(connection[COUNT]) - 1
    fence()
    connection[COUNT] = 0
    yield True


def interleave(
    transfers: Iterable[tuple[int, Iterator[bool]]],
    *,
    limit_s: float,
    on_timeout: Callable[[list[int]], RankTimeout],
    check: Callable[[], None],
) -> None:
    """Run all transfers to their end in one thread: a full FIFO does not keep another from being emptied.

    Args:
        transfers: each with the peer at its other end.
        limit_s: seconds without progress after which it gives up.
        on_timeout: makes the error out of the peers that are waited for.
        check: called now and then in a long wait; raises if waiting is in vain.

    Raises:
        RankTimeout: what `on_timeout` returns.
    """
    backoff, running = Backoff(limit_s, check), list(transfers)
    while running:
        steps = [next(transfer, None) for _, transfer in running]
        moved = any(steps) or None in steps
        running = [transfer for transfer, step in zip(running, steps, strict=True) if step is not None]
        if moved:
            backoff.progressed()
        else:
            backoff.pause(lambda: on_timeout(sorted({peer for peer, _ in running})))  # noqa: B023 called at once


OnTimeout = Callable[[list[int]], RankTimeout]


@dataclass(frozen=True, kw_only=True)
class SendBatch:
    """One tensor's rows on their way to all peers.

    Attributes:
        rows: uint8 `[N, row_bytes]`, what is sent.
        index_R: for each target, int64, which of the rows go there.
        out_R: for each source, uint8 `[n, row_bytes]`, where its rows arrive.
    """

    rows: torch.Tensor
    index_R: Sequence[torch.Tensor]
    out_R: Sequence[torch.Tensor]

    @property
    def row_bytes(self) -> int:
        return self.rows.shape[1]


@dataclass(frozen=True, kw_only=True)
class FifoChannels:
    """FIFOs `[receiver, sender, channel]` and their connections `[sender, receiver, channel]`.

    Attributes:
        ep_rank: this rank.
        fifos_R: for each rank, uint8 `[R, channels, depth, entry_bytes]` in its row.
        connections_R: for each rank, uint64 `[R, channels, 32]` in its row.
        dense: rows fill an entry; else it takes as many as the kernels put there, whose packets also carry flags.
        on_timeout, check: as in `interleave`.
    """

    ep_rank: int
    fifos_R: Sequence[torch.Tensor]
    connections_R: Sequence[np.ndarray]
    dense: bool
    fence: Fence
    on_timeout: OnTimeout
    check: Callable[[], None]

    @classmethod
    def over(cls, rows: Sequence[torch.Tensor], regions: tuple[Region, Region], **rest) -> FifoChannels:
        """The channels in these regions of all ranks' rows; prepare's have one channel and lack that axis."""
        fifos, connections = regions
        shape = (len(rows), connections.shape[1] if len(connections.shape) == 3 else 1)
        return cls(
            fifos_R=[_slice(row, fifos).view(*shape, FIFO_DEPTH, -1) for row in rows],
            connections_R=[_words(row, connections).reshape(*shape, -1) for row in rows],
            **rest,
        )

    @property
    def channels(self) -> int:
        return self.connections_R[0].shape[1]

    @property
    def peers(self) -> list[int]:
        """All ranks, beginning behind this one, so that not all send to the same one at a time."""
        size = len(self.fifos_R)
        return [(self.ep_rank + 1 + step) % size for step in range(size)]

    def clear(self) -> None:
        """This rank's heads, tails and counts to zero, as fresh memory has them."""
        self.connections_R[self.ep_rank][:] = 0

    def fifo(self, sender: int, receiver: int, channel: int) -> Fifo:
        return Fifo(
            entries=self.fifos_R[receiver][sender, channel],
            connection=self.connections_R[sender][receiver, channel],
            fence=self.fence,
        )

    def swap_counts(self, counts_R: np.ndarray, limit_s: float) -> tuple[int, ...]:
        """Tell every rank one number, and return the numbers of all."""
        counts_of_R = np.zeros(len(counts_R), dtype=np.int64)
        own = self.connections_R[self.ep_rank]
        published = [(peer, publishing(own[peer, 0], int(counts_R[peer]), self.fence)) for peer in self.peers]
        read = [
            (peer, reading(self.connections_R[peer][self.ep_rank, 0], counts_of_R, peer, self.fence))
            for peer in self.peers
        ]
        interleave([*published, *read], limit_s=limit_s, on_timeout=self.on_timeout, check=self.check)
        return tuple(counts_of_R.tolist())

    def move(self, send_batches: Sequence[SendBatch], limit_s: float) -> None:
        """Send and receive all batches of rows, one after the other in each FIFO, all FIFOs at a time."""
        ways = [(peer, channel) for peer in self.peers for channel in range(self.channels)]
        sends = [(peer, self._sending(send_batches, peer, channel)) for peer, channel in ways]
        receives = [(peer, self._receiving(send_batches, peer, channel)) for peer, channel in ways]
        interleave([*sends, *receives], limit_s=limit_s, on_timeout=self.on_timeout, check=self.check)

    def _sending(self, send_batches: Sequence[SendBatch], peer: int, channel: int) -> Iterator[bool]:
        fifo = self.fifo(self.ep_rank, peer, channel)
        return chain.from_iterable(
            sending(
                fifo, send_batch.rows, self._share(send_batch.index_R[peer], channel), self._rows_per_entry(send_batch)
            )
            for send_batch in send_batches
        )

    def _receiving(self, send_batches: Sequence[SendBatch], peer: int, channel: int) -> Iterator[bool]:
        fifo = self.fifo(peer, self.ep_rank, channel)
        return chain.from_iterable(
            receiving(fifo, self._share(send_batch.out_R[peer], channel), self._rows_per_entry(send_batch))
            for send_batch in send_batches
        )

    def _share(self, rows: torch.Tensor, channel: int) -> torch.Tensor:
        """A channel's part (computeGroupTransferRange)."""
        step = -(-len(rows) // self.channels)
        return rows[channel * step : (channel + 1) * step]

    def _rows_per_entry(self, send_batch: SendBatch) -> int:
        entry_bytes = self.fifos_R[0].shape[-1]
        if self.dense:
            return entry_bytes // send_batch.row_bytes
        return entry_bytes // PACKET_BYTES // packets_per_row(send_batch.row_bytes)


def starts(counts_R: Sequence[int]) -> np.ndarray:
    """int64 `[R]`: the first row of each source's block where blocks are packed."""
    return np.cumsum((0, *counts_R[:-1]), dtype=np.int64)


def blocks(rows: torch.Tensor, counts_R: Sequence[int]) -> tuple[torch.Tensor, ...]:
    """Rows packed by source, split into the sources' blocks."""
    return rows.split([int(count) for count in counts_R])


def _slice(row: torch.Tensor, region: Region) -> torch.Tensor:
    return row[region.offset_bytes : region.end_bytes]


def _words(row: torch.Tensor, region: Region) -> np.ndarray:
    return _slice(row, region).numpy().view(region.dtype)

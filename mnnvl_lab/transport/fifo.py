"""FIFOs in shared memory: a sender and a receiver meet entry by entry, and neither runs ahead by more than the depth.

As in `trtllm_alltoall.cuh`: entries lie at the receiver, `head` and `tail` at the sender; the sender waits until
`tail + depth > head`, fills entry `head % depth` and moves the head on, the receiver empties entry `tail % depth` and
moves the tail on. Both counters go on over all rounds. Where the kernels mark every packet inside an entry with a flag,
so that a receiver may begin before the entry is full, processes look at the head alone.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

import numpy as np
import torch

from mnnvl_lab.errors import RankTimeout
from mnnvl_lab.transport.waiting import Fence, Patience

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
    """Send `rows[index]`, uint8 `[n, row_bytes]`, an entry a step; yields whether it got on."""
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


def telling(connection: np.ndarray, count: int, fence: Fence) -> Iterator[bool]:
    """Leave a number in a connection, plus one, once its last one was taken (the kernels do not look for that)."""
    while connection[COUNT]:
        yield False
    fence()
    connection[COUNT] = count + 1
    yield True


def hearing(connection: np.ndarray, into: np.ndarray, place: int, fence: Fence) -> Iterator[bool]:
    """Take the number that the peer left, into `into[place]`."""
    while not connection[COUNT]:
        yield False
    into[place] = int(connection[COUNT]) - 1
    fence()
    connection[COUNT] = 0
    yield True


def interleave(
    transfers: Iterable[tuple[int, Iterator[bool]]], *, limit_s: float, blame: Callable[[list[int]], RankTimeout]
) -> None:
    """Run all transfers to their end in one thread: a full FIFO does not keep another from being emptied.

    Args:
        transfers: each with the peer at its other end.
        limit_s: seconds without progress after which it gives up.
        blame: makes the error out of the peers that are waited for.

    Raises:
        RankTimeout: what `blame` returns.
    """
    patience, running = Patience(limit_s), list(transfers)
    while running:
        steps = [next(transfer, None) for _, transfer in running]
        moved = any(steps) or None in steps
        running = [transfer for transfer, step in zip(running, steps, strict=True) if step is not None]
        if moved:
            patience.progressed()
        else:
            patience.pause(lambda: blame(sorted({peer for peer, _ in running})))  # noqa: B023 called at once

"""All FIFOs between a rank and its peers, and moving rows through them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import chain

import numpy as np
import torch

from mnnvl_lab.errors import RankTimeout
from mnnvl_lab.transport.fifo import Fifo, hearing, interleave, receiving, sending, telling
from mnnvl_lab.transport.waiting import Fence
from mnnvl_lab.workspace import Region
from mnnvl_lab.workspace.two_sided import FIFO_DEPTH, PACKET_BYTES, packets_per_row

Blame = Callable[[list[int]], RankTimeout]


@dataclass(frozen=True, kw_only=True)
class Parcel:
    """One tensor's rows on their way to all peers.

    Attributes:
        rows: uint8 `[N, row_bytes]`, what is sent.
        index_R: for each target, int64, which of the rows go there.
        out_R: for each source, uint8 `[n, row_bytes]`, where its rows come to lie.
    """

    rows: torch.Tensor
    index_R: Sequence[torch.Tensor]
    out_R: Sequence[torch.Tensor]

    @property
    def row_bytes(self) -> int:
        return self.rows.shape[1]


@dataclass(frozen=True, kw_only=True)
class Lanes:
    """FIFOs `[receiver, sender, channel]` and their connections `[sender, receiver, channel]`.

    Attributes:
        ep_rank: this rank.
        fifos_R: for each rank, uint8 `[R, channels, depth, entry_bytes]` in its row.
        connections_R: for each rank, uint64 `[R, channels, 32]` in its row.
        dense: rows fill an entry; else it takes as many as the kernels put there, whose packets also carry flags.
        blame: makes the error out of the peers that are waited for.
    """

    ep_rank: int
    fifos_R: Sequence[torch.Tensor]
    connections_R: Sequence[np.ndarray]
    dense: bool
    fence: Fence
    blame: Blame

    @classmethod
    def over(cls, rows: Sequence[torch.Tensor], regions: tuple[Region, Region], **rest) -> Lanes:
        """The lanes in these regions of all ranks' rows; prepare's have one channel and lack that axis."""
        fifos, connections = regions
        lanes = (len(rows), connections.shape[1] if len(connections.shape) == 3 else 1)
        return cls(
            fifos_R=[_slice(row, fifos).view(*lanes, FIFO_DEPTH, -1) for row in rows],
            connections_R=[_words(row, connections).reshape(*lanes, -1) for row in rows],
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
        heard_R = np.zeros(len(counts_R), dtype=np.int64)
        own = self.connections_R[self.ep_rank]
        tells = [(peer, telling(own[peer, 0], int(counts_R[peer]), self.fence)) for peer in self.peers]
        hears = [
            (peer, hearing(self.connections_R[peer][self.ep_rank, 0], heard_R, peer, self.fence)) for peer in self.peers
        ]
        interleave([*tells, *hears], limit_s=limit_s, blame=self.blame)
        return tuple(heard_R.tolist())

    def move(self, parcels: Sequence[Parcel], limit_s: float) -> None:
        """Send and receive all parcels, one after the other in each FIFO, all FIFOs at a time."""
        ways = [(peer, channel) for peer in self.peers for channel in range(self.channels)]
        sends = [(peer, self._sending(parcels, peer, channel)) for peer, channel in ways]
        receives = [(peer, self._receiving(parcels, peer, channel)) for peer, channel in ways]
        interleave([*sends, *receives], limit_s=limit_s, blame=self.blame)

    def _sending(self, parcels: Sequence[Parcel], peer: int, channel: int) -> Iterator[bool]:
        fifo = self.fifo(self.ep_rank, peer, channel)
        return chain.from_iterable(
            sending(fifo, parcel.rows, self._share(parcel.index_R[peer], channel), self._rows_per_entry(parcel))
            for parcel in parcels
        )

    def _receiving(self, parcels: Sequence[Parcel], peer: int, channel: int) -> Iterator[bool]:
        fifo = self.fifo(peer, self.ep_rank, channel)
        return chain.from_iterable(
            receiving(fifo, self._share(parcel.out_R[peer], channel), self._rows_per_entry(parcel))
            for parcel in parcels
        )

    def _share(self, rows: torch.Tensor, channel: int) -> torch.Tensor:
        """A channel's part (computeGroupTransferRange)."""
        step = -(-len(rows) // self.channels)
        return rows[channel * step : (channel + 1) * step]

    def _rows_per_entry(self, parcel: Parcel) -> int:
        entry_bytes = self.fifos_R[0].shape[-1]
        if self.dense:
            return entry_bytes // parcel.row_bytes
        return entry_bytes // PACKET_BYTES // packets_per_row(parcel.row_bytes)


def starts(counts_R: Sequence[int]) -> np.ndarray:
    """int64 `[R]`: the first row of each source's block where blocks lie close."""
    return np.cumsum((0, *counts_R[:-1]), dtype=np.int64)


def blocks(rows: torch.Tensor, counts_R: Sequence[int]) -> tuple[torch.Tensor, ...]:
    """Rows that lie close by source, cut into the sources' blocks."""
    return rows.split([int(count) for count in counts_R])


def _slice(row: torch.Tensor, region: Region) -> torch.Tensor:
    return row[region.offset_bytes : region.end_bytes]


def _words(row: torch.Tensor, region: Region) -> np.ndarray:
    return _slice(row, region).numpy().view(region.dtype)

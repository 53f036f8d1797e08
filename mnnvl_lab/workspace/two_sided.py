"""The two-sided workspace: FIFOs at the receiver, heads and tails at the sender, and the small one of `prepare`.

Equal to FlashInfer 0.7.2 to the byte: `getMoeCommWorkspaceSize`, `computeMoeCommChannelCount` and `MoeCommWorkspace` of
`trtllm_alltoall.cuh`; `getMoePrepareWorkspaceSize` of `trtllm_alltoall_prepare.cu`, whose FIFO has 1 MiB per peer: the
constant there counts 8-byte words. Neither size depends on tokens or hidden size.
"""

from __future__ import annotations

from dataclasses import dataclass

from mnnvl_lab.errors import Refused
from mnnvl_lab.workspace.mnnvl import Region, require_at_least

FIFO_DEPTH = 8  # RECV_FIFO_DEPTH
FIFO_ENTRY_BYTES = 256 * 1024  # RECV_FIFO_ENTRY_BYTES
FIFO_BYTES = FIFO_DEPTH * FIFO_ENTRY_BYTES
PREPARE_FIFO_BYTES = 1024 * 1024  # FIFO_SIZE_IN_U64 * 8
CONNECTION_BYTES = 256  # sizeof(MoeCommFifoConnInfo): head and tail, aligned to 256
PACKET_BYTES = 2048  # 32 lanes of 64 bytes
PACKET_DATA_BYTES = 1920  # the rest of a packet is flags
PEERS_PER_BLOCK = 8  # GROUP_COUNT_PER_BLOCK


@dataclass(frozen=True, kw_only=True)
class TwoSidedWorkspace:
    """What one rank reserves so that R ranks may meet in FIFOs.

    Attributes:
        ep_size: R.
        multiprocessors: of the GPU; half of them communicate, which fixes the number of channels.
        sm_limit: `set_moe_max_usable_sm_count`; None for all multiprocessors. Equal on all ranks.

    Raises:
        Refused: a value below 1, or too few multiprocessors for one channel.
    """

    ep_size: int
    multiprocessors: int = 132
    sm_limit: int | None = None

    def __post_init__(self):
        require_at_least(1, ep_size=self.ep_size, multiprocessors=self.multiprocessors)
        require_at_least(1, sm_limit=self.usable_multiprocessors)
        if self.blocks_per_channel > self.usable_multiprocessors:
            raise Refused(
                f"{self.usable_multiprocessors} usable multiprocessors but ep_size {self.ep_size} takes "
                f"{self.blocks_per_channel} thread blocks a channel: one channel must fit; "
                "raise sm_limit or use fewer ranks"
            )

    @property
    def usable_multiprocessors(self) -> int:
        return self.multiprocessors if self.sm_limit is None else min(self.sm_limit, self.multiprocessors)

    @property
    def blocks_per_channel(self) -> int:
        """Thread blocks of one channel: one for each eight peers, to send and to receive."""
        return 2 * -(-self.ep_size // PEERS_PER_BLOCK)

    @property
    def channels(self) -> int:
        """FIFOs from each peer: as many as half the multiprocessors can serve at once."""
        return max(self.usable_multiprocessors // 2 // self.blocks_per_channel, 1)

    @property
    def workspace_bytes(self) -> int:
        """The FIFOs with their heads and tails; `prepare` is an allocation of its own."""
        return (FIFO_BYTES + CONNECTION_BYTES) * self.ep_size * self.channels

    @property
    def prepare_bytes(self) -> int:
        return (PREPARE_FIFO_BYTES + CONNECTION_BYTES) * self.ep_size

    @property
    def regions(self) -> tuple[Region, ...]:
        """`fifos` `[peer, channel, depth, entry bytes]`, then `connections` `[peer, channel, 32 words]`: head, tail.

        A FIFO lies with its receiver and `peer` is who sends; a connection lies with its sender and `peer` is who
        receives.
        """
        grid = (self.ep_size, self.channels)
        return _fifos_then_connections("", FIFO_BYTES, grid, (FIFO_DEPTH, FIFO_ENTRY_BYTES))

    @property
    def prepare_regions(self) -> tuple[Region, ...]:
        """The same of the allocation of `prepare`: one channel a peer, its third word counts."""
        return _fifos_then_connections("prepare_", PREPARE_FIFO_BYTES, (self.ep_size,), (PREPARE_FIFO_BYTES,))

    def fifo_offset(self, peer: int, channel: int) -> int:
        """First byte, at the receiver, of the FIFO that `peer` fills."""
        return (peer * self.channels + channel) * FIFO_BYTES

    def connection_offset(self, peer: int, channel: int) -> int:
        """First byte, at the sender, of the head and tail of its FIFO at `peer`."""
        return self.regions[1].offset_bytes + (peer * self.channels + channel) * CONNECTION_BYTES


def packets_per_row(row_bytes: int) -> int:
    """Packets that carry one row: each holds 1920 bytes of data and is 2048 bytes on the wire."""
    return -(-row_bytes // PACKET_DATA_BYTES)


def rows_per_entry(row_bytes: int) -> int:
    """Rows that one FIFO entry takes; 0 for a row that fits in none."""
    return FIFO_ENTRY_BYTES // PACKET_BYTES // packets_per_row(row_bytes)


def _fifos_then_connections(
    prefix: str, fifo_bytes: int, grid: tuple[int, ...], fifo_shape: tuple[int, ...]
) -> tuple[Region, Region]:
    count = grid[0] * (grid[1] if len(grid) > 1 else 1)
    fifos = Region(
        name=f"{prefix}fifos",
        offset_bytes=0,
        size_bytes=count * fifo_bytes,
        dtype="uint8",
        shape=(*grid, *fifo_shape),
    )
    connections = Region(
        name=f"{prefix}connections",
        offset_bytes=fifos.end_bytes,
        size_bytes=count * CONNECTION_BYTES,
        dtype="uint64",
        shape=(*grid, CONNECTION_BYTES // 8),
    )
    return fifos, connections


UNITS_PER_PACKET = 256  # UNIT_PER_ITER
STATISTICS_PER_PACKET = 512  # 4 * STATIC_COPY_PER_ITER: packets also count the experts, sent or not


def choices_per_unit(top_k: int) -> int:
    return 4 if top_k % 4 == 0 else 1


def packets_per_step(top_k: int) -> int:
    return 16 if top_k % 4 == 0 else 64


def prepare_packets(rows: int, *, top_k: int, experts: int) -> int:
    """Packets that carry the ids and weights of so many rows to one target; none without rows.

    Raises:
        Refused: negative rows, or top_k or experts below 1.
    """
    require_at_least(0, rows=rows)
    require_at_least(1, top_k=top_k, experts=experts)
    units = rows * top_k // choices_per_unit(top_k)
    return max(-(-units // UNITS_PER_PACKET), -(-experts // STATISTICS_PER_PACKET)) if units else 0


def fills_last_step(rows: int, *, top_k: int, experts: int) -> bool:
    """Whether the last step to a target that gets so many rows is full, so that it is published twice."""
    packets = prepare_packets(rows, top_k=top_k, experts=experts)
    return packets > 0 and packets % packets_per_step(top_k) == 0


def first_rows_that_fill(*, top_k: int, experts: int) -> int:
    """The fewest rows to a target that fill a step: below, no round needs a guard."""
    at_least, step = -(-experts // STATISTICS_PER_PACKET), packets_per_step(top_k)
    full = -(-at_least // step) * step
    if full == at_least:
        return 1  # so many experts that their packets alone fill a step
    return (full - 1) * UNITS_PER_PACKET * choices_per_unit(top_k) // top_k + 1

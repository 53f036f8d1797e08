"""What the transports over FlashInfer's kernels share: memory, waiting, and flags read while a kernel spins on them."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING

import numpy as np

from mnnvl_lab.errors import LabError, WorkspaceMismatch
from mnnvl_lab.exchange import Batch, Exchange, Handle, Received
from mnnvl_lab.transport.base import Transport
from mnnvl_lab.transport.flashinfer.memory import SymmetricMemory
from mnnvl_lab.workspace import Allocation, Region

if TYPE_CHECKING:
    import torch

    from mnnvl_lab.ranks.rank import Rank


class FlagReader:
    """Copies a stretch of device memory to the host on a stream of its own (0.48 ms on an H100).

    Everything is prepared here: allocating or loading a kernel later would wait for the spinning one. The copy is the
    copy engine's, so it needs no multiprocessor.

    Args:
        source: uint8 `[bytes]`, contiguous, on the device.
    """

    def __init__(self, source: torch.Tensor):
        import torch

        self._source = source
        self._stream = torch.cuda.Stream(source.device)
        self._host = torch.empty(source.numel(), dtype=torch.uint8, pin_memory=True)
        self.read()

    def read(self) -> np.ndarray:
        """A snapshot, uint8 `[bytes]`; waits for nothing but its own copy, from any thread."""
        import torch

        with torch.cuda.stream(self._stream):
            self._host.copy_(self._source, non_blocking=True)
        self._stream.synchronize()
        return self._host.numpy().copy()


ReceivedViews = tuple[tuple["torch.Tensor", ...], "torch.Tensor", "torch.Tensor"]


class FlashInferTransport(Transport):
    """A mode over FlashInfer's kernels, on the fabric of its rank (`nvlink` or `shared_gpu`)."""

    def __init__(self, rank: Rank, exchange: Exchange):
        super().__init__(rank, exchange)
        self.fabric = rank.fabric
        self._workspace_group = rank.group(exchange.workspace_group)
        self._memories: list[SymmetricMemory] = []
        try:
            self._open()
        except BaseException:
            self.abort()
            raise
        self.group.barrier()  # a late memset must not erase a peer's first epoch

    @abstractmethod
    def _open(self) -> None:
        """Allocate and initialise; what fails here gives its memory back."""

    @abstractmethod
    def enqueue_dispatch(self, batch: Batch, prepared: object | None = None) -> Handle:
        """Launch dispatch's kernels."""

    @abstractmethod
    def received_views(self, handle: Handle) -> ReceivedViews:
        """Payloads, ids and weights of a dispatch, on the device; no wait, so also inside a CUDA graph.

        How many rows are valid the host learns only from `Received`.
        """

    @abstractmethod
    def received_counts(self, handle: Handle) -> tuple[torch.Tensor, torch.Tensor]:
        """First row and number of rows of each source `[R]`, of a dispatch, on the device; no wait."""

    @abstractmethod
    def _received(self, handle: Handle) -> Received:
        """Read on the host how much came with a dispatch whose kernels are done."""

    def _dispatch(self, batch: Batch, prepared: object | None) -> Received:
        handle = self.enqueue_dispatch(batch, prepared)
        self._wait()
        return self._received(handle)

    def _wait(self) -> None:
        """Until the kernels are done, by waiting for the stream and not by a copy to the host behind them.

        A copy to pageable memory keeps the whole CUDA context busy until it is done: nobody could read the flags beside
        a kernel that spins for an absent rank.
        """
        import torch

        torch.cuda.current_stream(self.rank.device).synchronize()

    def _combine(self, partials: torch.Tensor, handle: Handle) -> torch.Tensor:
        return self.enqueue_combine(partials, handle)

    def workspace_row(self) -> np.ndarray:
        """A copy of this rank's own row, uint8 `[workspace_bytes]`; waits for what is enqueued."""
        return self._memories[0].own_row.cpu().numpy()

    @abstractmethod
    def read_flags(self) -> dict[str, np.ndarray]:
        """What this rank's flags say now, readable from another thread while a kernel spins on them."""

    def close(self) -> None:
        self._release(SymmetricMemory.close)

    def abort(self) -> None:
        self._release(SymmetricMemory.abort)

    def _release(self, free: Callable[[SymmetricMemory], None]) -> None:
        self.rank.watched = None  # a diagnosis must not read memory that is gone
        with ExitStack() as every_one_even_if_one_fails:
            while self._memories:
                every_one_even_if_one_fails.callback(free, self._memories.pop())

    @property
    def allocations(self) -> tuple[Allocation, ...]:
        """What this rank has allocated: one per workspace, each in a window of its own."""
        return tuple(Allocation(asked_bytes=memory.size_bytes, ep_size=self.spans) for memory in self._memories)

    @property
    def spans(self) -> int:
        """Ranks that the workspace spans; only `ep_size` is right."""
        return self._workspace_group.size

    def _allocate(self, size_bytes: int) -> SymmetricMemory:
        memory = SymmetricMemory(self._workspace_group, size_bytes=size_bytes, device=self.rank.device)
        self._memories.append(memory)
        return memory

    @contextmanager
    def _kernel_message(self, phase: str):
        """Let a kernel that refuses a workspace over another group say so in its own words."""
        try:
            yield
        except RuntimeError as error:
            if self.spans == self.ep_size:
                raise
            raise WorkspaceMismatch(
                kernel_message=first_line(error),
                phase=phase,
                spans=self.spans,
                group=self.exchange.workspace_group,
                ep_size=self.ep_size,
                arithmetic=self.exchange.layout.arithmetic,
            ) from error


def first_line(error: BaseException) -> str:
    """What an error says, without the C++ frames that may follow."""
    return next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)


def require_prediction(what: str, *, predicted: object, asked: object) -> None:
    """Stop when FlashInfer asks for other bytes than this package computes: then its figures are wrong.

    Raises:
        LabError: the two differ.
    """
    if predicted != asked:
        raise LabError(
            f"{what}: {predicted} predicted but FlashInfer asks for {asked}: they must be equal; "
            "use the FlashInfer version that mnnvl_lab.workspace mirrors, or correct its arithmetic"
        )


def between(regions: tuple[Region, ...], first: str, last: str) -> tuple[Region, ...]:
    """The regions from `first` to `last`, both included."""
    names = [region.name for region in regions]
    return regions[names.index(first) : names.index(last) + 1]

"""Exchange protocols with one step missing: the host transports as someone in a hurry would write them.

Each variant leaves out or swaps one step. Most of the time most of them work, which is what makes such mistakes costly;
so each also sleeps where the race is, and is then wrong nearly always. `VARIANTS` explains them.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from mnnvl_lab.errors import choose
from mnnvl_lab.exchange import Batch
from mnnvl_lab.faults.published_twice import PrepareInSteps, StepPublishedTwice
from mnnvl_lab.transport.base import Transport
from mnnvl_lab.transport.host.epochs import Epochs
from mnnvl_lab.transport.host.fifo import HEAD, Fifo, FifoChannels, SendBatch
from mnnvl_lab.transport.host.one_sided import HostOneSided, OneSidedHandle
from mnnvl_lab.transport.host.two_sided import HostTwoSided

NAP_S = 0.005
GIVE_UP_S = 1.0


class Unmet(Transport):
    """Ranks check nothing together, so that they do not meet before a round either."""

    def validate(self, batch: Batch) -> None:
        pass

    def meet(self, batch: Batch) -> None:
        self._laid_out_for = batch.runtime_max_tokens

    def _agree(self, batch: Batch, mine: dict[str, object], problem: str | None, *, call: str) -> None:
        pass


class FlagBeforePayload(HostOneSided):
    def _record(self, handle: OneSidedHandle) -> None:
        super()._record(handle)
        self._announce_counts(handle)
        self._epochs.signal("dispatch", handle.active)
        time.sleep(NAP_S * self.ep_rank)


class NoBarrierAfterInitialising(Unmet, HostOneSided):
    def _initialize(self) -> None:
        self.wait_limit_s = GIVE_UP_S
        if self.ep_rank == 0:
            time.sleep(20 * NAP_S)
        self._rows[self.ep_rank][: self.workspace.aux_bytes].zero_()


class StuckEpochs(Epochs):
    def advance(self) -> int:
        self._own["flag_val"][0] = 1
        return self.now


class EpochThatStandsStill(HostOneSided):
    epochs = StuckEpochs

    def _record(self, handle: OneSidedHandle) -> None:
        super()._record(handle)
        time.sleep(NAP_S * self.ep_rank)


class HastyEpochs(Epochs):
    def wait(self, phase: str, active: Sequence[int], limit_s: float) -> None:
        if phase != "combine":
            super().wait(phase, active, limit_s)


class CombineWithoutWaiting(HostOneSided):
    epochs = HastyEpochs

    def _lay_out(self, partials: torch.Tensor, handle: OneSidedHandle) -> int:
        time.sleep(NAP_S * self.ep_rank)
        return super()._lay_out(partials, handle)


class ShapesThatChangeUnmet(Unmet, HostOneSided):
    def _pull(self, handle: OneSidedHandle, stride_bytes: int) -> torch.Tensor:
        if self.ep_rank == self.ep_size - 1:  # whose rows lie furthest into what becomes a faster rank's
            time.sleep(20 * NAP_S)
        return super()._pull(handle, stride_bytes)


class EagerFifo(Fifo):
    """Moves the head on before the rows are there."""

    def entry(self, counter: int, rows: int, row_bytes: int) -> torch.Tensor:
        entry = super().entry(counter, rows, row_bytes)
        if counter == HEAD:
            self.connection[HEAD] += 1
            time.sleep(NAP_S)
        return entry

    def advance(self, counter: int) -> None:
        if counter != HEAD:
            super().advance(counter)


class EndlessFifo(Fifo):
    """Never full."""

    @property
    def space(self) -> int:
        return 1


class EagerFifoChannels(FifoChannels):
    def fifo(self, sender: int, receiver: int, channel: int) -> Fifo:
        fifo = super().fifo(sender, receiver, channel)
        return EagerFifo(**vars(fifo)) if sender == 0 else fifo


class EndlessFifoChannels(FifoChannels):
    def move(self, send_batches: Sequence[SendBatch], limit_s: float) -> None:
        if self.ep_rank == 0:
            time.sleep(20 * NAP_S)
        super().move(send_batches, limit_s)

    def fifo(self, sender: int, receiver: int, channel: int) -> Fifo:
        return EndlessFifo(**vars(super().fifo(sender, receiver, channel)))


class HeadBeforeRows(HostTwoSided):
    def _open_channels(self) -> tuple[FifoChannels, FifoChannels]:
        channels, prepare = super()._open_channels()
        return EagerFifoChannels(**vars(channels)), prepare


class FifoNeverFull(HostTwoSided):
    def _open_channels(self) -> tuple[FifoChannels, FifoChannels]:
        self.wait_limit_s = GIVE_UP_S
        channels, prepare = super()._open_channels()
        return EndlessFifoChannels(**vars(channels)), prepare


@dataclass(frozen=True, kw_only=True)
class Variant:
    """An exercise: predict what goes wrong, run, see.

    Attributes:
        transport: the broken one, made from the `sound` one.
        title: which step is missing.
        question: for the reader, before running it.
        explanation: for the reader, afterwards.
        tokens: token counts of its rounds, taken in turn.
        hidden: H.
    """

    transport: type
    title: str
    question: str
    explanation: str
    tokens: tuple[int, ...] = (6,)
    hidden: int = 64

    @property
    def name(self) -> str:
        return self.transport.__name__

    @property
    def sound(self) -> type:
        return next(base for base in (HostOneSided, PrepareInSteps, HostTwoSided) if issubclass(self.transport, base))


VARIANTS = (
    Variant(
        transport=FlagBeforePayload,
        title="The flag is raised before the rows are written",
        question="Every rank still writes every row. Which rows does a fast rank read, and will a count be wrong?",
        explanation=(
            "The flag is the only thing a receiver waits for. Counts and flags are right, so nothing looks amiss, "
            "but the rows are those of the round before, or zeros in the first. On a GPU the compiler and the "
            "memory system may swap two stores by themselves: hence `fence.release.sys` before the flag."
        ),
    ),
    Variant(
        transport=NoBarrierAfterInitialising,
        title="No barrier after the workspace is cleared",
        question="Each rank clears its own flags and goes on. What if one rank is slow to clear?",
        explanation=(
            "The others have raised their flags at the slow rank already, and it wipes them out: it waits for "
            "epoch 1 for ever, and soon they wait for it. FlashInfer's functional API leaves this barrier to its "
            "caller."
        ),
    ),
    Variant(
        transport=EpochThatStandsStill,
        title="The epoch stays at 1",
        question="The first round is right. Why is the second wrong although every flag has been raised?",
        explanation=(
            "Flags are never lowered. A flag that is still up from the last round passes for this one's, so "
            "nobody waits. A new epoch in each phase makes old flags worthless without anybody having to lower "
            "them."
        ),
    ),
    Variant(
        transport=CombineWithoutWaiting,
        title="Combine pulls without waiting",
        question="Dispatch has met all ranks per moment ago. Is that not enough for combine?",
        explanation=(
            "Dispatch says that the rows have arrived, not that the experts are done. Combine pulls from the "
            "peers' memory, so it must know that each has laid out its partial sums: it has flags and an epoch of "
            "its own."
        ),
    ),
    Variant(
        transport=ShapesThatChangeUnmet,
        title="The round's size changes, and nobody meets before it",
        question="No barrier follows combine. When is the next dispatch allowed to write?",
        explanation=(
            "At the same size it writes where nobody reads any more. At a larger one the rows' region reaches "
            "into what was combine's, which a slow rank may still be pulling from. Ranks must meet when the size "
            "changes; here `dispatch` sees to it, also among the ranks that a mask leaves in, and for batches that "
            "were validated long before."
        ),
        tokens=(2, 12),
    ),
    Variant(
        transport=HeadBeforeRows,
        title="The FIFO's head moves before its entry is filled",
        question="The receiver waits for the head. What does it copy?",
        explanation=(
            "Whatever the entry held eight entries ago. The kernels carry a flag in every 128 bytes of a packet, "
            "so that a receiver never reads what has not come; here rows are ordered before the head by a fence."
        ),
    ),
    Variant(
        transport=FifoNeverFull,
        title="The sender does not wait for room",
        question="A FIFO has eight entries. With how few tokens does this go unnoticed?",
        explanation=(
            "Up to eight entries in flight nothing happens. Then the sender overwrites what the receiver has not "
            "read: small tests pass, and large batches lose rows."
        ),
        tokens=(400,),
        hidden=7168,
    ),
    Variant(
        transport=StepPublishedTwice,
        title="A full last step is published twice",
        question="Prepare sends ids and weights in steps. Which rows are wrong, and in which round for the first time?",
        explanation=(
            "If the receiver sets head and tail to 0 between the two publications, head stays above 0. In the next "
            "round the receiver believes that a step has come, and takes ids and weights of the round before. Rows "
            "stay right. FlashInfer 0.7.2 has this mistake."
        ),
        tokens=(4620,),  # of top-4 choices among 12 experts on three ranks: 16 full packets to each target
    ),
)


def require_variant(name: str) -> Variant:
    """The variant of that class name, in any case.

    Raises:
        Refused: there is none; says which there are.
    """
    by_name = {variant.name: variant for variant in VARIANTS}
    return by_name[choose(name, by_name, "variant")]

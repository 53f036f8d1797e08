"""The broken protocols as exercises: which step is missing, what to predict, and why it goes wrong.

`mnnvl_lab.faults.races.challenge` runs one on the ranks and says what went wrong.
"""

from __future__ import annotations

from dataclasses import dataclass

from mnnvl_lab.errors import choose
from mnnvl_lab.transport.broken_protocols import (
    CombineWithoutWaiting,
    EpochThatStandsStill,
    FifoNeverFull,
    FlagBeforePayload,
    HeadBeforeRows,
    NoBarrierAfterInitialising,
    ShapesThatChangeUnmet,
)
from mnnvl_lab.transport.host_one_sided import HostOneSided
from mnnvl_lab.transport.host_two_sided import HostTwoSided


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
        return next(base for base in (HostOneSided, HostTwoSided) if issubclass(self.transport, base))


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
        question="Dispatch has met all ranks a moment ago. Is that not enough for combine?",
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
            "were admitted long before."
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
)


def require_variant(name: str) -> Variant:
    """The variant of that class name, in any case.

    Raises:
        Refused: there is none; says which there are.
    """
    by_name = {variant.name: variant for variant in VARIANTS}
    return by_name[choose(name, by_name, "variant")]

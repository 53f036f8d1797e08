"""The model of each broken protocol of `mnnvl_lab.faults.VARIANTS`, and the sound one at the same size."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType

from mnnvl_lab.model_check.one_sided import OneSided, Round
from mnnvl_lab.model_check.two_sided import Prepare, TwoSidedFifo

SAME_SIZE = (Round(tokens_R=(1, 1), runtime_max_tokens=1),) * 3
GROWING = (Round(tokens_R=(2, 1), runtime_max_tokens=2), Round(tokens_R=(1, 4), runtime_max_tokens=4))


@dataclass(frozen=True, kw_only=True)
class Counterpart:
    """Two models that differ in one mistake alone.

    Attributes:
        broken: has the mistake; a search finds it.
        sound: has none; a search visits every state and finds nothing.
        size: ranks, rounds and tokens that both are searched at.
    """

    broken: OneSided | TwoSidedFifo | Prepare
    sound: OneSided | TwoSidedFifo | Prepare
    size: str


def _one_sided(mistake: str) -> Counterpart:
    rounds = GROWING if mistake == "size changes unmet" else SAME_SIZE
    size = "2 ranks, 2 rounds of M = 2 and 4" if rounds is GROWING else "2 ranks, 3 rounds of 1 token per rank"
    return Counterpart(broken=OneSided(rounds=rounds, mistake=mistake), sound=OneSided(rounds=rounds), size=size)


def _fifo(mistake: str) -> Counterpart:
    return Counterpart(
        broken=TwoSidedFifo(entries=12, depth=8, mistake=mistake),
        sound=TwoSidedFifo(entries=12, depth=8),
        size="1 sender, 1 receiver, 12 entries through 8",
    )


COUNTERPARTS: Mapping[str, Counterpart] = MappingProxyType(
    {
        "FlagBeforePayload": _one_sided("flag before rows"),
        "NoBarrierAfterInitialising": _one_sided("no barrier after clearing"),
        "EpochThatStandsStill": _one_sided("epoch stands still"),
        "CombineWithoutWaiting": _one_sided("combine without waiting"),
        "ShapesThatChangeUnmet": _one_sided("size changes unmet"),
        "HeadBeforeRows": _fifo("head before rows"),
        "FifoNeverFull": _fifo("never full"),
        "StepPublishedTwice": Counterpart(
            broken=Prepare(packets=(4, 2, 3), packets_per_step=2),
            sound=Prepare(packets=(4, 2, 3), packets_per_step=2, fixed=True),
            size="1 sender, 1 receiver, 3 rounds of 4, 2 and 3 packets, 2 per step",
        ),
    }
)
"""By the class name of the variant."""

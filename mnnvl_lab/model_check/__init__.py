"""Model checking of the protocols: every interleaving of a few ranks, tokens and rounds, with delayed stores.

`search(OneSided(...).protocol)` returns the shortest sequence of steps that goes wrong, or says that none does.
"""

from mnnvl_lab.model_check.counterparts import COUNTERPARTS, Counterpart
from mnnvl_lab.model_check.one_sided import MISTAKES, OneSided, Round, epoch_of
from mnnvl_lab.model_check.pico import PICO_MISTAKES, Pico
from mnnvl_lab.model_check.protocol import Memory, Protocol, Step, Violation
from mnnvl_lab.model_check.search import Event, Result, search
from mnnvl_lab.model_check.trace_table import trace_table
from mnnvl_lab.model_check.two_sided import FIFO_MISTAKES, Prepare, TwoSidedFifo

__all__ = [
    "COUNTERPARTS",
    "FIFO_MISTAKES",
    "MISTAKES",
    "PICO_MISTAKES",
    "Counterpart",
    "Event",
    "Memory",
    "OneSided",
    "Pico",
    "Prepare",
    "Protocol",
    "Result",
    "Round",
    "Step",
    "TwoSidedFifo",
    "Violation",
    "epoch_of",
    "search",
    "trace_table",
]

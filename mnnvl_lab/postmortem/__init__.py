"""Post-mortem of a hang: read every rank from outside, work out who waits for whom, name who never arrived.

`snapshot` is what one rank shows, `waits` reads edges out of its flags and counters, `verdict` draws the conclusion:
these are pure. `listener` lets a rank answer while its main thread is stuck, `examine` asks all ranks, `stall` decides
when to ask.
"""

from mnnvl_lab.postmortem.verdict import Verdict, judge

__all__ = ["Verdict", "judge"]

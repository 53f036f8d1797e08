"""Hang detection: read every rank from outside, work out who waits for whom, name who never arrived.

`snapshot` is what one rank shows, `agent` answers from a thread of the rank while its main thread is stuck, `detect`
decides when to ask and asks all ranks, `diagnosis` builds the wait-for graph and draws the conclusion.
"""

from mnnvl_lab.hang.diagnosis import HangReport, diagnose

__all__ = ["HangReport", "diagnose"]

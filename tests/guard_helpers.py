"""Rank functions for the guard of two-sided rounds, on GPUs."""

from dataclasses import replace

from mnnvl_lab.errors import WrongResult
from mnnvl_lab.measure.check import check_received
from mnnvl_lab.measure.workload import Work
from mnnvl_lab.transport import open_transport


def with_a_lost_step(rank, point, *, guarded, rounds=6):
    """A head left above 0 during a round, as a second publication leaves it, then checked rounds with fresh routing.

    Returns:
        What was refused as wrong, and the transport's note.
    """
    found = []
    with open_transport(rank, point.exchange) as transport:
        if not guarded:
            transport._guard._reset = lambda: None
        work = Work.of(rank, point)
        handle = transport.dispatch(work.batch()).handle
        transport._guard._words[transport.ep_rank, 0] = 2
        transport.combine(transport.partials_buffer(handle), handle)
        for seed in range(1, rounds):
            fresh = Work.of(rank, replace(point, load=replace(point.load, seed=seed)))
            found.append(_wrong(transport, fresh))
        note = transport.note()
    return [wrong for wrong in found if wrong], note


def _wrong(transport, work):
    """What of a round is wrong; combine follows all the same, since the other ranks are in it."""
    received, wrong = transport.dispatch(work.batch()), ""
    try:
        check_received(work, received)
    except WrongResult as error:
        wrong = f"{error}; {transport.explanation()}"
    transport.combine(transport.partials_buffer(received.handle), received.handle)
    return wrong

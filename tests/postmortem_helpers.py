"""Rank functions that hang, die or misbehave on purpose."""

import time

from mnnvl_lab.layout import Layout
from mnnvl_lab.measure.check import checked_round
from mnnvl_lab.measure.point import Point
from mnnvl_lab.measure.work import Work
from mnnvl_lab.routing import Load, Uniform
from mnnvl_lab.transport import open_transport
from mnnvl_lab.transport.exchange import Exchange


def small_point(layout: Layout, *, mode="one_sided", tokens=5, seed=0, **options) -> Point:
    """Not a rank function: a round that takes about a millisecond."""
    exchange = Exchange(mode=mode, layout=layout, max_tokens=16, hidden=64, experts=16, top_k=4, **options)
    return Point(exchange=exchange, load=Load(routing=Uniform(), tokens=tokens, seed=seed))


def stay_away(rank, point, *, absent, phase, rounds=3, admitted=True):
    """Checked rounds, then one in which a rank stays away: from `dispatch`, or from `combine`."""
    work = Work.of(rank, point)
    with open_transport(rank, point.exchange) as transport:
        for _ in range(rounds):
            checked_round(transport, work, work.batch())
        batch = transport.admit(work.batch()) if admitted else work.batch()
        if rank.index == absent and phase == "dispatch":
            idle()
        received = transport.dispatch(batch)
        partials = transport.partials_buffer(received)
        if rank.index == absent:
            idle()
        # The bare phase: `combine` itself would first let all ranks agree on the form of what they bring.
        transport.enqueue_combine(partials)


def return_early(rank, point, *, absent):
    """A rank that believes it is done while the others go on."""
    work = Work.of(rank, point)
    with open_transport(rank, point.exchange) as transport:
        checked_round(transport, work, work.batch())
        if rank.index != absent:
            transport.dispatch(work.batch())


def idle():
    time.sleep(3600)

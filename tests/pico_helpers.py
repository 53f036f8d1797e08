"""What the tests of pico run on ranks."""

import time

from mnnvl_lab.transport import open_transport
from tests import transport_helpers as on


def timed_rounds(rank, exchange, load, count):
    """Seconds of each round's dispatch and combine, after one that is checked."""
    seconds = []
    with open_transport(rank, exchange) as transport:
        on.one_round(rank, transport, load)
        batch = on.batch_of(rank, exchange, load)
        for _ in range(count):
            transport.group.barrier()
            begun = time.perf_counter()
            handle = transport.dispatch(batch).handle
            transport.combine(transport.partials_buffer(handle), handle)
            seconds.append(time.perf_counter() - begun)
    return seconds

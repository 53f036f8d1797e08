"""Load of each expert as ranks count it: the statistics that travel with a dispatch, for a load balancer."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np

from mnnvl_lab.errors import Refused, named_arguments
from mnnvl_lab.measure.check import check_received
from mnnvl_lab.measure.point import Point
from mnnvl_lab.measure.workload import Work
from mnnvl_lab.placement.placed import Placed, logical_ids

if TYPE_CHECKING:
    from mnnvl_lab.ranks import Ranks
    from mnnvl_lab.ranks.rank import Rank


@named_arguments
def count_loads(point: Point, ranks: Ranks) -> np.ndarray:
    """int64 `[R, E]`: copies of each logical expert that each rank sends in a round of `point`, as dispatch gathers
    them on every rank.

    Args:
        point: of mode one_sided, which alone carries statistics; room for them is reserved here.
        ranks: warm ranks.

    Raises:
        Refused: another mode, or the ranks did not all receive the same counts.
    """
    x = point.exchange
    if x.mode != "one_sided":
        raise Refused(f"mode {x.mode} carries no statistics: only one_sided does; count with one_sided")
    routing = point.load.routing
    experts = routing.placement.experts if isinstance(routing, Placed) else x.experts
    ranks.use(x.layout)
    gathered = ranks.run(gather_loads, replace(point, exchange=replace(x, eplb_stats_experts=experts)))
    if any(not np.array_equal(gathered[0], other) for other in gathered):
        raise Refused("ranks received different statistics of the same round: open the transport again, and report it")
    return gathered[0].astype(np.int64)


def gather_loads(rank: Rank, point: Point) -> np.ndarray:
    """Rank function: int32 `[R, E]`, the statistics that one checked dispatch brings to this rank."""
    from mnnvl_lab.transport import open_transport

    x, work = point.exchange, Work.of(rank, point)
    shape = {"experts": x.experts, "top_k": x.top_k, "ep_size": x.ep_size}
    chosen_TK = logical_ids(point.load, work.ep_rank, **shape)
    counts_E = np.bincount(chosen_TK.ravel(), minlength=x.eplb_stats_experts).astype(np.int32)
    with open_transport(rank, x) as transport:
        received = transport.dispatch(replace(work.batch(), eplb_stats_E=work.on_device(counts_E)))
        check_received(work, received)
        return received.eplb_stats_RE.cpu().numpy()

"""Rounds of the latency model (`latency_model.terms`) taken apart: what each phase spends on what.

The model is fitted to whole rounds on the graph clock, where phases are not told apart. Launches, flags, rows and bytes
belong to a phase by what the kernels do; where one term covers both moves (FIFOs, packets), each share follows the
bytes.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import MappingProxyType

import numpy as np

from mnnvl_lab.analysis.latency_model import TERMS, Point
from mnnvl_lab.analysis.latency_model import terms as lm
from mnnvl_lab.analysis.latency_model.work import Work, work_from
from mnnvl_lab.prediction.parts import COMBINE, DISPATCH, LAUNCHES, LINK, MEMORY, PACKETS, Costs, Counts, Part

TWO_SIDED_DISPATCH_KERNELS = 5  # counts, prefix sums and indices of prepare, then the move; combine has the others
TWO_SIDED_DISPATCH_SYNCS = 2


def one_sided(p: Mapping[str, float], w: Work) -> Costs:
    rows_us, fixed_us = w.targets * p["row_us"], _fixed_us(p, w, kernels=2, syncs=1)
    sharing_us = w.sharing_doublings * p["sharing_us"] / 2  # of the round: half in each phase
    costs: dict[tuple[str, str], float] = {}
    for phase in (DISPATCH, COMBINE):
        link_us = _link_us(p, getattr(w, f"{phase}_link_bytes"))
        memory_us = _memory_us(p, getattr(w, f"{phase}_memory_bytes"))
        costs |= _by_narrowest(phase, rows_us, link_us, memory_us)
        costs[phase, LAUNCHES] += fixed_us - sharing_us
    costs[COMBINE, MEMORY] += _memory_us(p, w.staged_bytes)
    return costs


def two_sided(p: Mapping[str, float], w: Work) -> Costs:
    packets_us = w.peer_packets * p["stream_us"] + w.rank_packets * p["packet_us"]
    link_us = _link_us(p, w.dispatch_link_bytes) + _link_us(p, w.combine_link_bytes)
    moves = _by_narrowest("both", p["fifo_us"], link_us, packets_us, third=PACKETS)
    fixed_us = _fixed_us(p, w, kernels=lm.TWO_SIDED_KERNELS, syncs=lm.TWO_SIDED_SYNCS)
    first_us = _fixed_us(p, w, kernels=TWO_SIDED_DISPATCH_KERNELS, syncs=TWO_SIDED_DISPATCH_SYNCS)
    first_us = first_us - w.sharing_doublings * p["sharing_us"] / 2
    share = {DISPATCH: _share_of_dispatch(w), COMBINE: 1 - _share_of_dispatch(w)}
    costs = {(phase, cause): share[phase] * us for phase in share for (_, cause), us in moves.items()}
    costs[DISPATCH, LAUNCHES] += first_us
    costs[COMBINE, LAUNCHES] += fixed_us - first_us
    costs[COMBINE, MEMORY] = _memory_us(p, w.slot_bytes)
    return costs


def allgather_reducescatter(p: Mapping[str, float], w: Work) -> Costs:
    return _nccl(DISPATCH, p, w, w.gathered_bytes) | _nccl(COMBINE, p, w, w.scattered_bytes)


def all_to_all(p: Mapping[str, float], w: Work) -> Costs:
    exchanged = _nccl(DISPATCH, p, w, w.dispatch_link_bytes) | _nccl(COMBINE, p, w, w.combine_link_bytes)
    share = _share_of_dispatch(w)
    packed_us = _memory_us(p, w.packed_bytes)
    return exchanged | {(DISPATCH, MEMORY): share * packed_us, (COMBINE, MEMORY): (1 - share) * packed_us}


def _nccl(phase: str, p: Mapping[str, float], w: Work, size_bytes: float) -> Costs:
    """The faster of NCCL's protocols: its start and hops, and its bytes."""
    hops_us = (w.peers - 1) * p["hop_us"]
    eager_us = size_bytes / (p["eager_gigabytes_per_s"] * lm.BYTES_PER_US)
    bulk_us = size_bytes / (p["bulk_gigabytes_per_s"] * lm.BYTES_PER_US)
    is_eager = p["eager_us"] + eager_us <= p["bulk_us"] + bulk_us
    return {
        (phase, LAUNCHES): np.where(is_eager, p["eager_us"], p["bulk_us"]) + hops_us,
        (phase, LINK): np.where(is_eager, eager_us, bulk_us),
    }


def _by_narrowest(phase: str, rows_us: float, link_us: float, third_us: float, *, third: str = MEMORY) -> Costs:
    """Three that overlap: the longest counts, the others are hidden behind it."""
    longest_us = np.maximum(np.maximum(rows_us, link_us), third_us)
    is_rows = rows_us >= longest_us
    is_link = ~is_rows & (link_us >= longest_us)
    return {
        (phase, LAUNCHES): np.where(is_rows, longest_us, 0.0),
        (phase, LINK): np.where(is_link, longest_us, 0.0),
        (phase, third): np.where(is_rows | is_link, 0.0, longest_us),
    }


def _share_of_dispatch(w: Work) -> float:
    moved = w.dispatch_memory_bytes + w.combine_memory_bytes
    return np.where(moved > 0, w.dispatch_memory_bytes / np.maximum(moved, 1), 0.5)


def _fixed_us(p: Mapping[str, float], w: Work, *, kernels: int, syncs: int) -> float:
    sync_us = p["flag_us"] + (w.rank_doublings - 1) * p["fan_us"]
    return kernels * p["launch_us"] + syncs * sync_us + w.sharing_doublings * p["sharing_us"]


def _link_us(p: Mapping[str, float], size_bytes: float) -> float:
    return size_bytes / (p["link_gigabytes_per_s"] * lm.BYTES_PER_US)


def _memory_us(p: Mapping[str, float], size_bytes: float) -> float:
    return size_bytes / (p["memory_gigabytes_per_s"] * lm.BYTES_PER_US)


def _counted(point: Point, rows_RR: np.ndarray) -> Counts:
    return vars(work_from(point, rows_RR))


def _of_work(costs: Callable[[Mapping[str, float], Work], Costs]) -> Callable[[Mapping[str, float], Counts], Costs]:
    return lambda p, counts: costs(p, Work(**counts))


ROUND_PARTS: Mapping[str, Part] = MappingProxyType(
    {
        f.__name__: Part(
            mode=f.__name__,
            name="round",
            parameters=TERMS[f.__name__].parameters,
            count=_counted,
            costs=_of_work(f),
        )
        for f in (one_sided, two_sided, allgather_reducescatter, all_to_all)
    }
)
"""Each mode's whole round, with the parameters and the sum of `latency_model.TERMS`."""

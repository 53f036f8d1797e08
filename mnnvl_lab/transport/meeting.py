"""The ranks that meet before a round whose regions lie elsewhere than those of the round before.

In FlashInfer 0.7.2 the combine region begins behind the dispatch regions, whose length follows M (`moeA2ADispatchOp`
in `trtllm_moe_alltoall.cu`), and a round ends without a barrier (`moeAlltoAllKernels.cu`). A rank that has pulled its
rows may dispatch at once, and rows of a larger round then land where a slower rank still pulls.
"""

from __future__ import annotations

from mnnvl_lab.ranks.group import Group
from mnnvl_lab.ranks.rank import Rank
from mnnvl_lab.transport.exchange import Batch


def leaves_out_ranks(batch: Batch, ep_size: int) -> bool:
    """Whether a rank mask keeps some rank out of this round."""
    return batch.active_ranks is not None and len(set(batch.active_ranks)) < ep_size


def active_group(rank: Rank, batch: Batch) -> Group:
    """The EP group, or the active ranks of it alone: those that a mask leaves out may be dead and could not answer.

    Only the active ranks connect, at the first use; later calls return the same group.
    """
    group = rank.group("ep")
    if not leaves_out_ranks(batch, group.size):
        return group
    ranks = tuple(group.ranks[ep_rank] for ep_rank in sorted(set(batch.active_ranks)))
    name = f"ep, active ranks {', '.join(map(str, ranks))}"
    if name not in rank.groups:
        rank.groups[name] = Group(name=name, ranks=ranks, member=rank.index, fabric=rank.fabric)
    return rank.groups[name]


def moved_problem(wanted: int, laid_out_for: int | None) -> str:
    """Why a round cannot be enqueued before its ranks have met."""
    before = "no size has been agreed on yet" if laid_out_for is None else f"ranks last agreed on {laid_out_for}"
    return (
        f"runtime_max_tokens is {wanted} but {before}: regions move with it, and rows would land where a slower rank "
        "may still pull; call meet(batch) on all active ranks first, or dispatch(batch), which does"
    )

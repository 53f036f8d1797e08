"""Which rank sits where: the rank grid, its groups, and which rank owns an expert.

Everything about ranks is read off ONE integer array, `Layout.grid`; nothing else computes them. Its order is vLLM's,
ExternalDP x DP x PP x PCP x TP (`vllm/distributed/parallel_state.py`, `initialize_model_parallel`), for one external
replica. A group's ranks lie along an axis of the grid; the expert-parallel (EP) group merges three of them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields
from numbers import Integral

import numpy as np
import pandas as pd

from mnnvl_lab.errors import Refused
from mnnvl_lab.show import html_block, text_block

AXES = ("dp", "pp", "pcp", "tp")
GROUP_AXES = {"tp": ("tp",), "dp": ("dp",), "pcp": ("pcp",), "pp": ("pp",), "ep": ("dp", "pcp", "tp")}


@dataclass(frozen=True, kw_only=True)
class Layout:
    """Sizes of a parallel layout and the rank grid that follows from them.

    Expert parallelism has no size of its own: an EP group is all ranks of one pipeline stage, DP x PCP x TP of them.

    Args:
        tp: tensor-parallel ranks, neighbours in the grid.
        dp: data-parallel ranks, the slowest axis.
        pcp: prefill-context-parallel ranks.
        pp: pipeline stages.
        gpus_per_node: consecutive ranks that share a node.

    Raises:
        Refused: a size is no whole number, or below 1.
    """

    tp: int = 1
    dp: int = 1
    pcp: int = 1
    pp: int = 1
    gpus_per_node: int = 8

    def __post_init__(self):
        for field in fields(self):
            size = require_count(field.name, getattr(self, field.name), remedy="use 1 for an axis that is not split")
            object.__setattr__(self, field.name, size)

    @property
    def world_size(self) -> int:
        return self.tp * self.dp * self.pcp * self.pp

    @property
    def ep_size(self) -> int:
        """R, ranks of one EP group."""
        return self.dp * self.pcp * self.tp

    @property
    def nodes(self) -> int:
        return -(-self.world_size // self.gpus_per_node)

    @property
    def grid(self) -> np.ndarray:
        """Global ranks, int `[dp, pp, pcp, tp]`."""
        return np.arange(self.world_size).reshape([getattr(self, axis) for axis in AXES])

    @property
    def arithmetic(self) -> str:
        """How `ep_size` comes about, in words."""
        return f"DP {self.dp} x PCP {self.pcp} x TP {self.tp}"

    def groups(self, name: str) -> tuple[tuple[int, ...], ...]:
        """All groups of a kind, each with its global ranks in group order.

        Args:
            name: `tp`, `dp`, `pcp`, `pp` or `ep`.

        Raises:
            Refused: no such kind of group.
        """
        return tuple(tuple(map(int, ranks)) for ranks in self._groups(name))

    def group_of(self, name: str, rank: int) -> tuple[int, ...]:
        """The group of kind `name` that global rank `rank` belongs to."""
        self._require_rank(rank)
        return next(group for group in self.groups(name) if rank in group)

    def ep_rank(self, rank: int) -> int:
        """Place of a global rank in its EP group; its experts and its workspace row go by it."""
        return self.group_of("ep", rank).index(rank)

    def coordinates(self, rank: int) -> dict[str, int]:
        """A global rank's place along each axis of the grid."""
        self._require_rank(rank)
        return dict(zip(AXES, map(int, np.argwhere(self.grid == rank)[0]), strict=True))

    def node_of(self, rank: int) -> int:
        self._require_rank(rank)
        return int(rank) // self.gpus_per_node

    def to_frame(self) -> pd.DataFrame:
        """One row a rank: where it runs, its coordinates, and its place in its DP and EP groups."""
        dp_group, dp_rank = self._places("dp")
        ep_group, ep_rank = self._places("ep")
        rank = self.grid.ravel()
        coordinates = dict(zip(AXES, np.indices(self.grid.shape).reshape(len(AXES), -1), strict=True))
        return pd.DataFrame(
            {"rank": rank, "node": rank // self.gpus_per_node, "gpu": rank % self.gpus_per_node}
            | coordinates
            | {"dp_group": dp_group, "dp_group_rank": dp_rank, "ep_group": ep_group, "ep_rank": ep_rank}
        )

    def __str__(self) -> str:
        return text_block(self._title, self.to_frame(), self._notes)

    def _repr_html_(self) -> str:
        return html_block(self._title, self.to_frame(), self._notes)

    @property
    def _title(self) -> str:
        sizes = " x ".join(f"{axis.upper()} {getattr(self, axis)}" for axis in AXES)
        return f"{sizes} = {_counted(self.world_size, 'rank')} on {_counted(self.nodes, 'node')}"

    @property
    def _notes(self) -> list[str]:
        derived = f"An EP group is a pipeline stage: {self.arithmetic} = {_counted(self.ep_size, 'rank')}, DP slowest."
        return [derived, *(f"{name.upper():>3} groups: {_listed(self.groups(name))}" for name in GROUP_AXES)]

    def _groups(self, name: str) -> np.ndarray:
        """`[groups, ranks]`: the named axes moved to the end and merged, the others before them."""
        if name not in GROUP_AXES:
            raise Refused(f"group {name!r}: a layout has the groups {', '.join(GROUP_AXES)}; name one of these")
        inner = GROUP_AXES[name]
        outer = [axis for axis in AXES if axis not in inner]
        order = [AXES.index(axis) for axis in (*outer, *inner)]
        return self.grid.transpose(order).reshape(-1, np.prod([getattr(self, axis) for axis in inner]))

    def _places(self, name: str) -> tuple[np.ndarray, np.ndarray]:
        """For every global rank, int `[world_size]` each: the number of its group, and its rank there."""
        groups = self._groups(name)
        places = np.empty((2, self.world_size), dtype=int)
        places[:, groups] = np.indices(groups.shape)
        return places[0], places[1]

    def _require_rank(self, rank: int) -> None:
        if not _is_whole(rank) or not 0 <= rank < self.world_size:
            raise Refused(
                f"rank {rank!r}: global ranks of {self.arithmetic} x PP {self.pp} lie in [0, {self.world_size}); "
                "pass one of these, or a larger layout"
            )


def expert_range(*, experts: int, ep_size: int, ep_rank: int) -> range:
    """Experts that an EP rank owns: consecutive ones, and the first `experts % ep_size` ranks own one more.

    This is vLLM's linear placement (`expert_map_manager.py`, `determine_expert_map`) and what the one-sided kernel
    computes (FlashInfer `moeAlltoAllKernels.cu`, `compute_target_rank_id`). The two-sided kernel needs
    `experts % ep_size == 0`, where the same formula holds. With fewer experts than ranks the last ranks own none.

    Raises:
        Refused: a count is below 1, or `ep_rank` is outside `[0, ep_size)`.
    """
    starts = _expert_starts(experts, ep_size)
    if not _is_whole(ep_rank) or not 0 <= ep_rank < ep_size:
        raise Refused(f"ep_rank {ep_rank!r}: it must lie in [0, ep_size = {ep_size}); pass a rank of the EP group")
    return range(int(starts[ep_rank]), int(starts[ep_rank + 1]))


def expert_owner(expert_ids, *, experts: int, ep_size: int) -> np.ndarray:
    """EP rank that owns each expert, in the shape of `expert_ids`.

    Raises:
        Refused: an id is no integer, or outside `[0, experts)`.
    """
    starts = _expert_starts(experts, ep_size)
    ids = np.asarray(expert_ids)
    if ids.size and (ids.dtype.kind not in "iu" or ids.min() < 0 or ids.max() >= experts):
        raise Refused(
            f"expert ids of {ids.dtype} span {ids.min()} to {ids.max()}: they must be integers in "
            f"[0, experts = {experts}); mask or remap them first"
        )
    return np.searchsorted(starts, ids, side="right") - 1


def sp_token_counts(tokens_per_dp: Sequence[int], *, tp: int, sequence_parallel: bool) -> list[int]:
    """Tokens that each EP rank dispatches, in the order of the EP group (DP slowest, TP fastest).

    After attention the TP ranks of a DP rank hold the same tokens. With sequence parallelism (SP) each dispatches
    its share, padded up (vLLM `forward_context.py`, `_compute_sp_num_tokens`); without it each dispatches them all.

    Args:
        tokens_per_dp: tokens of each DP rank (with PCP: of each pair of DP and PCP rank).
        tp: tensor-parallel ranks.
        sequence_parallel: whether SP-MoE is on.

    Raises:
        Refused: `tp` or a token count is no count.
    """
    require_count("tp", tp)
    for tokens in tokens_per_dp:
        if not _is_whole(tokens) or tokens < 0:
            raise Refused(f"tokens_per_dp holds {tokens!r}: a token count is a whole number of at least 0; correct it")
    share = tp if sequence_parallel else 1
    return [-(-int(tokens) // share) for tokens in tokens_per_dp for _ in range(tp)]


def require_count(name: str, value: int, *, remedy: str = "pass a positive integer") -> int:
    """`value` as an int, if it is a whole number of at least 1.

    Raises:
        Refused: names the value, the rule and the remedy.
    """
    if not _is_whole(value) or value < 1:
        raise Refused(f"{name} is {value!r}: it must be a whole number of at least 1; {remedy}")
    return int(value)


def _expert_starts(experts: int, ep_size: int) -> np.ndarray:
    """First expert of each rank, and `experts` at the end: int `[R + 1]`."""
    base, remainder = divmod(require_count("experts", experts), require_count("ep_size", ep_size))
    ranks = np.arange(ep_size + 1)
    return ranks * base + np.minimum(ranks, remainder)


def _is_whole(value) -> bool:
    return isinstance(value, Integral) and not isinstance(value, bool)


def _counted(count: int, noun: str) -> str:
    return f"{count} {noun}" + ("" if count == 1 else "s")


def _listed(groups: tuple[tuple[int, ...], ...], most: int = 8) -> str:
    """Groups in brackets; of many groups or ranks the first few."""
    shown = [f"[{' '.join(map(str, group[:64]))}{' ...' if len(group) > 64 else ''}]" for group in groups[:most]]
    return " ".join(shown) + (f" ... ({len(groups)} groups)" if len(groups) > most else "")

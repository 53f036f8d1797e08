"""Which rank sits where: the rank grid, its groups, and which rank owns an expert.

Everything about ranks is read off ONE integer array, `Layout.grid`; nothing else computes them. Its order is vLLM's,
ExternalDP x DP x PP x PCP x TP (`vllm/distributed/parallel_state.py`, `initialize_model_parallel`), for one external
replica. A group's ranks lie along an axis of the grid; the expert-parallel (EP) group merges three of them. The order
of the groups of one kind is vLLM's too: it swaps the group's axis with the last one and cuts the result into rows.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, fields
from functools import lru_cache
from importlib import import_module

import numpy as np
import pandas as pd

from mnnvl_lab.errors import Refused, choose, is_whole, named_fields, require_count, shown
from mnnvl_lab.notebook import html_block, text_block

AXES = ("dp", "pp", "pcp", "tp")
GROUP_AXES = {
    "tp": (("dp", "pp", "pcp"), ("tp",)),
    "dp": (("tp", "pp", "pcp"), ("dp",)),
    "pcp": (("dp", "pp", "tp"), ("pcp",)),
    "pp": (("dp", "tp", "pcp"), ("pp",)),
    "ep": (("pp",), ("dp", "pcp", "tp")),
}
"""Axes that tell one group of a kind from another, slowest first, and axes along which its ranks lie."""
MOST_RANKS = 2**16  # every rank is a row of tables: more are a typing error, not a cluster


@named_fields
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
        Refused: a size is no whole number, or below 1, or all of them are more than 65,536 ranks.
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
        if self.world_size > MOST_RANKS:
            raise Refused(
                f"tp {self.tp} x dp {self.dp} x pcp {self.pcp} x pp {self.pp} is {self.world_size} ranks: a layout "
                f"has at most {MOST_RANKS}; use smaller sizes"
            )

    @classmethod
    def of_engine(cls, engine: str, flags: str | Sequence[str]) -> Layout:
        """The layout that an engine's command line makes; `engines.read_engine` says what else it makes.

        Args:
            engine: `vllm`, `sglang` or `tensorrt_llm`.
            flags: such as `--tensor-parallel-size 2 --data-parallel-size 4 --enable-expert-parallel`.

        Raises:
            Refused: an unknown engine; or a flag, with the rule and the remedy.
        """
        engines = import_module("mnnvl_lab.engines")  # which import this module
        return engines.read_engine(engine, flags).layout

    @classmethod
    def from_row(cls, row: Mapping[str, object]) -> Layout:
        """The layout of a record's row: columns `tp`, `dp`, `pcp` and `pp`.

        Raises:
            Refused: a size is out of range.
        """
        return cls(**{name: int(row[name]) for name in ("tp", "dp", "pcp", "pp")})

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
        """All groups of a kind in vLLM's order, each with its global ranks in group order.

        Args:
            name: `tp`, `dp`, `pcp`, `pp` or `ep`.

        Raises:
            Refused: no such kind of group.
        """
        return tuple(tuple(map(int, ranks)) for ranks in self._groups(name))

    def group_of(self, name: str, rank: int) -> tuple[int, ...]:
        """The group of kind `name` that global rank `rank` belongs to."""
        self._require_rank(rank)
        groups = self._groups(name)
        return tuple(map(int, groups[np.argwhere(groups == rank)[0, 0]]))

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
        """One row per rank: where it runs, its coordinates, and its place in its DP and EP groups."""
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
        """`[groups, ranks]`: the grid with its axes in the order of that kind, cut into rows of one group each."""
        outer, inner = GROUP_AXES[choose(name, GROUP_AXES, "group")]
        order = [AXES.index(axis) for axis in (*outer, *inner)]
        return self.grid.transpose(order).reshape(-1, math.prod(getattr(self, axis) for axis in inner))

    def _places(self, name: str) -> tuple[np.ndarray, np.ndarray]:
        """For every global rank, int `[world_size]` each: the number of its group, and its rank there."""
        groups = self._groups(name)
        places = np.empty((2, self.world_size), dtype=int)
        places[:, groups] = np.indices(groups.shape)
        return places[0], places[1]

    def _require_rank(self, rank: int) -> None:
        if not is_whole(rank) or not 0 <= rank < self.world_size:
            raise Refused(
                f"rank {shown(rank)}: global ranks of {self.arithmetic} x PP {self.pp} lie in [0, {self.world_size}); "
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
    if not is_whole(ep_rank) or not 0 <= ep_rank < ep_size:
        raise Refused(f"ep_rank {shown(ep_rank)}: it must lie in [0, ep_size = {ep_size}); pass a rank of the EP group")
    return range(int(starts[ep_rank]), int(starts[ep_rank + 1]))


def expert_owner(expert_ids, *, experts: int, ep_size: int) -> np.ndarray:
    """EP rank that owns each expert, in the shape of `expert_ids`.

    Raises:
        Refused: an id is no integer, or outside `[0, experts)`.
    """
    starts = _expert_starts(experts, ep_size)
    rule = f"they must be integers in [0, experts = {experts}); mask or remap them first"
    try:
        ids = np.asarray(expert_ids)
    except (ValueError, TypeError, OverflowError) as error:
        raise Refused(f"expert ids {shown(expert_ids)} are no array: {rule}") from error
    if ids.size and ids.dtype.kind not in "iu":
        raise Refused(f"expert ids {shown(expert_ids)} are of {ids.dtype}: {rule}")
    if ids.size and (ids.min() < 0 or ids.max() >= experts):
        raise Refused(f"expert ids span {ids.min()} to {ids.max()}: {rule}")
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
    require_count("tp", tp, most=MOST_RANKS)
    if not isinstance(tokens_per_dp, Iterable) or isinstance(tokens_per_dp, str):
        raise Refused(f"tokens_per_dp is {shown(tokens_per_dp)}: pass a list with the tokens of each DP rank")
    counts = [require_count("a count of tokens_per_dp", n, least=0, remedy="correct it") for n in tokens_per_dp]
    share = tp if sequence_parallel else 1
    return [-(-tokens // share) for tokens in counts for _ in range(tp)]


def require_layout(layout: Layout) -> Layout:
    """`layout` itself, if it is one.

    Raises:
        Refused: names the value and how to make a layout.
    """
    if not isinstance(layout, Layout):
        raise Refused(f"layout is {shown(layout)}: pass a Layout, such as Layout(tp=2, dp=4)")
    return layout


def _expert_starts(experts: int, ep_size: int) -> np.ndarray:
    """First expert of each rank, and `experts` at the end: int `[R + 1]`."""
    return _starts(require_count("experts", experts), require_count("ep_size", ep_size, most=MOST_RANKS))


@lru_cache(maxsize=256)
def _starts(experts: int, ep_size: int) -> np.ndarray:
    base, remainder = divmod(experts, ep_size)
    ranks = np.arange(ep_size + 1)
    starts = ranks * base + np.minimum(ranks, remainder)
    starts.flags.writeable = False  # all who ask share it
    return starts


def _counted(count: int, noun: str) -> str:
    return f"{count} {noun}" + ("" if count == 1 else "s")


def _listed(groups: tuple[tuple[int, ...], ...], most: int = 8) -> str:
    """Groups in brackets; of many groups or ranks the first few."""
    shown = [f"[{' '.join(map(str, group[:64]))}{' ...' if len(group) > 64 else ''}]" for group in groups[:most]]
    return " ".join(shown) + (f" ... ({len(groups)} groups)" if len(groups) > most else "")

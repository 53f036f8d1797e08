"""A workspace over a group that is not the EP group: what it would be, why it is smaller, and why it is wrong.

vLLM gave FlashInfer the communicator of the DP group, until pull request 40893. The row of a rank was still sized for
the EP group, so that no memory was saved: what shrinks is the number of rows that a rank can see.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import pandas as pd

from mnnvl_lab.errors import Refused, choose, shown
from mnnvl_lab.layout import GROUP_AXES, Layout
from mnnvl_lab.notebook import html_block, text_block
from mnnvl_lab.planner.modes import ModePlan, Totals
from mnnvl_lab.planner.plan import GIB, Plan
from mnnvl_lab.workspace import Window, pack


@dataclass(frozen=True, kw_only=True)
class WrongGroup(Totals):
    """One mode's workspace, allocated over another group.

    Attributes:
        layout: gives both groups.
        group: name of the group whose communicator allocates.
        right: the mode's plan over the EP group.
    """

    layout: Layout
    group: str
    right: ModePlan

    @property
    def spans(self) -> int:
        """Rows of the workspace: ranks of the group that allocates it."""
        return len(self.layout.group_of(self.group, 0))

    @property
    def windows(self) -> tuple[Window, ...]:
        """What is allocated: rows of the right size, but `spans` of them."""
        asked = [allocation.asked_bytes for window in self.right.windows for allocation in window.allocations]
        return pack(asked, ep_size=self.spans)

    @property
    def is_wrong(self) -> bool:
        """Whether the group is another one than the EP group."""
        return any(
            self.layout.group_of(self.group, r) != self.layout.group_of("ep", r) for r in range(self.layout.world_size)
        )

    def to_frame(self) -> pd.DataFrame:
        """One row per rank: the row that its kernel takes for its own, whose that is, and who is out of its reach."""
        return pd.DataFrame([self._reach(rank) for rank in range(self.layout.world_size)])

    def mapped_rows(self) -> pd.DataFrame:
        """Whose memory the kernel of each rank finds where it looks for an EP rank's row.

        Returns:
            One row per rank and row of the workspace that its kernel addresses: `rank`, `row` from 0 to `ep_size` - 1,
            `wanted`, the rank whose memory the kernel takes it for, and `found`, the rank whose memory it is, -1 for
            none: the address lies behind the end of the workspace.
        """
        return pd.DataFrame(
            [
                {"rank": rank, "row": row, "wanted": wanted, "found": mapped[row] if row < len(mapped) else -1}
                for rank in range(self.layout.world_size)
                for mapped in [self.layout.group_of(self.group, rank)]
                for row, wanted in enumerate(self.layout.group_of("ep", rank))
            ]
        )

    def __str__(self) -> str:
        return text_block(self._title, self.to_frame(), self._notes)

    def _repr_html_(self) -> str:
        return html_block(self._title, self.to_frame(), self._notes)

    def _reach(self, rank: int) -> dict:
        mapped, ep_group = self.layout.group_of(self.group, rank), self.layout.group_of("ep", rank)
        row = self.layout.ep_rank(rank)
        return {
            "rank": rank,
            "ep_rank": row,
            "row_of_this_rank": mapped.index(rank),
            "rank_of_row_ep_rank": str(mapped[row]) if row < len(mapped) else "none",
            "out_of_reach": " ".join(str(peer) for peer in ep_group if peer not in mapped) or "none",
        }

    @property
    def _title(self) -> str:
        ranks = f"{self.spans} of {self.layout.ep_size} rows"
        return (
            f"The {self.right.mode} workspace over the {self.group.upper()} group: {ranks} ({self.layout.arithmetic})"
        )

    @property
    def _notes(self) -> list[str]:
        if not self.is_wrong:
            return [f"here the {self.group.upper()} group is the EP group: nothing is wrong"]
        return [
            f"allocated a rank: {self.allocated_bytes / GIB:.3f} GiB, as over the EP group: a row is sized for it",
            f"mapped: {self.mapped_bytes / GIB:.3f} GiB instead of {self.right.mapped_bytes / GIB:.3f}: smaller, "
            "because the rows of the ranks out of reach are missing",
            "wrong, because the kernels take row i to be EP rank i's: most rows are another rank's, or none's",
        ]


def workspace_over(plan: Plan, *, mode: str = "one_sided", group: str = "dp") -> WrongGroup:
    """What a plan's workspace would be over another group, by default the DP group of vLLM's bug.

    Raises:
        Refused: the layout has no such group, or the plan no such mode.
    """
    if not isinstance(plan, Plan):
        raise Refused(f"plan is {shown(plan)}: pass what plan(...) returns")
    right = {planned.mode: planned for planned in plan.modes}
    chosen = choose(group, GROUP_AXES, "group")
    return WrongGroup(layout=plan.layout, group=chosen, right=right[choose(mode, right, "mode")])


def affected_layouts(layouts: Iterable[Layout]) -> pd.DataFrame:
    """Which layouts a workspace over the DP group hits; nothing is run.

    Returns:
        One row per layout: its sizes, `dp_size` and `ep_size`, ranks of either group; `same_group`, whether the two
        coincide; `exchanges`, whether vLLM would call an all-to-all at all (`fused_moe/config.py`,
        `use_all2all_kernels`: DP or PCP above 1); and `hit`: it would, over a group that is too small.
    """
    return pd.DataFrame([_affected(layout) for layout in layouts])


def _affected(layout: Layout) -> dict[str, object]:
    same, exchanges = layout.groups("dp") == layout.groups("ep"), layout.dp > 1 or layout.pcp > 1
    sizes = {"dp_size": layout.dp, "ep_size": layout.ep_size}
    return axes_of(layout) | sizes | {"same_group": same, "exchanges": exchanges, "hit": exchanges and not same}


def axes_of(layout: Layout) -> dict[str, int]:
    """Sizes of a layout, as columns."""
    return {name: getattr(layout, name) for name in ("tp", "dp", "pcp", "pp")}

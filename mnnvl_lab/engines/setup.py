"""What an engine makes of its flags: the layout, whether it opens an all-to-all, and with how many tokens."""

from __future__ import annotations

from dataclasses import dataclass

import pandas as pd

from mnnvl_lab.layout import Layout
from mnnvl_lab.notebook import html_block, text_block


@dataclass(frozen=True, kw_only=True)
class EngineSetup:
    """An engine's flags, understood.

    Attributes:
        engine, version: whose rules these are.
        layout: the rank grid; its EP group is what the engine's expert parallelism spans.
        expert_parallel: whether experts are dealt out to ranks at all.
        backend: the engine's own name of what dispatches and combines.
        mode: this package's name for it, or None where the package has no such mode.
        opens_all_to_all: whether dispatch and combine happen.
        why: in one sentence, which rule decides that.
        capacity: tokens per rank for which the engine sizes a workspace.
        tokens_per_rank: the most tokens that a rank sends in a round.
        sequence_parallel: whether TP ranks share their tokens (SP-MoE).
        model: as the command line names it, or empty.
        notes: what else a reader must know.
        unread: flags that do not matter here.
    """

    engine: str
    version: str
    layout: Layout
    expert_parallel: bool
    backend: str
    mode: str | None
    opens_all_to_all: bool
    why: str
    capacity: int
    tokens_per_rank: int
    sequence_parallel: bool = False
    model: str = ""
    notes: tuple[str, ...] = ()
    unread: tuple[str, ...] = ()

    def to_dict(self) -> dict[str, object]:
        """Plain values for JSON."""
        sizes = ("tp", "dp", "pcp", "pp", "gpus_per_node", "world_size", "ep_size")
        names = ("engine", "version", "model", "expert_parallel", "backend", "mode", "opens_all_to_all", "why")
        numbers = ("capacity", "tokens_per_rank", "sequence_parallel")
        return {
            **{name: getattr(self, name) for name in names},
            "layout": {name: getattr(self.layout, name) for name in sizes},
            **{name: getattr(self, name) for name in numbers},
            "notes": list(self.notes),
            "unread": list(self.unread),
        }

    def to_frame(self) -> pd.DataFrame:
        """One row per fact: `what`, `value`."""
        layout = self.layout
        opens = f"{'yes' if self.opens_all_to_all else 'no'}: {self.why}"
        facts = {
            "GPUs": f"{layout.world_size} ({layout.arithmetic} x PP {layout.pp})",
            "EP group": f"{layout.ep_size} ranks" if self.expert_parallel else "none: experts are split like TP",
            "dispatch and combine by": f"{self.backend}{f' ({self.mode})' if self.mode else ''}",
            "opens an all-to-all": opens,
            "workspace sized for": f"{self.capacity} tokens per rank",
            "a rank sends at most": f"{self.tokens_per_rank} tokens",
        }
        return pd.DataFrame({"what": list(facts), "value": list(facts.values())})

    def __str__(self) -> str:
        return text_block(self._title, self.to_frame(), self._said)

    def _repr_html_(self) -> str:
        return html_block(self._title, self.to_frame(), self._said)

    @property
    def _title(self) -> str:
        return f"{self.engine} {self.version}: what these flags make"

    @property
    def _said(self) -> list[str]:
        unread = [f"not read: {' '.join(self.unread)}"] if self.unread else []
        return [*self.notes, *unread]

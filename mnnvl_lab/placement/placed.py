"""A routing whose logical choices a placement turns into physical experts: what transports and traffic then see."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar

import numpy as np

from mnnvl_lab.arguments import require_type
from mnnvl_lab.errors import Refused, choose
from mnnvl_lab.placement.maps import PICKS, Placement
from mnnvl_lab.routing import Routing
from mnnvl_lab.routing.distributions import Router
from mnnvl_lab.routing.traffic import Load


@dataclass(frozen=True, kw_only=True)
class Placed(Routing):
    """The choices of `routing` among the model's experts, sent to physical ones. Ask it with P experts.

    Attributes:
        routing: chooses among E logical experts.
        placement: E to P experts.
        pick: which replica (`Placement.physical_ids`).

    Raises:
        Refused: asked for another number of experts or ranks than the placement has.
    """

    routing: Routing
    placement: Placement
    pick: str = "by_token"
    label: ClassVar[str] = "placed"

    def __post_init__(self):
        require_type("routing", self.routing, Routing)
        require_type("placement", self.placement, Placement)
        object.__setattr__(self, "pick", choose(self.pick, PICKS, "pick of a replica"))

    def _choose(self, router: Router, tokens: slice) -> np.ndarray:
        placement = self.placement
        if (router.experts, router.ep_size) != (placement.physical, placement.ep_size):
            raise Refused(
                f"asked for {router.experts} experts on {router.ep_size} ranks but the placement {placement} has "
                f"{placement.physical} physical experts on {placement.ep_size}: ask for these"
            )
        logical_TK = self.routing._choose(replace(router, experts=placement.experts), tokens).astype(np.int64)
        return placement.physical_ids(logical_TK, rank=router.rank, first=tokens.start, pick=self.pick)

    def __str__(self):
        return f"{self.label}:{self.routing}@{self.placement}" + ("" if self.pick == "by_token" else f".{self.pick}")


def logical_ids(load: Load, rank: int, *, experts: int, top_k: int, ep_size: int) -> np.ndarray:
    """int32 `[T, K]`: the model's own experts that `rank`'s tokens choose, before any placement.

    Args:
        experts: as the exchange has it, physical ones where the routing is placed.
    """
    if isinstance(load.routing, Placed):
        experts, load = load.routing.placement.experts, replace(load, routing=load.routing.routing)
    return replace(load, padding=None, runtime_max_tokens=None).experts_TK(
        rank, experts=experts, top_k=top_k, ep_size=ep_size
    )

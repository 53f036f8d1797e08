"""Placement: which logical expert each slot of each rank holds, and which slot a token's choice is sent to.

A model's router chooses logical experts. A server holds physical experts, which are replicas of them, in slots; the
slots of a rank are consecutive physical ids, so that the transports need to know physical experts alone.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import pandas as pd

from mnnvl_lab.arguments import as_axis
from mnnvl_lab.errors import Refused, choose, require_count, shown
from mnnvl_lab.layout import MOST_RANKS, expert_owner

PICKS = ("by_token", "by_position", "nearest")
"""How a choice finds one of an expert's replicas (`Placement.physical_ids`)."""


@dataclass(frozen=True, kw_only=True)
class Placement:
    """A map of physical experts to logical ones.

    Attributes:
        name: such as `linear`, for tables and figures.
        experts: E, logical experts of the model.
        ep_size: R.
        slots: the logical expert of each physical expert, rank by rank; each expert has a slot at least.

    Raises:
        Refused: an expert without a slot, or one that does not exist.
    """

    name: str
    experts: int
    ep_size: int
    slots: tuple[int, ...] = field(repr=False)

    def __post_init__(self):
        require_count("experts", self.experts)
        require_count("ep_size", self.ep_size, most=MOST_RANKS)
        held = tuple(
            require_count("expert of a slot", e, least=0, most=self.experts - 1) for e in as_axis("slots", self.slots)
        )
        if missing := sorted(set(range(self.experts)) - set(held)):
            raise Refused(
                f"experts {shown(missing)} have no slot among {len(held)}: tokens choose any of {self.experts} "
                "experts; give each a slot"
            )
        object.__setattr__(self, "slots", held)

    @classmethod
    def linear(cls, experts: int, ep_size: int, *, redundant: int = 0) -> Placement:
        """Experts in order, then replicas of the first ones: what vLLM begins with (`eplb_state.py`)."""
        return cls(name="linear", experts=experts, ep_size=ep_size, slots=_in_order(experts, redundant))

    @classmethod
    def round_robin(cls, experts: int, ep_size: int, *, redundant: int = 0) -> Placement:
        """Expert e on rank e mod R (vLLM's `expert_placement_strategy=round_robin`)."""
        slots = _dealt(_in_order(experts, redundant), ep_size)
        return cls(name="round_robin", experts=experts, ep_size=ep_size, slots=slots)

    @classmethod
    def of_replicas(cls, replicas: Sequence[int], ep_size: int) -> Placement:
        """So many replicas of each expert, dealt out in turn, so that those of one expert lie on different ranks."""
        counts = [require_count("replicas of an expert", n) for n in as_axis("replicas", replicas)]
        slots = _dealt(tuple(np.repeat(np.arange(len(counts)), counts).tolist()), ep_size)
        return cls(name="replicas", experts=len(counts), ep_size=ep_size, slots=slots)

    @property
    def physical(self) -> int:
        """Physical experts, which the transports are opened for."""
        return len(self.slots)

    @property
    def redundant(self) -> int:
        return self.physical - self.experts

    @property
    def replicas_E(self) -> np.ndarray:
        """int64 `[E]`: replicas of each expert."""
        return np.bincount(self.slots, minlength=self.experts)

    @property
    def rank_P(self) -> np.ndarray:
        """int64 `[P]`: the rank of each physical expert."""
        return expert_owner(np.arange(self.physical), experts=self.physical, ep_size=self.ep_size)

    @property
    def digest(self) -> str:
        """Six hexadecimal digits that stand for the map in labels."""
        return hashlib.sha256(np.array([self.ep_size, *self.slots], dtype="<i8").tobytes()).hexdigest()[:6]

    def held_by(self, ep_rank: int) -> tuple[int, ...]:
        """The logical experts in a rank's slots."""
        return tuple(np.array(self.slots)[self.rank_P == ep_rank].tolist())

    def load_R(self, copies_E: Sequence[float]) -> np.ndarray:
        """float64 `[R]`: each rank's copies, if an expert's are shared evenly among its replicas.

        Args:
            copies_E: copies of each logical expert, such as `traffic.copies_E` counts them.
        """
        share_P = (np.asarray(copies_E, dtype=float) / self.replicas_E)[list(self.slots)]
        return np.bincount(self.rank_P, weights=share_P, minlength=self.ep_size)

    def physical_ids(self, experts_TK: np.ndarray, *, rank: int, first: int = 0, pick: str = "by_token") -> np.ndarray:
        """int64 `[T, K]`: the physical expert for each choice of `rank`'s tokens.

        Args:
            experts_TK: logical ids.
            first: number of the first of these tokens.
            pick: which replica: `by_token` (token + rank, modulo the replicas), `by_position` (token K + choice, modulo
                the replicas, as vLLM 0.33 does), or `nearest` (the sender's own, where it has one; else by token).

        Raises:
            Refused: an unknown way to pick.
        """
        how = choose(pick, PICKS, "pick of a replica")
        chosen_TK = np.asarray(experts_TK)
        token_TK = np.broadcast_to(first + np.arange(len(chosen_TK))[:, None], chosen_TK.shape)
        number_TK = token_TK + rank
        if how == "by_position":
            number_TK = token_TK * chosen_TK.shape[1] + np.arange(chosen_TK.shape[1])
        found_TK = self._slots_EN[chosen_TK, number_TK % self.replicas_E[chosen_TK]]
        if how == "nearest":
            own_E = self._own_E(rank)
            found_TK = np.where(own_E[chosen_TK] >= 0, own_E[chosen_TK], found_TK)
        return found_TK

    def loads_from(self, before: Placement) -> pd.DataFrame:
        """What each rank has to load when this placement follows `before`: columns `rank, experts`.

        An expert that the rank held already is copied within it or stays, and is not counted.
        """
        fresh = [len(set(self.held_by(r)) - set(before.held_by(r))) for r in range(self.ep_size)]
        return pd.DataFrame({"rank": range(self.ep_size), "experts": fresh})

    def to_frame(self) -> pd.DataFrame:
        """One row per physical expert: `physical, rank, expert, replicas`."""
        held = np.array(self.slots)
        return pd.DataFrame(
            {"physical": range(self.physical), "rank": self.rank_P, "expert": held, "replicas": self.replicas_E[held]}
        )

    def __str__(self) -> str:
        return f"{self.name}.{self.digest}"

    @property
    def _slots_EN(self) -> np.ndarray:
        """int64 `[E, most replicas]`: physical ids of each expert; what is beyond its replicas is never read."""
        table_EN = np.zeros((self.experts, self.replicas_E.max()), dtype=np.int64)
        seen_E = np.zeros(self.experts, dtype=np.int64)
        for physical, expert in enumerate(self.slots):
            table_EN[expert, seen_E[expert]] = physical
            seen_E[expert] += 1
        return table_EN

    def _own_E(self, rank: int) -> np.ndarray:
        """int64 `[E]`: a slot of `rank` that holds each expert, -1 where none does."""
        own_E = np.full(self.experts, -1)
        mine = np.flatnonzero(self.rank_P == rank)
        own_E[np.array(self.slots)[mine]] = mine
        return own_E


def _in_order(experts: int, redundant: int) -> tuple[int, ...]:
    require_count("experts", experts)
    extra = require_count("redundant", redundant, least=0, remedy="give 0 or more replicas")
    return (*range(experts), *(slot % experts for slot in range(extra)))


def _dealt(held: tuple[int, ...], ep_size: int) -> tuple[int, ...]:
    """The same experts, the n-th of them on rank n mod R."""
    ranks = require_count("ep_size", ep_size, most=MOST_RANKS)
    return tuple(expert for rank in range(ranks) for expert in held[rank::ranks])

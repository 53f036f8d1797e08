"""Padding: rows of a batch that carry no token, the expert id that they say, and the rank that such an id leads to.

Engines pad batches to the size of a CUDA graph, or to the fullest data-parallel rank, and mark the padding by an expert
id. FlashInfer 0.7.2 does not check ids. It divides them by a rank's share of the experts, and division in C truncates
towards zero: `-1 / share` is 0, so padding of id -1 goes to EP rank 0, one row each (FlashInfer #4017, which would drop
it, as DeepEP does). Id E leads to no rank: one-sided reads a pointer from beside its table, two-sided sends nothing.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from mnnvl_lab.arguments import as_axis, whole_in
from mnnvl_lab.errors import Refused, choose, is_whole, named_fields, require_count, shown
from mnnvl_lab.layout import expert_owner

INVALID_IDS = ("refuse", "as_kernel", "drop")
"""What an exchange does with ids of padding: none may come; they go where the kernel sends them; they go nowhere."""
NUMBER_OF_EXPERTS = "E"
EQUAL = "equal"
"""Stands for the counts of ranks that all have the same."""


@named_fields
@dataclass(frozen=True, kw_only=True)
class Padding:
    """Rows behind the tokens of each rank's batch.

    Attributes:
        rows: padding rows of every rank, or one count per ep_rank.
        expert_id: what each of their choices says: -1, `E` (the number of experts), or the id of a real expert, from
            which on they choose top_k experts in turn.
        invalid_ids: what the transport does with -1 and E: `as_kernel` (FlashInfer 0.7.2) or `drop` (FlashInfer #4017).

    Raises:
        Refused: a value is out of range.
    """

    rows: int | tuple[int, ...]
    expert_id: int | str = -1
    invalid_ids: str = "as_kernel"

    def __post_init__(self):
        object.__setattr__(self, "rows", counts("padding rows", self.rows))
        object.__setattr__(self, "expert_id", _expert_id(self.expert_id))
        object.__setattr__(self, "invalid_ids", choose(self.invalid_ids, INVALID_IDS[1:], "handling of invalid ids"))

    @classmethod
    def to_fullest(cls, tokens: tuple[int, ...], **more: object) -> Padding:
        """Padding that brings every rank to the fullest rank's count, as data-parallel engines do."""
        return cls(rows=tuple(max(tokens) - count for count in counts("tokens", tuple(tokens))), **more)

    @classmethod
    def from_row(cls, row: Mapping[str, object]) -> Padding | None:
        """The padding of a record's row; None without any."""
        most = int(row.get("padding_rows", 0))
        if not most:
            return None
        said = str(row["padding_counts"])
        handling = str(row["invalid_ids"])
        return cls(
            rows=most if said == EQUAL else tuple(map(int, said.split(","))),
            expert_id=str(row["padding_id"]),
            invalid_ids="as_kernel" if handling == "refuse" else handling,
        )

    @property
    def is_invalid(self) -> bool:
        """Whether the id is no expert's."""
        return self.expert_id in (-1, NUMBER_OF_EXPERTS)

    @property
    def handling(self) -> str:
        """Of `INVALID_IDS`, what a transport has to be opened with."""
        return self.invalid_ids if self.is_invalid else "refuse"

    @property
    def most_rows(self) -> int:
        return max(as_counts(self.rows))

    @property
    def columns(self) -> dict[str, object]:
        """What a record says of it."""
        return {
            "padding_rows": self.most_rows,
            "padding_counts": written(self.rows),
            "padding_id": str(self.expert_id),
        }

    def ids_PK(self, count: int, *, experts: int, top_k: int) -> np.ndarray:
        """int32 `[P, K]`: what `count` padding rows choose.

        Raises:
            Refused: the id is above every expert's.
        """
        if self.expert_id == NUMBER_OF_EXPERTS:
            return np.full((count, top_k), experts, dtype=np.int32)
        if self.expert_id >= experts:
            raise Refused(f"padding of expert {self.expert_id}: experts are below {experts}; name one of them, or -1")
        choices = np.full(top_k, -1) if self.expert_id < 0 else (self.expert_id + np.arange(top_k)) % experts
        return np.tile(choices.astype(np.int32), (count, 1))


NO_PADDING: Mapping[str, object] = {"padding_rows": 0, "padding_counts": EQUAL, "padding_id": "none"}


def kernel_target(expert_id: int, *, experts: int, ep_size: int) -> int:
    """The target rank that the one-sided kernel computes for any id, in range or not.

    `compute_target_rank_id` of `moeAlltoAllKernels.cu`: the first `experts % ep_size` ranks own `base + 1` experts, the
    others `base`. Two-sided's prepare divides by `experts / ep_size` likewise. A result outside `[0, ep_size)` is no
    rank: one-sided reads a pointer from beside its table and writes through it.
    """
    base, remainder = divmod(experts, ep_size)
    split = remainder * (base + 1)
    if remainder and expert_id < split:
        return _divide(expert_id, base + 1)
    return remainder + _divide(expert_id - split, base)


def target_ranks(ids: np.ndarray, *, experts: int, ep_size: int, invalid_ids: str = "refuse") -> np.ndarray:
    """int64, the shape of `ids`: the rank of each choice; -1 for a choice that is sent nowhere.

    Raises:
        Refused: ids out of range that are to be refused.
    """
    ids = np.asarray(ids)
    if invalid_ids == "refuse":
        return expert_owner(ids, experts=experts, ep_size=ep_size)
    is_valid = (ids >= 0) & (ids < experts)
    targets = np.where(is_valid, expert_owner(np.where(is_valid, ids, 0), experts=experts, ep_size=ep_size), -1)
    if invalid_ids == "as_kernel":
        for stranger in np.unique(ids[~is_valid]):
            target = kernel_target(int(stranger), experts=experts, ep_size=ep_size)
            targets[ids == stranger] = target if 0 <= target < ep_size else -1
    return targets


def counts(name: str, value: object) -> int | tuple[int, ...]:
    """A count for every rank, or one per rank, as they are kept.

    Raises:
        Refused: a count is below 0 or no whole number.
    """
    rule = {"least": 0, "remedy": "give 0 or more for each rank"}
    if is_whole(value):
        return require_count(name, value, **rule)
    return tuple(require_count(name, n, **rule) for n in as_axis(name, value))


def as_counts(value: int | tuple[int, ...]) -> tuple[int, ...]:
    return value if isinstance(value, tuple) else (value,)


def written(value: int | tuple[int, ...]) -> str:
    """Counts as a record says them, such as `96,0`; `equal` where all ranks have as many."""
    each = as_counts(value)
    return ",".join(map(str, each)) if len(set(each)) > 1 else EQUAL


def _divide(a: int, b: int) -> int:
    """As in C: towards zero."""
    return a // b if a >= 0 else -(-a // b)


def _expert_id(value: object) -> int | str:
    if isinstance(value, str):
        if value.strip().upper() == NUMBER_OF_EXPERTS:
            return NUMBER_OF_EXPERTS
        value = whole_in(value)
    if is_whole(value) and value >= -1:
        return int(value)
    raise Refused(f"padding of expert {shown(value)}: give -1, 'E' for the number of experts, or the id of an expert")

"""A routing that repeats a recorded table."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field
from typing import ClassVar

import numpy as np

from mnnvl_lab.errors import Refused
from mnnvl_lab.routing.base import Router, Routing


@dataclass(frozen=True, eq=False)
class Replay(Routing):
    """Choices that were recorded: token t of rank r is row t R + r of the table, which repeats.

    Args:
        table_TK: integers `[tokens, K]`, one row a token, distinct within a row.

    Raises:
        Refused: the table is not of that form, or is asked for another K or fewer experts.
    """

    table_TK: np.ndarray = field(repr=False)
    label: ClassVar[str] = "replay"

    def __post_init__(self):
        table_TK = np.array(self.table_TK)
        if table_TK.ndim != 2 or not table_TK.size or table_TK.dtype.kind not in "iu":
            raise Refused(f"replay table is {table_TK.dtype} {list(table_TK.shape)}: give integers [tokens, top_k]")
        ordered = np.sort(table_TK, axis=1)
        if (ordered[:, 1:] == ordered[:, :-1]).any() or ordered.min() < 0:
            raise Refused("replay table names an expert twice in a row, or below 0: a token's experts are distinct ids")
        table_TK = table_TK.astype(np.int32)
        table_TK.flags.writeable = False
        object.__setattr__(self, "table_TK", table_TK)

    @property
    def digest(self) -> str:
        """Eight hexadecimal digits that stand for the table in labels."""
        shape = str(self.table_TK.shape).encode()
        return hashlib.sha256(shape + self.table_TK.tobytes()).hexdigest()[:8]

    def _choose(self, router: Router, tokens: slice) -> np.ndarray:
        if self.table_TK.shape[1] != router.top_k or self.table_TK.max() >= router.experts:
            raise Refused(
                f"replay table has top_k {self.table_TK.shape[1]} and experts up to {self.table_TK.max()}, "
                f"asked for top_k {router.top_k} of {router.experts} experts: ask for the recorded shape"
            )
        rows = np.arange(tokens.start, tokens.stop) * router.ep_size + router.rank
        return self.table_TK[rows % len(self.table_TK)]

    def __str__(self):
        return f"{self.label}:{self.digest}"

    def __eq__(self, other):
        return isinstance(other, Replay) and np.array_equal(self.table_TK, other.table_TK)

    def __hash__(self):
        return hash(self.digest)

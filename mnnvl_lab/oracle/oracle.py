"""Oracle: the expected result of a round, computed from all ranks' inputs without communication."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

import numpy as np

from mnnvl_lab.errors import Refused, named_fields
from mnnvl_lab.oracle import kernel_rules, payload
from mnnvl_lab.oracle.kernel_rules import partial_factor, reduce_slots
from mnnvl_lab.oracle.payload import require_rounding, to_fp8_e4m3
from mnnvl_lab.routing.traffic import Load

CHUNK_BYTES = 2**21  # of one slot: K of them are alive at once and should stay in the cache


@named_fields
@dataclass(frozen=True, kw_only=True)
class Oracle:
    """The truth about one round of one load.

    Every token's row is `payload.rows`; a rank multiplies it by `partial_factor` and rounds: its partial.

    Attributes:
        load: routing, token counts, seed.
        experts, top_k, hidden, ep_size: E, K, H, R.
        combine_dtype: what partials and the result are rounded to: `bf16`, `fp16` or `fp32`.
        active_ranks: ep_ranks that take part; None for all. The others send nothing and get nothing.
        low_precision_combine: partials travel as fp8 e4m3, cast with saturation and no scale; the result is bf16.

    Raises:
        Refused: an unknown dtype, or active ranks that do not exist.
    """

    load: Load
    experts: int
    top_k: int
    hidden: int
    ep_size: int
    combine_dtype: str = "bf16"
    active_ranks: tuple[int, ...] | None = None
    low_precision_combine: bool = False
    _targets: dict[int, np.ndarray] = field(default_factory=dict, init=False, repr=False, compare=False)

    def __post_init__(self):
        require_rounding(self.combine_dtype)
        self.load.rows_R(self.ep_size)
        if any(not 0 <= rank < self.ep_size for rank in self.active_ranks or ()):
            raise Refused(f"active_ranks are {self.active_ranks}: each must lie in [0, ep_size = {self.ep_size})")

    def experts_TK(self, rank: int) -> np.ndarray:
        """int32 `[T, K]`: what `rank`'s tokens chose."""
        return self.load.experts_TK(rank, experts=self.experts, top_k=self.top_k, ep_size=self.ep_size)

    def targets_TK(self, rank: int) -> np.ndarray:
        """int32 `[T, K]`: `dispatch.target_ranks` of `rank`'s tokens; all -1 for a rank that takes no part."""
        if rank not in self._targets:
            rules = {"experts": self.experts, "ep_size": self.ep_size, "active_ranks": self.active_ranks}
            rules["invalid_ids"] = "refuse" if self.load.padding is None else self.load.padding.handling
            targets_TK = kernel_rules.target_ranks(self.experts_TK(rank), **rules)
            self._targets[rank] = targets_TK if self._is_active(rank) else np.full_like(targets_TK, -1)
        return self._targets[rank]

    def sent_tokens(self, source: int, target: int) -> np.ndarray:
        """int64, ascending: the tokens that `source` sends to `target`."""
        return kernel_rules.sent_tokens(self.targets_TK(source), target)

    def received(self, target: int) -> dict[int, np.ndarray]:
        """For each source the tokens, ascending, that dispatch brings to `target`. Their order there is not fixed."""
        return {source: self.sent_tokens(source, target) for source in range(self.ep_size)}

    def counts_RR(self) -> np.ndarray:
        """int64 `[R, R]`: rows that each source sends to each target."""
        return kernel_rules.counts_RR([self.targets_TK(rank) for rank in range(self.ep_size)], ep_size=self.ep_size)

    def rows(self, rank: int, tokens: payload.Tokens | None = None) -> np.ndarray:
        """float32 `[T, H]`: the rows of `rank`'s tokens, or of some of them, before dispatch."""
        tokens = self.load.rows_R(self.ep_size)[rank] if tokens is None else tokens
        return payload.rows(seed=self.load.seed, rank=rank, tokens=tokens, hidden=self.hidden)

    def partials(self, target: int, source: int) -> np.ndarray:
        """float32 `[n, H]`: what `target` makes of the rows of `received(target)[source]`, as they travel back."""
        tokens = self.sent_tokens(source, target)
        return self._as_sent(self.rows(source, tokens) * self._factors_TR(source)[tokens, target, None])

    def combined(self, rank: int) -> np.ndarray:
        """float32 `[T, H]`: what combine returns to `rank`, to the last bit.

        The order of additions is the one-sided kernel's. Two-sided leaves it to `torch.sum`, which need not agree where
        a token has more than two partials: see `order_free` and `combined_float64`.
        """
        final = require_rounding("bf16" if self.low_precision_combine else self.combine_dtype)
        return self._combine(rank, np.float32, lambda slots: final(reduce_slots(slots)))

    def combined_float64(self, rank: int) -> np.ndarray:
        """float64 `[T, H]`: the same partials added up without rounding."""
        return self._combine(rank, np.float64, lambda slots: sum(slot.astype(np.float64) for slot in slots))

    def order_free(self, rank: int) -> np.ndarray:
        """bool `[T]`: tokens with at most two partials, whose float32 sum is the same in whatever order."""
        return (self.targets_TK(rank) >= 0).sum(axis=1) <= 2

    def _combine(self, rank: int, dtype: type, reduce: Callable) -> np.ndarray:
        self._require_active(rank)
        combined_TH = np.empty((len(self.targets_TK(rank)), self.hidden), dtype=dtype)
        for tokens, slots in self._slots(rank):
            combined_TH[tokens] = reduce(slots)
        return combined_TH

    def _slots(self, rank: int) -> Iterator[tuple[slice, list[np.ndarray]]]:
        """The K slots `[t, H]` of one chunk of tokens after the other; an empty slot holds +0.0."""
        targets_TK, factors_TR, rows_TH = self.targets_TK(rank), self._factors_TR(rank), self.rows(rank)
        step = max(1, CHUNK_BYTES // (4 * self.hidden))
        for start in range(0, len(rows_TH), step):
            tokens = slice(start, start + step)
            slots = []
            for target_T in targets_TK[tokens].T:
                held = np.flatnonzero(target_T >= 0)
                slot_TH = np.zeros_like(rows_TH[tokens])
                scale_T = factors_TR[tokens][held, target_T[held]]
                slot_TH[held] = self._as_sent(rows_TH[tokens][held] * scale_T[:, None])
                slots.append(slot_TH)
            yield tokens, slots

    def _factors_TR(self, source: int) -> np.ndarray:
        """float32 `[T, R]`: what each rank multiplies each of `source`'s rows by."""
        chosen, weights = self.experts_TK(source), self.load.weights_TK(source, top_k=self.top_k)
        shape = {"experts": self.experts, "ep_size": self.ep_size}
        return np.stack([partial_factor(chosen, weights, ep_rank=r, **shape) for r in range(self.ep_size)], axis=1)

    def _as_sent(self, partial: np.ndarray) -> np.ndarray:
        rounded = require_rounding(self.combine_dtype)(partial)
        return to_fp8_e4m3(rounded) if self.low_precision_combine else rounded

    def _is_active(self, rank: int) -> bool:
        return self.active_ranks is None or rank in self.active_ranks

    def _require_active(self, rank: int) -> None:
        if not self._is_active(rank):
            raise Refused(f"rank {rank} is none of active_ranks {self.active_ranks}: it combines nothing; ask another")

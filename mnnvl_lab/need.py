"""What a workspace has to carry: ranks, tokens and bytes of one MoE layer's exchange, whatever mode carries it."""

from __future__ import annotations

from dataclasses import dataclass

from mnnvl_lab.layout import Layout
from mnnvl_lab.model import FORMATS, Part

COMBINE_BYTES = {"bf16": 2, "fp16": 2, "fp32": 4}


@dataclass(frozen=True, kw_only=True)
class Need:
    """The sizes of an exchange, from which bytes and limits follow.

    Attributes:
        layout: gives the EP group and its size R.
        max_tokens: the most tokens a rank may send in a round; sizes the one-sided workspace.
        hidden, experts, top_k: H, E, K.
        format: dispatch format, a name of `mnnvl_lab.model.FORMATS` (`bf16`, `fp8_block`, ...).
        combine_dtype: dtype of the rows that combine adds up: `bf16`, `fp16` or `fp32`.
        extra_payload_bytes: bytes a token of each further payload that travels along.
        low_precision_combine: partial sums travel as fp8 e4m3 without a scale (one-sided).
        eplb_stats_experts: experts whose load statistics travel along with dispatch; 0 for none (one-sided).
        sm_limit: multiprocessors that the two-sided kernels may use; None for all.
    """

    layout: Layout
    max_tokens: int
    hidden: int
    experts: int
    top_k: int
    format: str = "bf16"
    combine_dtype: str = "bf16"
    extra_payload_bytes: tuple[int, ...] = ()
    low_precision_combine: bool = False
    eplb_stats_experts: int = 0
    sm_limit: int | None = None

    @property
    def ep_size(self) -> int:
        return self.layout.ep_size

    @property
    def payload_parts(self) -> tuple[Part, ...]:
        """Dtype and width of each payload: rows, scales, extras (ids and weights travel as two more)."""
        extras = (Part(name=f"extra {i}", dtype="uint8", width=n) for i, n in enumerate(self.extra_payload_bytes))
        return (*FORMATS[self.format].parts(self.hidden), *extras)

    @property
    def dispatch_bytes_per_token(self) -> int:
        """Bytes that one token's row takes in dispatch: payloads, int32 ids and float32 weights."""
        return sum(part.row_bytes for part in self.payload_parts) + 8 * self.top_k

    @property
    def combine_bytes_per_token(self) -> int:
        return self.hidden * COMBINE_BYTES[self.combine_dtype]

    @property
    def moved_row_bytes(self) -> dict[str, int]:
        """Bytes a row of each tensor that two_sided moves on its own."""
        return {part.name: part.row_bytes for part in self.payload_parts} | {"combine": self.combine_bytes_per_token}

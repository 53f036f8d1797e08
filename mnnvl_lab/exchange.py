"""An exchange (shapes, mode, options), and what goes through it: batches, received rows, the round's handle."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from mnnvl_lab.errors import named_fields
from mnnvl_lab.layout import Layout
from mnnvl_lab.model import FORMATS, Part

if TYPE_CHECKING:
    import torch

COMBINE_BYTES = {"bf16": 2, "fp16": 2, "fp32": 4}


@named_fields
@dataclass(frozen=True, kw_only=True)
class ExchangeShape:
    """The sizes of an exchange, from which bytes and limits follow.

    Attributes:
        layout: gives the EP group and its size R.
        max_tokens: the most tokens that a rank may send in a round; sizes the one-sided workspace.
        hidden, experts, top_k: H, E, K.
        format: dispatch format, a name of `mnnvl_lab.model.FORMATS` (`bf16`, `fp8_block`, ...).
        combine_dtype: dtype of the rows that combine adds up: `bf16`, `fp16` or `fp32`.
        extra_payload_bytes: bytes per token of each further payload that travels along.
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


MODES = ("one_sided", "two_sided", "pico", "allgather_reducescatter", "all_to_all")
FABRICS = ("nvlink", "shared_gpu", "host")


@named_fields
@dataclass(frozen=True, kw_only=True)
class Exchange(ExchangeShape):
    """The standing part of dispatch and combine, equal on all ranks for as long as a transport is open.

    Attributes:
        mode: one of `MODES`.
        workspace_group: the group whose communicator allocates the workspace. Only `ep` is right; another one shows
            what the kernels then say.
        payload_in_workspace: the experts write their result straight into the workspace (one-sided).
        enable_rank_mask: rounds may leave out dead ranks (one-sided).
        without_pdl: each kernel is launched when the one before it has ended; by default it may be set up earlier
            (programmatic dependent launch, one-sided).
        mended_prepare: prepare by FlashInfer's kernel with the second publication of a full step taken out (two-sided
            on GPUs; `mnnvl_lab.transport.flashinfer.mended`).
        invalid_ids: what becomes of rows that say expert id -1 or E, as padding does: `refuse` the batch, send them
            `as_kernel` of FlashInfer 0.7.2, or `drop` them (on `host`); see `mnnvl_lab.routing.padding`.

    The rest are those of `ExchangeShape`.
    """

    mode: str
    workspace_group: str = "ep"
    payload_in_workspace: bool = False
    enable_rank_mask: bool = False
    without_pdl: bool = False
    mended_prepare: bool = False
    invalid_ids: str = "refuse"

    @property
    def workspace_options(self) -> tuple[str, ...]:
        """Options in use that only the one-sided workspace has."""
        own = ("payload_in_workspace", "enable_rank_mask", "without_pdl")
        names = ("low_precision_combine", "eplb_stats_experts", *own)
        return tuple(name for name in names if getattr(self, name))


@dataclass(frozen=True, kw_only=True)
class Batch:
    """What one rank sends in one round.

    Attributes:
        payloads: tensors `[T, width]`, contiguous; the first holds the tokens' rows in the dispatch format, then its
            scales if the format has any, then the extra payloads.
        experts_TK: int32 `[T, K]`, the chosen experts.
        weights_TK: float32 `[T, K]`, the router's weights.
        runtime_max_tokens: M, tokens of the fullest rank of this round; equal on all ranks.
        eplb_stats_E: int32 `[eplb_stats_experts]` or None.
        active_ranks: ep_ranks that take part; None for all (needs `enable_rank_mask`).
    """

    payloads: tuple[torch.Tensor, ...]
    experts_TK: torch.Tensor
    weights_TK: torch.Tensor
    runtime_max_tokens: int
    eplb_stats_E: torch.Tensor | None = None
    active_ranks: tuple[int, ...] | None = None

    @property
    def tokens(self) -> int:
        return self.experts_TK.shape[0]


@dataclass(frozen=True, kw_only=True)
class Handle:
    """A round between its dispatch and its combine, as data; each transport adds what its combine needs.

    Attributes:
        batch: what this rank sent.
        rows: rows of `Received`, with its gaps, and so of the partial sums that combine takes.
    """

    batch: Batch
    rows: int


@dataclass(frozen=True, kw_only=True)
class Received:
    """What dispatch brought to one rank. Rows of one source lie together; their order is the transport's.

    Attributes:
        payloads: tensors `[rows, width]` in the order of `Batch.payloads`. May be views of the workspace: valid until
            the next dispatch.
        experts: int32 `[rows, K]`, the experts that each row's token chose (global ids). With two_sided those that this
            rank owns: prepare writes E over the others.
        weights: float32 `[rows, K]`.
        counts_R: rows that came from each source.
        starts_R: first row of each source's block; `rows - starts` need not be tight (one-sided leaves gaps, whose
            content is stale).
        handle: the round, for `Transport.partials_buffer` and `Transport.combine`.
    """

    payloads: tuple[torch.Tensor, ...]
    experts: torch.Tensor
    weights: torch.Tensor
    counts_R: tuple[int, ...]
    starts_R: tuple[int, ...]
    handle: Handle
    eplb_stats_RE: torch.Tensor | None = None

    def block(self, source: int) -> slice:
        """The rows that `source` sent."""
        return slice(self.starts_R[source], self.starts_R[source] + self.counts_R[source])

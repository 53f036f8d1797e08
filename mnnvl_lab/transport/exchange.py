"""What a transport is opened for, and what one rank sends in one round."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from mnnvl_lab.need import Need

if TYPE_CHECKING:
    import torch

MODES = ("one_sided", "two_sided", "allgather_reducescatter", "all_to_all")
FABRICS = ("nvlink", "shared_gpu", "host")


@dataclass(frozen=True, kw_only=True)
class Exchange(Need):
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
            on GPUs; `mnnvl_lab.transport.mended`).

    The rest are those of `Need`.
    """

    mode: str
    workspace_group: str = "ep"
    payload_in_workspace: bool = False
    enable_rank_mask: bool = False
    without_pdl: bool = False
    mended_prepare: bool = False

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
    """

    payloads: tuple[torch.Tensor, ...]
    experts: torch.Tensor
    weights: torch.Tensor
    counts_R: tuple[int, ...]
    starts_R: tuple[int, ...]
    eplb_stats_RE: torch.Tensor | None = None

    def block(self, source: int) -> slice:
        """The rows that `source` sent."""
        return slice(self.starts_R[source], self.starts_R[source] + self.counts_R[source])

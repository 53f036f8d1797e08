"""A small round that any layer can run: its inputs, what the experts make of them, and the right sums."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from mnnvl_lab.transport.flashinfer.memory import GroupBackend

if TYPE_CHECKING:
    import torch

    from mnnvl_lab.ranks.group import Group
    from mnnvl_lab.ranks.rank import Rank

TOKENS, HIDDEN, TOP_K, EXPERTS_PER_RANK = 16, 256, 2, 4


@dataclass(frozen=True, kw_only=True)
class Call:
    """One rank's side of a small round: every expert returns its row, so the right sum is top_k times the row.

    Attributes:
        ep, group: the EP group, and the group whose communicator the layer gets.
        sm_limit: multiprocessors for the two-sided layers; None for all.
        vllm_root: folder of vLLM's package, for its layers; empty to look for it here.
    """

    rank: Rank
    ep: Group
    group: Group
    sm_limit: int | None = None
    vllm_root: str = ""

    @property
    def experts(self) -> int:
        return EXPERTS_PER_RANK * self.ep.size

    @property
    def backend(self) -> GroupBackend:
        return GroupBackend(self.group)

    @property
    def ids(self) -> torch.Tensor:
        """int32 `[TOKENS, TOP_K]`: two experts of neighbouring ranks."""
        import torch

        first = torch.arange(TOKENS, dtype=torch.int32, device=self.rank.device) * 3 + self.ep.rank
        return torch.stack([first, first + EXPERTS_PER_RANK], dim=1) % self.experts

    @property
    def weights(self) -> torch.Tensor:
        import torch

        return torch.ones(TOKENS, TOP_K, device=self.rank.device)

    @property
    def rows(self) -> torch.Tensor:
        """bf16 `[TOKENS, HIDDEN]`, small integers: their sums are exact."""
        import torch

        tokens = torch.arange(TOKENS, device=self.rank.device)[:, None] * 7 + self.ep.rank * 31
        return ((tokens + torch.arange(HIDDEN, device=self.rank.device)) % 8).to(torch.bfloat16)

    def partials(self, rows: torch.Tensor, ids: torch.Tensor) -> torch.Tensor:
        """What this rank's experts make of received rows: each row, once for every expert of it that lives here."""
        first = self.ep.rank * EXPERTS_PER_RANK
        here = ((ids >= first) & (ids < first + EXPERTS_PER_RANK)).sum(-1, keepdim=True)
        return (rows * here).to(rows.dtype)

    def right(self, combined: torch.Tensor) -> bool:
        return bool((combined == self.rows * TOP_K).all())


def zero(call: Call, *workspaces: torch.Tensor) -> None:
    """Upstream trusts fresh memory to be zero; memory that this process has used before need not be."""
    import torch

    for workspace in workspaces:
        workspace[call.group.rank].view(torch.uint8).zero_()
    torch.cuda.synchronize(call.rank.device)
    call.group.barrier()


def mnnvl_moe_prepare(call: Call, workspace: torch.Tensor):
    """Routes and ids. Not launched over a short workspace: prepare does not check it and would leave the mapping."""
    import torch
    from flashinfer.comm.trtllm_alltoall import MnnvlMoe, MoEAlltoallInfo

    if call.group.size != call.ep.size:
        nothing = torch.zeros(call.ep.size, dtype=torch.int32, device=call.rank.device)
        return MoEAlltoallInfo(None, *[nothing] * 5, TOKENS * call.ep.size), call.ids
    info, ids, _, _ = MnnvlMoe.mnnvl_moe_alltoallv_prepare_without_allgather(
        call.ids, call.weights, None, workspace, TOKENS, call.ep.rank, call.ep.size, *[call.experts] * 2, TOP_K
    )
    return info, ids

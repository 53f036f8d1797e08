"""The wrong group through FlashInfer's own classes: where each layer catches it, and that the right group works.

`MoeAlltoAll`, `MnnvlMoe` and `flashinfer.moe_ep` get the communicator of a group of the layout, as a serving engine
hands it to them (vLLM pull request 40893). They keep process-wide caches, which `forget` empties afterwards.
"""

from __future__ import annotations

import gc
import warnings
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

from mnnvl_lab.errors import Refused
from mnnvl_lab.transport.flashinfer.base import first_line
from mnnvl_lab.transport.flashinfer.memory import GroupBackend, forget_fabric_support
from mnnvl_lab.transport.flashinfer.two_sided import fix_sm_limit

if TYPE_CHECKING:
    import torch

    from mnnvl_lab.ranks.rank import Group, Rank

TOKENS, HIDDEN, TOP_K, EXPERTS_PER_RANK = 16, 256, 2, 4


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """How a layer took a communicator.

    Attributes:
        layer: FlashInfer's class.
        group: name of the group whose communicator it got.
        phase: where it failed, `open`, `dispatch` or `combine`; None if it did not.
        words: what it said then, word for word.
        right: whether dispatch and combine gave the right sums; None if it failed.
    """

    layer: str
    group: str
    phase: str | None = None
    words: str = ""
    right: bool | None = None


@dataclass(frozen=True, kw_only=True)
class Call:
    """One rank's side of a small round: every expert returns its row, so the right sum is top_k times the row."""

    rank: Rank
    ep: Group
    group: Group
    sm_limit: int | None = None

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


def attempt(rank: Rank, *, layer: str, group: str = "ep", sm_limit: int | None = None) -> Outcome:
    """Rank function: one of `LAYERS` with the communicator of `group`. Collective over the EP group.

    Args:
        sm_limit: multiprocessors for the two-sided layers, as in `Exchange`.

    Raises:
        Refused: no such layer, or another `sm_limit` than the process has used.
    """
    if layer not in LAYERS:
        raise Refused(f"layer is {layer!r}: it must be one of {', '.join(LAYERS)}")
    call = Call(rank=rank, ep=rank.group("ep"), group=rank.group(group), sm_limit=sm_limit)
    result = partial(Outcome, layer=layer, group=group)
    phase = None
    forget_fabric_support(call.backend)
    try:
        with warnings.catch_warnings(), closing(LAYERS[layer](call)) as steps:
            warnings.simplefilter("ignore", DeprecationWarning)  # they are what is looked at
            while True:
                phase = next(steps)
    except StopIteration as end:
        return result(right=end.value)
    except Refused:
        raise
    except (RuntimeError, ValueError, AssertionError) as error:
        return result(phase=phase, words=first_line(error))
    finally:
        forget(call)


def forget(call: Call) -> None:
    """Empty the classes' caches and free what they held, so that no later layout meets it. Collective."""
    import torch
    from flashinfer.comm.mnnvl import MnnvlMemory
    from flashinfer.comm.trtllm_alltoall import MnnvlMoe
    from flashinfer.comm.trtllm_moe_alltoall import MoeAlltoAll

    torch.cuda.synchronize(call.rank.device)
    call.ep.barrier()
    MoeAlltoAll._WORKSPACE_CACHE.clear()
    for name in ("moe_workspace_tensor", "moe_prepare_workspace_tensor", "moe_workspace", "moe_prepare_workspace"):
        setattr(MnnvlMoe, name, None)
    MnnvlMoe.moe_mapping = MnnvlMemory.comm = MnnvlMemory.config = MnnvlMemory.dev_id = None
    gc.collect()  # MnnvlMemory gives its memory back in __del__
    call.ep.barrier()


def _moe_alltoall(call: Call) -> Iterator[str]:
    yield "open"
    from flashinfer.comm.mapping import Mapping
    from flashinfer.comm.mnnvl import MnnvlConfig
    from flashinfer.comm.trtllm_moe_alltoall import MoeAlltoAll

    R = call.ep.size
    alltoall = MoeAlltoAll(
        Mapping(world_size=R, rank=call.ep.rank, gpus_per_node=R, tp_size=R, moe_ep_size=R),
        max_num_tokens=TOKENS,
        top_k=TOP_K,
        num_experts=call.experts,
        hidden_size=HIDDEN,
        mnnvl_config=MnnvlConfig(comm_backend=call.backend),
    )
    yield "dispatch"
    invalid = {"invalid_token_expert_id": call.experts, "expert_id_payload_index": 1}
    rows, ids, _ = alltoall.dispatch(call.ids, [call.rows, call.ids, call.weights], TOKENS, **invalid)
    yield "combine"
    return call.right(alltoall.combine(call.partials(rows, ids), TOKENS))


def _mnnvl_moe(call: Call) -> Iterator[str]:
    yield "open"
    from flashinfer.comm.mapping import Mapping
    from flashinfer.comm.mnnvl import MnnvlConfig, MnnvlMemory
    from flashinfer.comm.trtllm_alltoall import MnnvlMoe

    MnnvlMemory.initialize()
    fix_sm_limit(call.rank, call.ep, call.sm_limit)
    spans, place = call.group.size, (call.ep.rank, call.ep.size)
    mapping = Mapping(world_size=spans, rank=call.group.rank, gpus_per_node=spans, tp_size=spans)
    config = MnnvlConfig(comm_backend=call.backend)
    fifos = MnnvlMoe.get_moe_workspaces(mapping, config)
    prepare = MnnvlMoe.get_moe_prepare_workspace(mapping, config)
    _zero(call, fifos, prepare)
    yield "dispatch"
    info, ids = _mnnvl_moe_prepare(call, prepare)
    rows = MnnvlMoe.mnnvl_moe_alltoallv(call.rows, info, fifos, *place)
    yield "combine"
    partials = call.partials(rows, ids)
    return call.right(MnnvlMoe.mnnvl_moe_alltoallv_combine(partials, info, fifos, *place, TOP_K, TOKENS))


def _mnnvl_moe_prepare(call: Call, workspace: torch.Tensor):
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


def _moe_ep(call: Call, *, sides: str) -> Iterator[str]:
    yield "open"
    from flashinfer import moe_ep

    if sides == "Two":
        fix_sm_limit(call.rank, call.ep, call.sm_limit)
    bootstrap = moe_ep.BootstrapConfig(
        world_size=call.ep.size, rank=call.ep.rank, device=call.rank.device.index, process_group=call.ep.process_group
    )
    params = moe_ep.MoEEpCommParams(
        num_experts=call.experts,
        top_k=TOP_K,
        max_tokens_per_rank=TOKENS,
        hidden_size=HIDDEN,
        invalid_expert_id=call.experts,
    )
    config = getattr(moe_ep, f"NVLink{sides}SidedConfig")(comm_backend=call.backend)
    alltoall = getattr(moe_ep, f"NVLink{sides}SidedAlltoAll")(bootstrap, params, config)
    if sides == "Two":
        _zero(call, alltoall._workspace, alltoall._prepare_workspace)
    yield "dispatch"
    received_views = alltoall.dispatch(call.rows, call.ids, call.weights)
    yield "combine"
    return call.right(alltoall.combine(call.partials(received_views.hidden_states, received_views.topk_ids)))


LAYERS = {
    "MoeAlltoAll": _moe_alltoall,
    "MnnvlMoe": _mnnvl_moe,
    "moe_ep.NVLinkOneSidedAlltoAll": partial(_moe_ep, sides="One"),
    "moe_ep.NVLinkTwoSidedAlltoAll": partial(_moe_ep, sides="Two"),
}


def _zero(call: Call, *workspaces: torch.Tensor) -> None:
    """Upstream trusts fresh memory to be zero; memory that this process has used before need not be."""
    import torch

    for workspace in workspaces:
        workspace[call.group.rank].view(torch.uint8).zero_()
    torch.cuda.synchronize(call.rank.device)
    call.group.barrier()

"""The wrong group through FlashInfer's own classes: where each layer catches it, and that the right group works.

`MoeAlltoAll`, `MnnvlMoe` and `flashinfer.moe_ep` get the communicator of a group of the layout, as a serving engine
hands it to them (vLLM pull request 40893); so do vLLM's own managers, where vLLM's files are at hand. They keep
process-wide caches, which `forget` empties afterwards.
"""

from __future__ import annotations

import gc
import warnings
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

from mnnvl_lab.errors import Refused, shown
from mnnvl_lab.transport.flashinfer.base import first_line
from mnnvl_lab.transport.flashinfer.memory import forget_fabric_support
from mnnvl_lab.transport.flashinfer.small_round import HIDDEN, TOKENS, TOP_K, Call, mnnvl_moe_prepare, zero
from mnnvl_lab.transport.flashinfer.two_sided import fix_sm_limit
from mnnvl_lab.transport.flashinfer.vllm_managers import (
    ONE_SIDED,
    TWO_SIDED,
    construct,
    one_sided_manager,
    two_sided_manager,
)

if TYPE_CHECKING:
    from mnnvl_lab.ranks.rank import Rank


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """How a layer took a communicator.

    Attributes:
        layer: the class, of FlashInfer or vLLM.
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


def attempt(rank: Rank, *, layer: str, group: str = "ep", sm_limit: int | None = None, vllm_root: str = "") -> Outcome:
    """Rank function: one of `ALL_LAYERS` with the communicator of `group`. Collective over the EP group.

    Args:
        sm_limit: multiprocessors for the two-sided layers, as in `Exchange`.
        vllm_root: folder of vLLM's package, for its layers; looked for on the rank by default.

    Raises:
        Refused: no such layer, or another `sm_limit` than the process has used.
    """
    require_layer(layer)
    call = Call(rank=rank, ep=rank.group("ep"), group=rank.group(group), sm_limit=sm_limit, vllm_root=vllm_root)
    result = partial(Outcome, layer=layer, group=group)
    steps_of = ON_HOST[layer] if rank.fabric == "host" else ALL_LAYERS[layer]
    phase = None
    if rank.fabric != "host":
        forget_fabric_support(call.backend)
    try:
        with warnings.catch_warnings(), closing(steps_of(call)) as steps:
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
        call.ep.barrier() if rank.fabric == "host" else forget(call)


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
    zero(call, fifos, prepare)
    yield "dispatch"
    info, ids = mnnvl_moe_prepare(call, prepare)
    rows = MnnvlMoe.mnnvl_moe_alltoallv(call.rows, info, fifos, *place)
    yield "combine"
    partials = call.partials(rows, ids)
    return call.right(MnnvlMoe.mnnvl_moe_alltoallv_combine(partials, info, fifos, *place, TOP_K, TOKENS))


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
        zero(call, alltoall._workspace, alltoall._prepare_workspace)
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
"""FlashInfer's own classes, each with the steps of a round through it."""
VLLM_LAYERS = {ONE_SIDED: one_sided_manager, TWO_SIDED: two_sided_manager}
"""vLLM's managers, where its files are at hand."""
ALL_LAYERS = LAYERS | VLLM_LAYERS

ON_HOST = {ONE_SIDED: construct}
"""Layers whose first checks need no GPU."""


def require_layer(layer: object) -> None:
    """Check the name of a layer.

    Raises:
        Refused: it is none of `ALL_LAYERS`.
    """
    if layer not in ALL_LAYERS:
        raise Refused(f"layer is {shown(layer)}: it must be one of {', '.join(ALL_LAYERS)}")

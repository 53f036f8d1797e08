"""vLLM's managers as layers of the wrong-group experiment: over the DP group as before #40893, and the EP group since.

The managers are vLLM's own (`vllm_files`). On GPUs they run the small round; without GPUs `construct` opens one as far
as FlashInfer's first checks, which look at the group.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING
from unittest import mock

from mnnvl_lab.transport.flashinfer.small_round import HIDDEN, TOKENS, TOP_K, Call, mnnvl_moe_prepare, zero
from mnnvl_lab.transport.flashinfer.two_sided import fix_sm_limit
from mnnvl_lab.transport.flashinfer.vllm_files import load_managers, vllm_modules

if TYPE_CHECKING:
    from types import ModuleType
    from typing import Any

ONE_SIDED = "vllm.FlashInferNVLinkOneSidedManager"
TWO_SIDED = "vllm.FlashInferNVLinkTwoSidedManager"
GROUPS = ("tp", "dp", "pcp", "ep")


def managers(load, call: Call) -> ModuleType:
    """vLLM's managers, whose handles go over the call's group where that is another than the EP group."""
    return load_managers(load, handles_over=None if call.group.name == "ep" else call.group)


def one_sided_manager(call: Call) -> Iterator[str]:
    """A round through vLLM's one-sided manager; yields its phases."""
    yield "open"
    with vllm_modules(groups_of(call), root=call.vllm_root) as load:
        manager = open_one_sided(managers(load, call), call)
        try:
            yield "dispatch"
            communication = manager.get_communication()
            received = communication.dispatch(call.rows, call.ids, call.weights, max_tokens_per_rank=TOKENS)
            yield "combine"
            partials = call.partials(received.hidden_states, received.topk_ids)
            return call.right(communication.combine(partials))
        finally:
            manager.cleanup()


def open_one_sided(all2all: ModuleType, call: Call, **sizes: int) -> Any:
    """vLLM's one-sided manager of the EP group, initialised for the small round.

    Args:
        sizes: replace `max_num_tokens`, `top_k`, `num_experts` or `hidden_size`.
    """
    manager = all2all.FlashInferNVLinkOneSidedManager(call.ep.process_group)
    shape = {"max_num_tokens": TOKENS, "top_k": TOP_K, "num_experts": call.experts, "hidden_size": HIDDEN}
    manager.initialize(**shape | sizes)
    return manager


def two_sided_manager(call: Call) -> Iterator[str]:
    """A round through vLLM's two-sided manager; yields its phases."""
    yield "open"
    from flashinfer.comm.mnnvl import MnnvlMemory
    from flashinfer.comm.trtllm_alltoall import MnnvlMoe

    MnnvlMemory.initialize()
    fix_sm_limit(call.rank, call.ep, call.sm_limit)
    with vllm_modules(groups_of(call), root=call.vllm_root) as load:
        manager = managers(load, call).FlashInferNVLinkTwoSidedManager(call.ep.process_group)
        try:
            manager.initialize(call.ep.size, call.ep.rank, call.ep.size)
            fifos, prepare = manager.workspace_tensor, manager.prepare_workspace_tensor
            zero(call, fifos, prepare)
            place = (manager.rank, manager.world_size)
            yield "dispatch"
            info, ids = mnnvl_moe_prepare(call, prepare)
            rows = MnnvlMoe.mnnvl_moe_alltoallv(call.rows, info, fifos, *place)
            yield "combine"
            partials = call.partials(rows, ids)
            return call.right(MnnvlMoe.mnnvl_moe_alltoallv_combine(partials, info, fifos, *place, TOP_K, TOKENS))
        finally:
            manager.cleanup()


def construct(call: Call) -> Iterator[str]:
    """vLLM's one-sided manager opened, and no more: on a machine without GPUs FlashInfer's checks end it."""
    yield "open"
    with vllm_modules(groups_of(call), root=call.vllm_root) as load, as_if_gpu_0():
        manager = open_one_sided(managers(load, call), call)
        manager.cleanup()


@contextmanager
def as_if_gpu_0():
    """PyTorch names a device to vLLM though there is none: nothing is run on it before FlashInfer's checks."""
    import torch

    names = {"current_device_index": lambda: 0, "empty_cache": lambda: None, "synchronize": lambda: None}
    with ExitStack() as patches:
        for name, function in names.items():
            patches.enter_context(mock.patch.object(torch.accelerator, name, function))
        yield


def groups_of(call: Call) -> dict[str, Any]:
    """The rank's groups as vLLM knows them, by name."""
    return {name: call.rank.group(name) for name in GROUPS}

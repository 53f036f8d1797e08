"""A package with the interfaces of vLLM 0.33.0 on which its FlashInfer managers stand, for where vLLM is not at hand.

Written for these tests from the interfaces: names, arguments, which group goes where, what is asserted. It is no copy.
"""

from textwrap import dedent

BASE = """
from vllm.logger import init_logger
from vllm.distributed.parallel_state import get_dp_group, get_tp_group, in_the_same_node_as

logger = init_logger(__name__)


class All2AllManagerBase:
    def __init__(self, cpu_group, tcp_store_group=None):
        self.cpu_group, self.dp_group, self.tp_group = cpu_group, get_dp_group(), get_tp_group()
        self.rank, self.world_size = cpu_group.rank(), cpu_group.size()
        self.internode = not all(in_the_same_node_as(cpu_group, source_rank=0))


class Cache:
    pass
"""
COMPAT = """
import torch.distributed as dist
from flashinfer.comm.mnnvl import CommBackend


class CustomCommunicator(CommBackend):
    def __init__(self, group):
        self._group = group

    def Get_rank(self):
        return self._group.rank()

    def Get_size(self):
        return self._group.size()

    def allgather(self, data):
        gathered = [None] * self.Get_size()
        dist.all_gather_object(gathered, data, group=self._group)
        return gathered

    def bcast(self, data, root):
        box = [data]
        dist.broadcast_object_list(box, src=root, group=self._group)
        return box[0]

    def barrier(self):
        dist.barrier(group=self._group)

    def Split(self, color, key):
        return self
"""
MANAGERS = """
from dataclasses import replace

import torch
import torch.distributed as dist
import vllm.envs as envs
from vllm.forward_context import get_forward_context
from vllm.utils.flashinfer import has_flashinfer_nvlink_one_sided, has_flashinfer_nvlink_two_sided

from .base_device_communicator import All2AllManagerBase, Cache


class FlashInferNVLinkTwoSidedManager(All2AllManagerBase):
    def __init__(self, cpu_group, tcp_store_group=None):
        assert has_flashinfer_nvlink_two_sided()
        super().__init__(cpu_group, tcp_store_group)
        self.initialized = False

    def initialize(self, world_size, rank, gpus_per_node):
        from flashinfer.comm import Mapping
        from flashinfer.comm.mnnvl import MnnvlConfig
        from flashinfer.comm.trtllm_alltoall import MnnvlMoe
        from vllm.distributed.device_communicators.mnnvl_compat import CustomCommunicator

        if self.initialized:
            return
        self.mapping = Mapping(world_size, rank, gpus_per_node, tp_size=world_size)
        config = MnnvlConfig(comm_backend=CustomCommunicator(self.cpu_group), fabric_page_size=1 << 29)
        self.workspace_tensor = MnnvlMoe.get_moe_workspaces(self.mapping, config)
        self.prepare_workspace_tensor = MnnvlMoe.get_moe_prepare_workspace(self.mapping, config)
        self.initialized = True

    def ensure_alltoall_workspace_initialized(self):
        if self.world_size <= 1:
            return False
        if not self.initialized:
            self.initialize(
                world_size=self.world_size, rank=self.rank, gpus_per_node=torch.accelerator.device_count
            )
        return self.initialized

    def cleanup(self):
        self.initialized = False


class FlashInferNVLinkOneSidedManager(All2AllManagerBase):
    def __init__(self, cpu_group):
        assert has_flashinfer_nvlink_one_sided()
        super().__init__(cpu_group)
        self.initialized, self.communication = False, None

    def initialize(
        self, max_num_tokens, top_k, num_experts, hidden_size, dispatch_format=None, extra_payload_bytes_per_token=0
    ):
        from flashinfer.moe_ep import (
            BootstrapConfig, MoEEpCommParams, NVLinkOneSidedAlltoAll, NVLinkOneSidedConfig, create_communication
        )
        from vllm.distributed.device_communicators.mnnvl_compat import CustomCommunicator

        if self.initialized:
            assert top_k == self.top_k, "FlashInfer one-sided communication does not support heterogeneous top_k"
            assert num_experts == self.num_experts
        params = MoEEpCommParams(
            num_experts=num_experts, top_k=top_k, max_tokens_per_rank=max_num_tokens, hidden_size=hidden_size,
            dtype=torch.bfloat16, dispatch_format=dispatch_format,
        )
        extra = extra_payload_bytes_per_token
        if self.communication is not None:
            had, config = self.communication.params, self.communication.config
            before = had.dispatch_bytes_per_token + config.extra_payload_bytes_per_token
            now = params.dispatch_bytes_per_token + extra
            if max_num_tokens <= had.max_tokens_per_rank and hidden_size <= had.hidden_size and now <= before:
                return
            wider = hidden_size > had.hidden_size or (hidden_size == had.hidden_size and now >= before)
            params = replace(
                params if wider else had, max_tokens_per_rank=max(max_num_tokens, had.max_tokens_per_rank)
            )
            extra = max(now, before) - params.dispatch_bytes_per_token
            self.cleanup()
        config = NVLinkOneSidedConfig(
            extra_payload_bytes_per_token=extra,
            use_low_precision_combine=envs.VLLM_FLASHINFER_MOE_A2A_LOW_PRECISION_COMBINE,
            comm_backend=CustomCommunicator(self.cpu_group),
        )
        bootstrap = BootstrapConfig(
            world_size=self.world_size, rank=self.rank, device=torch.accelerator.current_device_index(),
            process_group=self.cpu_group,
        )
        self.communication = create_communication(bootstrap, params, backend=config)
        assert isinstance(self.communication, NVLinkOneSidedAlltoAll)
        self.top_k, self.num_experts, self.initialized = top_k, num_experts, True
        dist.barrier(group=self.cpu_group)

    def get_communication(self):
        assert self.communication is not None
        return self.communication

    def cleanup(self):
        if self.communication is not None:
            self.communication.destroy()
            self.communication = None
        self.initialized = False
"""
PREPARE = """
import vllm.model_executor.layers.fused_moe.modular_kernel as mk
from vllm.forward_context import get_forward_context


def get_local_sizes():
    dp_metadata = get_forward_context().dp_metadata
    {absent}
    return dp_metadata.get_chunk_sizes_across_dp_rank()


class PrepareAndFinalize(mk.FusedMoEPrepareAndFinalizeModular):
    pass
"""
FILES = {
    "__init__.py": "raise ImportError('the rest of vLLM is not here')",
    "distributed/device_communicators/__init__.py": "",
    "distributed/device_communicators/base_device_communicator.py": BASE,
    "distributed/device_communicators/mnnvl_compat.py": COMPAT,
    "distributed/device_communicators/all2all.py": MANAGERS,
    "model_executor/layers/fused_moe/prepare_finalize/flashinfer_nvlink_two_sided.py": PREPARE.format(
        absent="assert dp_metadata is not None"
    ),
    "model_executor/layers/fused_moe/prepare_finalize/flashinfer_nvlink_one_sided.py": PREPARE.format(
        absent="if dp_metadata is None:\n        return None"
    ),
}


def write(folder):
    """The package's folder under `folder`."""
    root = folder / "vllm"
    for name, text in FILES.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(dedent(text))
    return root

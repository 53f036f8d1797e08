"""The least number of redundant experts that each layer accepts, by the multiple that it wants of physical experts."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

import pandas as pd

from mnnvl_lab.errors import require_count
from mnnvl_lab.layout import MOST_RANKS
from mnnvl_lab.workspace.kernel_limits import expert_multiple, missing_experts

ANY, EVEN, EVEN_AND_FOUR = "any", "of ep_size", "of ep_size and 4"

RULES: Mapping[tuple[str, str], tuple[str, str]] = MappingProxyType(
    {
        ("FlashInfer kernel", "one_sided"): (ANY, "moeAlltoAllKernels.cu, compute_target_rank_id"),
        ("FlashInfer kernel", "two_sided"): (EVEN_AND_FOUR, "trtllm_alltoall_prepare.cu"),
        ("flashinfer.moe_ep", "one_sided"): (EVEN, "moe_ep/core/comm/communication.py"),
        ("flashinfer.moe_ep", "two_sided"): (EVEN_AND_FOUR, "moe_ep, nvlink_two_sided/communication.py"),
        ("vLLM 0.33", "one_sided"): (EVEN, "all2all.py, through moe_ep; with EPLB also vllm#52435"),
        ("vLLM 0.33", "two_sided"): (EVEN_AND_FOUR, "all2all.py, by the kernel; with EPLB also vllm#52435"),
        ("SGLang 0.5.23", "one_sided"): (EVEN, "srt/eplb/expert_location.py"),
        ("TensorRT-LLM", "one_sided"): (ANY, "communication_factory.py"),
        ("TensorRT-LLM", "two_sided"): (EVEN_AND_FOUR, "communication_factory.py, and the kernel"),
    }
)
"""For each layer and mode: what the number of physical experts must be a multiple of, and where that was read."""


def least_redundant(experts: int, ep_size: int) -> pd.DataFrame:
    """One row per layer and mode: `layer, mode, multiple, redundant, physical, source`.

    Args:
        experts: E, logical experts.
        ep_size: R.

    Raises:
        Refused: a number is out of range.
    """
    require_count("experts", experts)
    ranks = require_count("ep_size", ep_size, most=MOST_RANKS)
    multiples = {ANY: 1, EVEN: ranks, EVEN_AND_FOUR: expert_multiple("two_sided", ranks)}
    rows = []
    for (layer, mode), (rule, source) in RULES.items():
        fewest = max(experts, ranks)  # every rank owns an expert
        redundant = fewest - experts + missing_experts(fewest, multiples[rule])
        numbers = {"multiple": multiples[rule], "redundant": redundant, "physical": experts + redundant}
        rows.append({"layer": layer, "mode": mode} | numbers | {"source": source})
    return pd.DataFrame(rows)

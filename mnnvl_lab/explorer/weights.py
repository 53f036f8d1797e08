"""Weights of the models that are known: what they take of a GPU beside the workspaces, to the per cent.

The routed experts are dealt out to the EP group, everything else is split over TP and repeated per DP rank; both
are split over the pipeline's stages.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

from mnnvl_lab.errors import choose
from mnnvl_lab.layout import Layout
from mnnvl_lab.model import Model

BYTES_PER_PARAMETER: Mapping[str, float] = MappingProxyType({"bf16": 2.0, "fp8": 1.0, "fp4": 0.5 + 1 / 16})
"""Of routed experts; fp4 with one scale byte for 16 values."""
OTHER_BYTES = 2.0
"""Per parameter of attention, shared experts and embeddings, which are mostly kept in bf16."""
PARAMETERS: Mapping[str, tuple[int, float]] = MappingProxyType(
    {
        "deepseek-v3": (2048, 671e9),
        "kimi-k2": (2048, 1026e9),
        "qwen3-235b-a22b": (1536, 235e9),
        "qwen3.5-397b-a17b": (1024, 397e9),
        "glm-4.5": (1536, 355e9),
        "minimax-m2": (1536, 230e9),
        "gpt-oss-120b": (2880, 117e9),
        "llama-4-maverick": (8192, 400e9),
    }
)
"""Inner size of an expert (config.json of each model, as in `model.MODELS`) and all parameters (model cards)."""


def expert_parameters(model: Model) -> float | None:
    """Parameters of all routed experts: three matrices `[H, inner]` each; None where the model is not known."""
    if model.name not in PARAMETERS:
        return None
    inner, _ = PARAMETERS[model.name]
    return float(model.moe_layers * model.experts * 3 * model.hidden * inner)


def weight_bytes(model: Model, layout: Layout, *, dtype: str = "fp8") -> int | None:
    """Bytes of weights on one GPU; None where the model's parameters are not known.

    Raises:
        Refused: an unknown dtype.
    """
    per_parameter = BYTES_PER_PARAMETER[choose(dtype, BYTES_PER_PARAMETER, "dtype of weights")]
    routed = expert_parameters(model)
    if routed is None:
        return None
    other = max(PARAMETERS[model.name][1] - routed, 0.0)
    return int((routed * per_parameter / layout.ep_size + other * OTHER_BYTES / layout.tp) / layout.pp)

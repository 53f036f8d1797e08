"""Weights of the models that are known: what they take of a GPU beside the workspaces, to the per cent.

The routed experts are dealt out to the EP group, everything else is split over TP and repeated per DP rank; both
are split over the pipeline's stages.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from types import MappingProxyType

from mnnvl_lab.errors import choose, require_count
from mnnvl_lab.layout import Layout
from mnnvl_lab.model import Model

BYTES_PER_PARAMETER: Mapping[str, float] = MappingProxyType(
    {"bf16": 2.0, "fp8": 1.0, "fp4": 0.5 + 1 / 16, "mxfp4": 0.5 + 1 / 32}
)
"""Of routed experts; fp4 with one scale byte for 16 values, mxfp4 for 32."""
OTHER_BYTES = 2.0
"""Per parameter of attention, shared experts and embeddings, which are mostly kept in bf16."""


def expert_parameters(model: Model) -> float | None:
    """Parameters of all routed experts; None where their inner size is not known."""
    one = model.expert_parameters
    return None if one is None else float(model.moe_layers * model.experts * one)


def expert_bytes(model: Model, layout: Layout, *, dtype: str = "fp8", redundant: int = 0) -> int | None:
    """Bytes of the routed experts on the fullest rank; None where their inner size is not known.

    The first `(experts + redundant) mod R` ranks own one expert more, in each of ceil(moe_layers / PP) layers.

    Args:
        dtype: of the weights, a name of `BYTES_PER_PARAMETER`.
        redundant: replicas of experts in each layer (EPLB).

    Raises:
        Refused: an unknown dtype, or a negative number of replicas.
    """
    per_parameter = BYTES_PER_PARAMETER[choose(dtype, BYTES_PER_PARAMETER, "dtype of weights")]
    if model.expert_parameters is None:
        return None
    physical = model.experts + require_count("redundant", redundant, least=0)
    owned = math.ceil(physical / layout.ep_size) * math.ceil(model.moe_layers / layout.pp)
    return math.ceil(owned * model.expert_parameters * per_parameter)


def other_bytes(model: Model, layout: Layout) -> int | None:
    """Bytes of everything but the routed experts on one rank, about; None where the model's parameters are not known.

    All parameters by the model's card less those of the routed experts, at two bytes each.
    """
    routed = expert_parameters(model)
    if routed is None or model.parameters is None:
        return None
    return int(max(model.parameters - routed, 0.0) * OTHER_BYTES / layout.tp / layout.pp)


def weight_bytes(model: Model, layout: Layout, *, dtype: str = "fp8") -> int | None:
    """Bytes of weights on one GPU; None where the model's parameters are not known.

    Raises:
        Refused: an unknown dtype.
    """
    experts, other = expert_bytes(model, layout, dtype=dtype), other_bytes(model, layout)
    return None if experts is None or other is None else experts + other

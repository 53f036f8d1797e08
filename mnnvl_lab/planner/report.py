"""Text of a plan: its title, its sizes in readable units, and notes."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pandas as pd

from mnnvl_lab.notebook import readable_bytes

if TYPE_CHECKING:
    from mnnvl_lab.planner.modes import ModePlan
    from mnnvl_lab.planner.plan import Plan


def title(plan: Plan) -> str:
    """GPU, layout, shape and tokens in one line."""
    need, name = plan.need, plan.model.name if plan.model else "MoE"
    return (
        f"Memory per rank on {plan.gpu.name}: {plan.layout.arithmetic} = {need.ep_size} EP ranks, "
        f"{name} (hidden {need.hidden}, {need.experts} experts, top-{need.top_k}), {need.format} dispatch, "
        f"{need.combine_dtype} combine, {plan.tokens_per_rank} tokens per rank"
    )


def sizes(plan: Plan, *, wide: bool = False) -> pd.DataFrame:
    """`plan.to_frame()` with a unit on each size; `wide` adds the exact bytes."""
    shown = plan.to_frame().set_index("bytes per rank").map(_with_unit, wide=wide)
    return shown.rename_axis("memory per rank").reset_index()


def notes(plan: Plan) -> list[str]:
    """Share of the GPU's memory, what vLLM would do, and every reason against a mode."""
    costs = [_cost(plan, mode) for mode in plan.modes if mode.parts]
    return [*costs, *_vllm_notes(plan), *(reason for mode in plan.modes for reason in reasons_against(plan, mode))]


def reasons_against(plan: Plan, mode: ModePlan) -> list[str]:
    """Every reason why the mode cannot run here, as sentences: what its kernels refuse, and memory."""
    refused = [f"{mode.mode} cannot serve this: {problem}" for problem in mode.problems]
    return refused if plan.fits(mode) else [*refused, f"{mode.mode} does not fit: {_most_that_fits(plan, mode)}"]


def _cost(plan: Plan, mode: ModePlan) -> str:
    share = f"{mode.mode}: {plan.memory_share(mode):.2%} of the GPU's {readable_bytes(plan.gpu.memory_bytes)}"
    tokens = plan.kv_cache_tokens(mode)
    return share if tokens is None else f"{share}, the KV cache of {tokens:,} tokens of {plan.model.name}"


def _vllm_notes(plan: Plan) -> list[str]:
    """What vLLM would do with this layout: its `use_all2all` and its SP-MoE both depend on DP."""
    x = plan.layout
    if x.dp == x.pcp == 1 and x.ep_size > 1:
        return ["with DP 1 and PCP 1 vLLM opens neither workspace: its TP ranks hold the same tokens and send none"]
    if x.tp == 1 or (x.dp == 1 and not plan.sequence_parallel):
        return []
    if x.dp == 1:
        return ["SP-MoE in vLLM needs DP > 1: with DP 1 every TP rank sends its whole batch; size by that"]
    verb = "saves" if plan.sequence_parallel else "would save"
    saved = readable_bytes(plan.sequence_parallel_saves_bytes)
    return [f"under SP-MoE a rank sends 1/TP of a batch: sizing one_sided by that share {verb} {saved}"]


def _most_that_fits(plan: Plan, mode: ModePlan) -> str:
    """What would fit on the GPU, and what to change."""
    room = f"{plan.gpu.name} has {readable_bytes(plan.gpu.memory_bytes)}"
    takes = f"{mode.mode} takes {readable_bytes(mode.allocated_bytes)}"
    if mode.mode == "two_sided":
        return f"{takes} whatever the tokens, {room}; use fewer EP ranks"
    if (least_bytes := plan.allocated_for(1)) > plan.gpu.memory_bytes:
        return f"one token per rank takes {readable_bytes(least_bytes)}, {room}; use fewer EP ranks"
    batch = plan.most_tokens(plan.gpu.memory_bytes)
    most = -(-batch // plan.layout.tp) if plan.sequence_parallel else batch
    return (
        f"at most {most} tokens per rank: {takes} for {plan.tokens_per_rank}, {room}; "
        f"use max_tokens {batch} or less, or fewer EP ranks"
    )


def _with_unit(size: int, *, wide: bool) -> str:
    if pd.isna(size):
        return "-"
    return f"{readable_bytes(size)} ({size:,} B)" if wide else readable_bytes(size)

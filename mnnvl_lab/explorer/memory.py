"""Memory of one GPU to scale: weights, the workspace of each mode, and what is left for the KV cache."""

from __future__ import annotations

from mnnvl_lab.explorer.svg import BLUE, FAINT, INK, LINE, QUIET, VERMILLION, WARN, Panel, drawing, rect, text
from mnnvl_lab.notebook import readable_bytes
from mnnvl_lab.planner import Plan

WEIGHTS, ONE_SIDED, TWO_SIDED = "#999999", BLUE, VERMILLION
LEFT, WIDTH, BAR, STEP = 84, 560, 24, 56


def memory_panel(plan: Plan, *, weights_bytes: int | None = None, modes: tuple[str, ...] = ()) -> Panel:
    """One bar per mode, as long as the GPU's memory.

    Activations, CUDA contexts and graphs are not counted.

    Args:
        plan: of `lab.plan`.
        weights_bytes: of the model on one GPU; None where they are not known.
        modes: which modes; all of the plan by default.
    """
    total, weights = plan.gpu.memory_bytes, weights_bytes or 0
    chosen = [mode for mode in plan.modes if not modes or mode.mode in modes]
    largest = max([total, *(weights + mode.allocated_bytes for mode in chosen)])
    per_byte = (WIDTH - LEFT - 12) / largest
    body = [
        text(0, 14, f"{plan.gpu.name}: {readable_bytes(total)} of memory per GPU", size=13, more='font-weight="600"')
    ]
    for i, mode in enumerate(chosen):
        body += _bar(plan, mode, weights, 26 + i * STEP, per_byte)
    edge = LEFT + total * per_byte
    bottom = 26 + len(chosen) * STEP
    body.append(rect(edge - 1, 22, 2, bottom - 30, fill=INK))
    body.append(text(0, bottom + 8, _words(plan, weights_bytes), fill=QUIET, size=11))
    alt = "; ".join(verdict(plan, mode.mode, weights_bytes) for mode in chosen) or "no mode chosen"
    return drawing(body, width=WIDTH, height=bottom + 16, alt=alt)


def verdict(plan: Plan, mode: str, weights_bytes: int | None = None) -> str:
    """In one line: whether the mode fits beside the weights, and what is left, or at most how many tokens would fit."""
    one = next(m for m in plan.modes if m.mode == mode)
    left = plan.gpu.memory_bytes - one.allocated_bytes - (weights_bytes or 0)
    if left >= 0:
        return f"{mode} fits, {readable_bytes(left)} left{_kv(plan, left)}"
    room = plan.gpu.memory_bytes - (weights_bytes or 0)
    if room <= 0:
        return f"{mode} does not fit: the weights alone take {readable_bytes(weights_bytes or 0)}; use more GPUs"
    if mode == "two_sided" or plan.allocated_for(1) > room:
        return f"{mode} does not fit beside the weights, whatever the tokens; use fewer EP ranks or more GPUs"
    return f"{mode} does not fit: at most {plan.most_tokens(room):,} tokens per rank"


def _bar(plan: Plan, mode, weights: int, y: float, per_byte: float) -> list[str]:
    color = ONE_SIDED if mode.mode == "one_sided" else TWO_SIDED
    used, total = weights + mode.allocated_bytes, plan.gpu.memory_bytes
    x_weights, x_used = LEFT + weights * per_byte, LEFT + used * per_byte
    fits = used <= total
    words = verdict(plan, mode.mode, weights)
    return [
        text(LEFT - 8, y + 16, mode.mode, anchor="end"),
        rect(LEFT, y, total * per_byte, BAR, fill="none", stroke=LINE),
        rect(LEFT, y, weights * per_byte, BAR, fill=WEIGHTS, more='opacity="0.75"'),
        rect(x_weights, y, max(mode.allocated_bytes * per_byte, 1.5), BAR, fill=color if fits else WARN),
        rect(x_used, y + 1, (total - used) * per_byte, BAR - 2, fill=FAINT, more='opacity="0.5"') if fits else "",
        text(LEFT, y + BAR + 14, words, fill=INK if fits else WARN, size=11),
    ]


def _words(plan: Plan, weights_bytes: int | None) -> str:
    known = "weights are not known" if weights_bytes is None else f"grey: weights {readable_bytes(weights_bytes)}"
    sizes = "  ".join(f"{mode.mode} {readable_bytes(mode.allocated_bytes)}" for mode in plan.modes if mode.parts)
    return f"{known}; workspaces: {sizes}; no activations"


def _kv(plan: Plan, left_bytes: int) -> str:
    """Tokens of KV cache that the rest holds, with this GPU's share of layers."""
    per_token = plan.model.kv_bytes_per_token if plan.model else None
    return f" for the KV cache of {left_bytes * plan.layout.pp // per_token:,} tokens" if per_token else ""

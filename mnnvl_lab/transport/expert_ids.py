"""Expert ids out of range: what the kernels of FlashInfer 0.7.2 would do with them, and the refusal that says so.

Neither mode's kernel checks ids. Both divide by a rank's share of the experts, and division in C truncates towards
zero: `-1 / share` is 0, so an id just below 0, which engines give to padding, is taken for an expert of ep_rank 0.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from mnnvl_lab.transport.exchange import Exchange


def kernel_target(expert_id: int, *, experts: int, ep_size: int) -> int:
    """The target rank that the one-sided kernel computes for any id, in range or not.

    `compute_target_rank_id` of `moeAlltoAllKernels.cu`: the first `experts % ep_size` ranks own `base + 1` experts, the
    others `base`. Two-sided's prepare divides by `experts / ep_size` likewise. A result outside `[0, ep_size)` is no
    rank: one-sided reads a pointer from beside its table and writes through it.
    """
    base, remainder = divmod(experts, ep_size)
    split = remainder * (base + 1)
    if remainder and expert_id < split:
        return _divide(expert_id, base + 1)
    return remainder + _divide(expert_id - split, base)


def _divide(a: int, b: int) -> int:
    """As in C: towards zero."""
    return a // b if a >= 0 else -(-a // b)


def ids_problem(x: Exchange, low: int, high: int) -> str | None:
    """What is wrong with a batch whose smallest and largest expert ids are these, or None."""
    if 0 <= low and high < x.experts:
        return None
    reason = f" ({_unchecked(x, low, high)})" if x.mode in ("one_sided", "two_sided") else ""
    return (
        f"expert ids span {low} to {high}: they must lie in [0, {x.experts}){reason}; "
        "leave tokens that only pad out of the batch, and remap ids to physical experts first"
    )


def _unchecked(x: Exchange, low: int, high: int) -> str:
    """The worst that the mode's kernel would do with such ids."""
    lost = high if high >= x.experts else low
    target = kernel_target(lost, experts=x.experts, ep_size=x.ep_size)
    if not 0 <= target < x.ep_size:
        does = "write through a wild pointer" if x.mode == "one_sided" else "drop the choice without a word"
        return f"the kernels do not check: id {lost} gives target rank {target} of {x.ep_size}, so they would {does}"
    share = -(-x.experts // x.ep_size)
    return (
        f"the kernels do not check: {low} / {share} is 0 in C, which truncates, so they would send such choices to "
        "ep_rank 0 without a word"
    )

"""Limits of the kernels of either mode, as sentences that give the value, the rule and the remedy.

Those of FlashInfer 0.7.2 (`moeAlltoAllKernels.h`, `moeAlltoAllKernels.cu`, `trtllm_alltoall_prepare.cu`,
`trtllm_alltoall.cu`). Several of them the kernels themselves do not check.
"""

from __future__ import annotations

from collections.abc import Iterator
from math import gcd, inf, lcm

from mnnvl_lab.arguments import is_real
from mnnvl_lab.errors import Refused, choose, shown
from mnnvl_lab.exchange import COMBINE_BYTES, ExchangeShape
from mnnvl_lab.model import require_format
from mnnvl_lab.workspace.two_sided import FIFO_ENTRY_BYTES, PACKET_BYTES, PACKET_DATA_BYTES

ONE_SIDED_TOP_K = (1, 2, 4, 6, 8, 10, 12, 14, 16, 18, 22)  # instantiated in moeAlltoAllKernels.cu, SWITCH_TOP_K
ONE_SIDED_MAX_RANKS = 64  # kMaxRanks
PICO_MAX_TOP_K = 22  # TOP_K_SLOTS of the workspace's tables
MAX_PAYLOADS = 6  # kMaxPayloads; ids and weights are two of them
TWO_SIDED_MAX_TOP_K = 32
TWO_SIDED_EXPERTS_STEP = 4  # trtllm_alltoall.cu: "expertCount must be divisible by 4"
TWO_SIDED_MAX_RANKS = 128  # threads of the prepare kernel's prefix sum
TWO_SIDED_MAX_ROW_BYTES = FIFO_ENTRY_BYTES // PACKET_BYTES * PACKET_DATA_BYTES  # a longer row spins for ever
ROW_ALIGNMENT_BYTES = 16
ONE_SIDED_WAIT_CYCLES = 300 * 2000 * 1_000_000  # check_timeout of moeAlltoAllKernels.cu: 300 s at 2 GHz
ID_BYTES = 4  # of expert ids and weights, the last two payloads of one-sided dispatch


def problems(shape: ExchangeShape, mode: str) -> Iterator[str]:
    """Every limit that `shape` breaks in `mode`, as a sentence.

    Raises:
        Refused: an unknown format, or a hidden size that it cannot carry.
    """
    yield from _common_problems(shape)
    if mode == "one_sided":
        yield from _one_sided_problems(shape)
    if mode == "two_sided":
        yield from _two_sided_problems(shape)
    if mode == "pico":
        yield from _pico_problems(shape)


def kernel_wait_limit_s(mode: str, clock_ghz: float) -> float:
    """Seconds after which a kernel that waits for a peer ends its process with a trap.

    One-sided counts cycles of the multiprocessor, fixed when it is compiled; two-sided waits without a limit. Ranks of
    this package look after their own, `round_limit_s` of `Ranks.run`.

    Args:
        clock_ghz: at which the multiprocessors run, such as 1.98 on an H100.

    Raises:
        Refused: the clock is no positive number, or a mode has no kernels of FlashInfer.
    """
    if not is_real(clock_ghz) or not 0 < clock_ghz < inf:
        raise Refused(f"clock_ghz is {shown(clock_ghz)}: it must be a positive number; pass GHz, such as 1.98")
    chosen = choose(mode, ("one_sided", "two_sided"), "mode of FlashInfer's kernels")
    return ONE_SIDED_WAIT_CYCLES / (clock_ghz * 1e9) if chosen == "one_sided" else inf


def expert_multiple(mode: str, ep_size: int) -> int:
    """What `experts` must be a multiple of in `mode`: 1 for any number."""
    return lcm(TWO_SIDED_EXPERTS_STEP, ep_size) if mode == "two_sided" else 1


def missing_experts(experts: int, multiple: int) -> int:
    """Redundant experts that bring `experts` to the next multiple."""
    return -experts % multiple


def runtime_max_step(shape: ExchangeShape) -> int:
    """Rounds of one-sided mode need a `runtime_max_tokens` that is a multiple of this; 1 for nearly every format.

    Payload regions `[R * M, width]` are packed without padding, and each must begin at a multiple of its element size
    (`moeA2ADispatchOp`: "Misaligned payload buffer").
    """
    step, before_bytes = 1, 0
    for part in shape.payload_parts:
        step = max(step, _step(part.row_bytes // part.width, shape.ep_size * before_bytes))
        before_bytes += part.row_bytes
    return max(step, _step(ID_BYTES, shape.ep_size * before_bytes))


def _step(element_bytes: int, before_bytes: int) -> int:
    """How many times `before_bytes` are a multiple of `element_bytes`; a power of two, since elements are."""
    return element_bytes // gcd(element_bytes, before_bytes)


def runtime_max_problem(shape: ExchangeShape, mode: str, runtime_max_tokens: int) -> str | None:
    """Why rounds of this size cannot be packed in `mode`, or None."""
    step = runtime_max_step(shape) if mode in ("one_sided", "pico") else 1
    if runtime_max_tokens % step == 0:
        return None
    row_bytes = sum(part.row_bytes for part in shape.payload_parts)
    return (
        f"runtime_max_tokens is {runtime_max_tokens}: with ep_size {shape.ep_size} and payloads of {row_bytes} bytes "
        f"per token (format {shape.format}, hidden {shape.hidden}) {mode} needs a multiple of {step}, or a payload "
        f"would begin inside an element; give the fullest rank a multiple of {step} tokens, or use a multiple of "
        f"{step} ranks"
    )


def _common_problems(x: ExchangeShape):
    require_format(x.format).require_hidden(x.hidden)
    for name in ("max_tokens", "hidden", "experts", "top_k"):
        if getattr(x, name) < 1:
            yield f"{name} is {getattr(x, name)}: it must be at least 1"
    if x.experts < x.ep_size:
        yield f"experts is {x.experts} but ep_size is {x.ep_size}: every rank must own an expert; use fewer ranks"
    if x.top_k > x.experts:
        yield f"top_k is {x.top_k} but there are {x.experts} experts: a token cannot choose more experts than exist"
    if x.combine_dtype not in COMBINE_BYTES:
        yield f"combine_dtype is {x.combine_dtype!r}: it must be one of {', '.join(COMBINE_BYTES)}"


def _one_sided_problems(x: ExchangeShape):
    if x.top_k not in ONE_SIDED_TOP_K:
        yield (
            f"top_k is {x.top_k}: the one-sided kernels are compiled for {', '.join(map(str, ONE_SIDED_TOP_K))} only "
            "(another value would fail after the epoch has moved); choose one of these or mode two_sided"
        )
    if (step := runtime_max_step(x)) > x.max_tokens >= 1:
        yield (
            f"max_tokens is {x.max_tokens}: format {x.format} at hidden {x.hidden} and ep_size {x.ep_size} needs "
            f"rounds of a multiple of {step} tokens in one_sided; use max_tokens {step} or more"
        )
    if x.ep_size > ONE_SIDED_MAX_RANKS:
        yield (
            f"ep_size is {x.ep_size}: the one-sided kernels take at most {ONE_SIDED_MAX_RANKS} ranks; use a smaller "
            "DP, PCP or TP, split by PP, or a baseline"
        )
    if x.eplb_stats_experts > x.experts or x.eplb_stats_experts < 0:
        yield f"eplb_stats_experts is {x.eplb_stats_experts}: it must lie between 0 and experts = {x.experts}"
    if x.low_precision_combine and x.combine_dtype != "bf16":
        yield f"low_precision_combine with combine_dtype {x.combine_dtype}: its result is bf16; use combine_dtype bf16"


def _pico_problems(x: ExchangeShape):
    if x.top_k > PICO_MAX_TOP_K:
        yield f"top_k is {x.top_k}: the workspace has room for {PICO_MAX_TOP_K} choices per token; use mode two_sided"
    if x.ep_size > ONE_SIDED_MAX_RANKS:
        yield f"ep_size is {x.ep_size}: pico takes at most {ONE_SIDED_MAX_RANKS} ranks, a bit each; use mode two_sided"


def _two_sided_problems(x: ExchangeShape):
    more = missing_experts(x.experts, expert_multiple("two_sided", x.ep_size))
    remedy = f"add {more} redundant expert{'s' * (more > 1)} ({x.experts + more} in all), or use one_sided"
    if x.experts % TWO_SIDED_EXPERTS_STEP:
        yield f"experts is {x.experts}: the two-sided prepare kernel needs a multiple of 4; {remedy}"
    if x.experts % x.ep_size:
        yield f"experts is {x.experts} and ep_size {x.ep_size}: two_sided needs experts to divide evenly; {remedy}"
    if x.top_k > TWO_SIDED_MAX_TOP_K:
        yield f"top_k is {x.top_k}: the two-sided prepare kernel takes at most {TWO_SIDED_MAX_TOP_K}"
    if x.ep_size > TWO_SIDED_MAX_RANKS:
        yield f"ep_size is {x.ep_size}: the two-sided prepare kernel takes at most {TWO_SIDED_MAX_RANKS} ranks"
    for name, row_bytes in x.moved_row_bytes.items():
        if row_bytes % ROW_ALIGNMENT_BYTES or row_bytes > TWO_SIDED_MAX_ROW_BYTES:
            yield (
                f"{name} has {row_bytes} bytes per row: two_sided needs a multiple of {ROW_ALIGNMENT_BYTES} and "
                f"at most {TWO_SIDED_MAX_ROW_BYTES}; pad hidden, or use one_sided"
            )
    if x.sm_limit is not None and x.sm_limit < 1:
        yield f"sm_limit is {x.sm_limit}: it must be at least 1, or None for all multiprocessors"

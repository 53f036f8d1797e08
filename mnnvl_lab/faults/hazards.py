"""Every input that the kernels do not check, or check too late, and how to make it out of a good one.

Each hazard says what the kernels would do (FlashInfer 0.7.2: KC `moeAlltoAllKernels.cu`, OP `trtllm_moe_alltoall.cu`,
PREP `trtllm_alltoall_prepare.cu`, CUH `trtllm_alltoall.cuh`). All must be refused, on every fabric, by all ranks with
the same words, before a byte is sent.
"""

from __future__ import annotations

from dataclasses import replace
from math import ceil

from mnnvl_lab.errors import choose
from mnnvl_lab.faults.hazard import Hazard, as_signed_bytes, first_id, rows, spread, with_stats

NO_RANK = (
    "the target rank is computed from the id, unchecked, and is none: one-sided writes through a wild pointer "
    "(KC, compute_target_rank_id), two-sided drops the choice without a word (PREP, computeCountAndSend)"
)
TO_RANK_0 = (
    "division in C truncates, so -1 / base is 0: the token goes to EP rank 0 without a word, all its negative choices "
    "as one row (KC, compute_target_rank_id; PREP, computeCountAndSend; FlashInfer #4017). With one expert per rank "
    "base is 1, and -1 is no rank"
)
OFFSETS = "each rank computes offsets by itself: rows land where nobody looks, silent NaN (SGLang #27945)"

HAZARDS = (
    Hazard(
        name="negative expert id",
        unchecked=TO_RANK_0,
        words=r"expert ids span -1 to \d+: .* -1 / \d+ is 0 in C, .* to ep_rank 0 without a word",
        batch=first_id(lambda x: -1),
    ),
    Hazard(
        name="negative expert id beyond rank 0's share",
        unchecked=NO_RANK,
        words=r"expert ids span -\d+ to \d+: .* gives target rank -1 of \d+",
        batch=first_id(lambda x: -ceil(x.experts / x.ep_size)),
    ),
    Hazard(
        name="expert id = E",
        unchecked=NO_RANK,
        words=r"expert ids span \d+ to (\d+): they must lie in \[0, \1\) .* gives target rank (\d+) of \2",
        batch=first_id(lambda x: x.experts),
    ),
    Hazard(
        name="huge expert id",
        unchecked=NO_RANK,
        words=r"expert ids span \d+ to 2147483647: .* id 2147483647 gives target rank \d+ of \d+",
        batch=first_id(lambda x: 2**31 - 1),
    ),
    Hazard(
        name="more tokens than runtime_max_tokens",
        unchecked="slots overflow into the rows of the next source rank (KC:497-545)",
        words=r"\d+ tokens but runtime_max_tokens is \d+: surplus rows would overwrite",
        batch=lambda batch, x: replace(batch, runtime_max_tokens=batch.runtime_max_tokens - 1),
        everywhere=True,
    ),
    Hazard(
        name="runtime_max_tokens above max_tokens",
        unchecked="only the deprecated class asserts it; the functional API does not",
        words=r"runtime_max_tokens is \d+: it must lie in \[1, max_tokens = \d+\]",
        batch=lambda batch, x: replace(batch, runtime_max_tokens=x.max_tokens + 1),
        everywhere=True,
    ),
    Hazard(
        name="runtime_max_tokens differs between ranks",
        unchecked=OFFSETS,
        words=r"runtime_max_tokens is \d+ on ep_rank 0 but \d+ on ep_rank \d+",
        batch=lambda batch, x: replace(batch, runtime_max_tokens=batch.runtime_max_tokens + 1),
    ),
    Hazard(
        name="no payload",
        unchecked="checked by the kernel on this rank alone: the others hang",
        words=r"ep_rank \d+: 0 payloads: format \w+ with its extras has \d+",
        batch=lambda batch, x: replace(batch, payloads=()),
    ),
    Hazard(
        name="a payload of another width",
        unchecked=OFFSETS,
        words=r"payload 0 is \[(\d+), (\d+)\] of \w+: it must be contiguous \[tokens = \1, (?!\2\])",
        batch=rows(lambda rows: rows[:, :-1].contiguous()),
    ),
    Hazard(
        name="a payload of another dtype",
        unchecked=OFFSETS,
        words=r"payload 0 is torch\.float64: format \w+ has",
        batch=rows(lambda rows: rows.double()),
    ),
    Hazard(
        name="a payload that is not contiguous",
        unchecked="rows are read at the stride of contiguous ones",
        words="payload 0 is non-contiguous ",
        batch=rows(spread),
    ),
    Hazard(
        name="a payload with fewer rows than tokens",
        unchecked="checked by the kernel on this rank alone: the others hang",
        words=r"payload 0 is \[(\d+), (\d+)\] of \w+: it must be contiguous \[tokens = (?!\1,)\d+, \2\]",
        batch=rows(lambda rows: rows[:-1]),
    ),
    Hazard(
        name="ids of 64 bits",
        unchecked="read as int32 pairs",
        words=r"experts_TK is \[\d+, \d+\] of int64: ",
        batch=lambda batch, x: replace(batch, experts_TK=batch.experts_TK.long()),
    ),
    Hazard(
        name="ids of another top_k",
        unchecked="the tables' stride is the router's top_k: rows come back to other tokens",
        words=r"experts_TK is \[\d+, (\d+)\] of int32: it must be contiguous \[tokens, top_k = (?!\1\])",
        batch=lambda batch, x: replace(batch, experts_TK=batch.experts_TK.repeat(1, 2)),
    ),
    Hazard(
        name="weights of 64 bits",
        unchecked="travel as a payload of another width: " + OFFSETS,
        words=r"weights_TK is \[\d+, \d+\] of float64: ",
        batch=lambda batch, x: replace(batch, weights_TK=batch.weights_TK.double()),
    ),
    Hazard(
        name="fewer weights than tokens",
        unchecked="checked by the kernel on this rank alone: the others hang",
        words=r"experts_TK has (\d+) tokens but weights_TK (?!\1:)\d+: ",
        batch=lambda batch, x: replace(batch, weights_TK=batch.weights_TK[:-1]),
    ),
    Hazard(
        name="a rank mask on a transport without one",
        unchecked="checked by the kernel on this rank alone: the others hang",
        words=r"ep_rank \d+: active_ranks given but enable_rank_mask is False",
        batch=lambda batch, x: replace(batch, active_ranks=tuple(range(x.ep_size))),
    ),
    Hazard(
        name="expert statistics that were not reserved",
        unchecked="checked by the kernel on this rank alone: the others hang",
        words=r"eplb_stats_E is \[\d+\] of int32: it must be \[0\] of int32",
        batch=with_stats,
    ),
    Hazard(
        name="partials of another dtype",
        unchecked="fp8 without low-precision combine launches the bf16 kernel: twice the output's size is written (KC)",
        words=r"partials are \[\d+, \d+\] of int8: ",
        partials=as_signed_bytes,
    ),
    Hazard(
        name="partials with a row too few",
        unchecked="stale or foreign memory is added up",
        words=r"partials are \[(\d+), (\d+)\] of \w+: combine takes contiguous \[(?!\1,)\d+, \2\]",
        partials=lambda rows: rows[:-1],
    ),
    Hazard(
        name="partials that are not contiguous",
        unchecked="rows are read at the stride of contiguous ones",
        words="partials are non-contiguous ",
        partials=spread,
    ),
    Hazard(
        name="a top_k without a kernel",
        unchecked="refused only after prepare has moved the epoch: the workspace is out of step for good (KC:104-164)",
        words="top_k is 5: the one-sided kernels are compiled for ",
        exchange=lambda x: replace(x, top_k=5),
        everywhere=True,
        modes=("one_sided",),
    ),
    Hazard(
        name="a top_k beyond prepare's",
        unchecked="refused only when the first round is prepared (PREP:540)",
        words="top_k is 33: the two-sided prepare kernel takes at most 32",
        exchange=lambda x: replace(x, top_k=33, experts=128 * x.ep_size),
        everywhere=True,
        modes=("two_sided",),
    ),
    Hazard(
        name="fewer experts than ranks or choices",
        unchecked="refused only at the first dispatch",
        words=r"(experts is 0: |experts is \d+ but ep_size is \d+: |top_k is \d+ but there are \d+ experts: )",
        exchange=lambda x: replace(x, experts=x.top_k - 1),
        everywhere=True,
    ),
    Hazard(
        name="max_tokens differs between ranks",
        unchecked="workspaces of different size; a peer's row is read past its end",
        words=r"\bmax_tokens is \d+ on ep_rank 0 but \d+ on ep_rank \d+: ",
        exchange=lambda x: replace(x, max_tokens=x.max_tokens + 1),
    ),
    Hazard(
        name="modes differ between ranks",
        unchecked="each spins for ever on flags that the other does not know",
        words=r"mode is (one|two)_sided on ep_rank 0 but (?!\1)\w+_sided on ep_rank \d+: ",
        exchange=lambda x: replace(x, mode="two_sided" if x.mode == "one_sided" else "one_sided"),
    ),
    Hazard(
        name="experts that ranks cannot share evenly",
        unchecked="integer division sends rows to wrong ranks (PREP)",
        words=r"experts is \d+: the two-sided prepare kernel needs a multiple of 4",
        exchange=lambda x: replace(x, experts=x.experts + 1),
        everywhere=True,
        modes=("two_sided",),
    ),
    Hazard(
        name="rows that are no multiple of 16 bytes",
        unchecked="checked only at the first move",
        words="extra 0 has 20 bytes a row: two_sided needs a multiple of 16 ",
        exchange=lambda x: replace(x, extra_payload_bytes=(20,)),
        everywhere=True,
        modes=("two_sided",),
    ),
    Hazard(
        name="a row longer than a FIFO entry",
        unchecked="zero rows fit an entry: an endless loop without a timeout (CUH)",
        words="extra 0 has 245776 bytes a row: .* at most 245760",
        exchange=lambda x: replace(x, extra_payload_bytes=(245_776,)),
        everywhere=True,
        modes=("two_sided",),
    ),
    Hazard(
        name="the FP8 sum of FP32 partials",
        unchecked="the output is bf16 whatever was asked",
        words="low_precision_combine with combine_dtype fp32: its result is bf16",
        exchange=lambda x: replace(x, low_precision_combine=True, combine_dtype="fp32"),
        everywhere=True,
        modes=("one_sided",),
    ),
)


def hazards(mode: str) -> tuple[Hazard, ...]:
    """Those that apply to a mode."""
    return tuple(hazard for hazard in HAZARDS if mode in hazard.modes)


def require_hazard(name: str) -> Hazard:
    """The hazard of that name, in any case.

    Raises:
        Refused: there is none; says which there are.
    """
    by_name = {hazard.name: hazard for hazard in HAZARDS}
    return by_name[choose(name, by_name, "hazard")]

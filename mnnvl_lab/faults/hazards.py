"""Every input that the kernels do not check, or check too late, and how to make it out of a good one.

Each hazard says what the kernels would do (FlashInfer 0.7.2: KC `moeAlltoAllKernels.cu`, OP `trtllm_moe_alltoall.cu`,
PREP `trtllm_alltoall_prepare.cu`, CUH `trtllm_alltoall.cuh`). All must be refused, on every fabric, by all ranks with
the same words, before a byte is sent.
"""

from __future__ import annotations

from dataclasses import replace

from mnnvl_lab.errors import choose
from mnnvl_lab.faults.hazard import Hazard, as_signed_bytes, first_id, rows, spread, with_stats

WILD = "the target rank is computed from the id, unchecked: a write through a wild pointer (KC:262-289)"
OFFSETS = "each rank computes offsets by itself: rows land where nobody looks, silent NaN (SGLang #27945)"

HAZARDS = (
    Hazard(name="negative expert id", unchecked=WILD, words=r"must lie in \[0, ", batch=first_id(lambda x: -1)),
    Hazard(name="expert id = E", unchecked=WILD, words=r"must lie in \[0, ", batch=first_id(lambda x: x.experts)),
    Hazard(name="huge expert id", unchecked=WILD, words=r"must lie in \[0, ", batch=first_id(lambda x: 2**31 - 1)),
    Hazard(
        name="more tokens than runtime_max_tokens",
        unchecked="slots overflow into the rows of the next source rank (KC:497-545)",
        words="surplus rows would overwrite",
        batch=lambda batch, x: replace(batch, runtime_max_tokens=batch.runtime_max_tokens - 1),
        everywhere=True,
    ),
    Hazard(
        name="runtime_max_tokens above max_tokens",
        unchecked="only the deprecated class asserts it; the functional API does not",
        words=r"must lie in \[1, max_tokens",
        batch=lambda batch, x: replace(batch, runtime_max_tokens=x.max_tokens + 1),
        everywhere=True,
    ),
    Hazard(
        name="runtime_max_tokens differs between ranks",
        unchecked=OFFSETS,
        words="runtime_max_tokens is .* on ep_rank|surplus rows",
        batch=lambda batch, x: replace(batch, runtime_max_tokens=batch.runtime_max_tokens - 1),
    ),
    Hazard(
        name="no payload",
        unchecked="checked by the kernel on this rank alone: the others hang",
        words="0 payloads",
        batch=lambda batch, x: replace(batch, payloads=()),
    ),
    Hazard(
        name="a payload of another width",
        unchecked=OFFSETS,
        words="payload 0 is",
        batch=rows(lambda rows: rows[:, :-1].contiguous()),
    ),
    Hazard(
        name="a payload of another dtype",
        unchecked=OFFSETS,
        words="payload 0 is",
        batch=rows(lambda rows: rows.double()),
    ),
    Hazard(
        name="a payload that is not contiguous",
        unchecked="rows are read at the stride of contiguous ones",
        words="must be contiguous",
        batch=rows(spread),
    ),
    Hazard(
        name="a payload with fewer rows than tokens",
        unchecked="checked by the kernel on this rank alone: the others hang",
        words="payload 0 is",
        batch=rows(lambda rows: rows[:-1]),
    ),
    Hazard(
        name="ids of 64 bits",
        unchecked="read as int32 pairs",
        words="experts_TK is",
        batch=lambda batch, x: replace(batch, experts_TK=batch.experts_TK.long()),
    ),
    Hazard(
        name="ids of another top_k",
        unchecked="the tables' stride is the router's top_k: rows come back to other tokens",
        words="experts_TK is",
        batch=lambda batch, x: replace(batch, experts_TK=batch.experts_TK.repeat(1, 2)),
    ),
    Hazard(
        name="weights of 64 bits",
        unchecked="travel as a payload of another width: " + OFFSETS,
        words="weights_TK is",
        batch=lambda batch, x: replace(batch, weights_TK=batch.weights_TK.double()),
    ),
    Hazard(
        name="fewer weights than tokens",
        unchecked="checked by the kernel on this rank alone: the others hang",
        words="weights_TK",
        batch=lambda batch, x: replace(batch, weights_TK=batch.weights_TK[:-1]),
    ),
    Hazard(
        name="a rank mask on a transport without one",
        unchecked="checked by the kernel on this rank alone: the others hang",
        words="enable_rank_mask|active_ranks is",
        batch=lambda batch, x: replace(batch, active_ranks=tuple(range(x.ep_size))),
    ),
    Hazard(
        name="expert statistics that were not reserved",
        unchecked="checked by the kernel on this rank alone: the others hang",
        words="eplb_stats",
        batch=with_stats,
    ),
    Hazard(
        name="partials of another dtype",
        unchecked="fp8 without low-precision combine launches the bf16 kernel: twice the output's size is written (KC)",
        words="partials are",
        partials=as_signed_bytes,
    ),
    Hazard(
        name="partials with a row too few",
        unchecked="stale or foreign memory is added up",
        words="partials are",
        partials=lambda rows: rows[:-1],
    ),
    Hazard(
        name="partials that are not contiguous",
        unchecked="rows are read at the stride of contiguous ones",
        words="partials are",
        partials=spread,
    ),
    Hazard(
        name="a top_k without a kernel",
        unchecked="refused only after prepare has moved the epoch: the workspace is out of step for good (KC:104-164)",
        words="top_k is",
        exchange=lambda x: replace(x, top_k=5),
        everywhere=True,
        modes=("one_sided",),
    ),
    Hazard(
        name="a top_k beyond prepare's",
        unchecked="refused only when the first round is prepared (PREP:540)",
        words="top_k is",
        exchange=lambda x: replace(x, top_k=33, experts=128 * x.ep_size),
        everywhere=True,
        modes=("two_sided",),
    ),
    Hazard(
        name="fewer experts than ranks or choices",
        unchecked="refused only at the first dispatch",
        words="experts|top_k",
        exchange=lambda x: replace(x, experts=x.top_k - 1),
        everywhere=True,
    ),
    Hazard(
        name="max_tokens differs between ranks",
        unchecked="workspaces of different size; a peer's row is read past its end",
        words="max_tokens is .* on ep_rank",
        exchange=lambda x: replace(x, max_tokens=x.max_tokens + 1),
    ),
    Hazard(
        name="modes differ between ranks",
        unchecked="each spins for ever on flags that the other does not know",
        words="mode is|on ep_rank",
        exchange=lambda x: replace(x, mode="two_sided" if x.mode == "one_sided" else "one_sided"),
    ),
    Hazard(
        name="experts that ranks cannot share evenly",
        unchecked="integer division sends rows to wrong ranks (PREP)",
        words="experts is",
        exchange=lambda x: replace(x, experts=x.experts + 1),
        everywhere=True,
        modes=("two_sided",),
    ),
    Hazard(
        name="rows that are no multiple of 16 bytes",
        unchecked="checked only at the first move",
        words="bytes a row",
        exchange=lambda x: replace(x, extra_payload_bytes=(20,)),
        everywhere=True,
        modes=("two_sided",),
    ),
    Hazard(
        name="a row longer than a FIFO entry",
        unchecked="zero rows fit an entry: an endless loop without a timeout (CUH)",
        words="bytes a row",
        exchange=lambda x: replace(x, extra_payload_bytes=(245_776,)),
        everywhere=True,
        modes=("two_sided",),
    ),
    Hazard(
        name="the FP8 sum of FP32 partials",
        unchecked="the output is bf16 whatever was asked",
        words="low_precision_combine",
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

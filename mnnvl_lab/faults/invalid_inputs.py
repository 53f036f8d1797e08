"""Invalid inputs: each breaks one rule of an exchange, a batch or partial sums, and names the refusal it must get."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from math import ceil
from typing import TYPE_CHECKING

from mnnvl_lab.errors import choose
from mnnvl_lab.exchange import Batch, Exchange

if TYPE_CHECKING:
    import torch

BOTH = ("one_sided", "two_sided")


@dataclass(frozen=True, kw_only=True)
class InvalidInput:
    """One way to break a round.

    Attributes:
        name: what is wrong.
        unchecked: what the kernels would do.
        words: what the refusal must contain, a regular expression.
        exchange, batch, partials: makes the bad one out of a good one; the one that is given decides the stage.
        everywhere: all ranks bring it; else one alone.
        modes: where it applies.
    """

    name: str
    unchecked: str
    words: str
    exchange: Callable[[Exchange], Exchange] | None = None
    batch: Callable[[Batch, Exchange], Batch] | None = None
    partials: Callable[[torch.Tensor], torch.Tensor] | None = None
    everywhere: bool = False
    modes: tuple[str, ...] = BOTH


def first_id(value: Callable[[Exchange], int]) -> Callable[[Batch, Exchange], Batch]:
    """A batch whose first token's first choice is `value(exchange)`."""

    def mutate(batch: Batch, exchange: Exchange) -> Batch:
        ids = batch.experts_TK.clone()
        ids[0, 0] = value(exchange)
        return replace(batch, experts_TK=ids)

    return mutate


def rows(change: Callable[[torch.Tensor], torch.Tensor]) -> Callable[[Batch, Exchange], Batch]:
    """A batch whose first payload is changed."""
    return lambda batch, _: replace(batch, payloads=(change(batch.payloads[0]), *batch.payloads[1:]))


def spread(rows: torch.Tensor) -> torch.Tensor:
    """The same numbers, not contiguous."""
    return rows.repeat_interleave(2, dim=1)[:, ::2]


def as_signed_bytes(rows: torch.Tensor) -> torch.Tensor:
    """The same memory under a dtype that no kernel takes."""
    import torch

    return rows.contiguous().view(torch.int8)


def with_stats(batch: Batch, exchange: Exchange) -> Batch:
    """A batch with statistics for which nothing was reserved."""
    return replace(batch, eplb_stats_E=batch.experts_TK.new_zeros(exchange.experts))


NO_RANK = (
    "the target rank is computed from the id, unchecked, and does not exist: one-sided writes through a wild pointer "
    "(moeAlltoAllKernels.cu, compute_target_rank_id), two-sided drops the choice without a message "
    "(trtllm_alltoall_prepare.cu, computeCountAndSend)"
)
TO_RANK_0 = (
    "division in C truncates, so -1 / base is 0: the token goes to EP rank 0 without a message, all its negative "
    "choices as one row (moeAlltoAllKernels.cu, compute_target_rank_id; trtllm_alltoall_prepare.cu, "
    "computeCountAndSend; FlashInfer #4017). With one expert per rank base is 1, and no rank is -1"
)
OFFSETS = "each rank computes offsets by itself: rows arrive where no rank reads them, silent NaN (SGLang #27945)"

INVALID_INPUTS = (
    InvalidInput(
        name="negative expert id",
        unchecked=TO_RANK_0,
        words=r"expert ids span -1 to \d+: .* -1 / \d+ is 0 in C, .* to ep_rank 0 without a word",
        batch=first_id(lambda x: -1),
    ),
    InvalidInput(
        name="negative expert id beyond rank 0's share",
        unchecked=NO_RANK,
        words=r"expert ids span -\d+ to \d+: .* gives target rank -1 of \d+",
        batch=first_id(lambda x: -ceil(x.experts / x.ep_size)),
    ),
    InvalidInput(
        name="expert id = E",
        unchecked=NO_RANK,
        words=r"expert ids span \d+ to (\d+): they must lie in \[0, \1\) .* gives target rank (\d+) of \2",
        batch=first_id(lambda x: x.experts),
    ),
    InvalidInput(
        name="huge expert id",
        unchecked=NO_RANK,
        words=r"expert ids span \d+ to 2147483647: .* id 2147483647 gives target rank \d+ of \d+",
        batch=first_id(lambda x: 2**31 - 1),
    ),
    InvalidInput(
        name="more tokens than runtime_max_tokens",
        unchecked="slots overflow into the rows of the next source rank (moeAlltoAllKernels.cu:497-545)",
        words=r"\d+ tokens but runtime_max_tokens is \d+: surplus rows would overwrite",
        batch=lambda batch, x: replace(batch, runtime_max_tokens=batch.runtime_max_tokens - 1),
        everywhere=True,
    ),
    InvalidInput(
        name="runtime_max_tokens above max_tokens",
        unchecked="only the deprecated class asserts it; the functional API does not",
        words=r"runtime_max_tokens is \d+: it must lie in \[1, max_tokens = \d+\]",
        batch=lambda batch, x: replace(batch, runtime_max_tokens=x.max_tokens + 1),
        everywhere=True,
    ),
    InvalidInput(
        name="runtime_max_tokens differs between ranks",
        unchecked=OFFSETS,
        words=r"runtime_max_tokens is \d+ on ep_rank 0 but \d+ on ep_rank \d+",
        batch=lambda batch, x: replace(batch, runtime_max_tokens=batch.runtime_max_tokens + 1),
    ),
    InvalidInput(
        name="no payload",
        unchecked="checked by the kernel on this rank alone: the others hang",
        words=r"ep_rank \d+: 0 payloads: format \w+ with its extras has \d+",
        batch=lambda batch, x: replace(batch, payloads=()),
    ),
    InvalidInput(
        name="a payload of another width",
        unchecked=OFFSETS,
        words=r"payload 0 is \[(\d+), (\d+)\] of \w+: it must be contiguous \[tokens = \1, (?!\2\])",
        batch=rows(lambda rows: rows[:, :-1].contiguous()),
    ),
    InvalidInput(
        name="a payload of another dtype",
        unchecked=OFFSETS,
        words=r"payload 0 is torch\.float64: format \w+ has",
        batch=rows(lambda rows: rows.double()),
    ),
    InvalidInput(
        name="a payload that is not contiguous",
        unchecked="rows are read at the stride of contiguous ones",
        words="payload 0 is non-contiguous ",
        batch=rows(spread),
    ),
    InvalidInput(
        name="a payload with fewer rows than tokens",
        unchecked="checked by the kernel on this rank alone: the others hang",
        words=r"payload 0 is \[(\d+), (\d+)\] of \w+: it must be contiguous \[tokens = (?!\1,)\d+, \2\]",
        batch=rows(lambda rows: rows[:-1]),
    ),
    InvalidInput(
        name="ids of 64 bits",
        unchecked="read as int32 pairs",
        words=r"experts_TK is \[\d+, \d+\] of int64: ",
        batch=lambda batch, x: replace(batch, experts_TK=batch.experts_TK.long()),
    ),
    InvalidInput(
        name="ids of another top_k",
        unchecked="the tables' stride is the router's top_k: rows come back to other tokens",
        words=r"experts_TK is \[\d+, (\d+)\] of int32: it must be contiguous \[tokens, top_k = (?!\1\])",
        batch=lambda batch, x: replace(batch, experts_TK=batch.experts_TK.repeat(1, 2)),
    ),
    InvalidInput(
        name="weights of 64 bits",
        unchecked="travel as a payload of another width: " + OFFSETS,
        words=r"weights_TK is \[\d+, \d+\] of float64: ",
        batch=lambda batch, x: replace(batch, weights_TK=batch.weights_TK.double()),
    ),
    InvalidInput(
        name="fewer weights than tokens",
        unchecked="checked by the kernel on this rank alone: the others hang",
        words=r"experts_TK has (\d+) tokens but weights_TK (?!\1:)\d+: ",
        batch=lambda batch, x: replace(batch, weights_TK=batch.weights_TK[:-1]),
    ),
    InvalidInput(
        name="a rank mask on a transport without one",
        unchecked="checked by the kernel on this rank alone: the others hang",
        words=r"ep_rank \d+: active_ranks given but enable_rank_mask is False",
        batch=lambda batch, x: replace(batch, active_ranks=tuple(range(x.ep_size))),
    ),
    InvalidInput(
        name="expert statistics that were not reserved",
        unchecked="checked by the kernel on this rank alone: the others hang",
        words=r"eplb_stats_E is \[\d+\] of int32: it must be \[0\] of int32",
        batch=with_stats,
    ),
    InvalidInput(
        name="partials of another dtype",
        unchecked="fp8 without low-precision combine launches the bf16 kernel: it writes twice the output's size "
        "(moeAlltoAllKernels.cu)",
        words=r"partials are \[\d+, \d+\] of int8: ",
        partials=as_signed_bytes,
    ),
    InvalidInput(
        name="partials with a row too few",
        unchecked="stale or foreign memory is added up",
        words=r"partials are \[(\d+), (\d+)\] of \w+: combine takes contiguous \[(?!\1,)\d+, \2\]",
        partials=lambda rows: rows[:-1],
    ),
    InvalidInput(
        name="partials that are not contiguous",
        unchecked="rows are read at the stride of contiguous ones",
        words="partials are non-contiguous ",
        partials=spread,
    ),
    InvalidInput(
        name="a top_k without a kernel",
        unchecked="refused only after prepare has advanced the epoch: the workspace stays out of step "
        "(moeAlltoAllKernels.cu:104-164)",
        words="top_k is 5: the one-sided kernels are compiled for ",
        exchange=lambda x: replace(x, top_k=5),
        everywhere=True,
        modes=("one_sided",),
    ),
    InvalidInput(
        name="a top_k beyond prepare's",
        unchecked="refused only when the first round is prepared (trtllm_alltoall_prepare.cu:540)",
        words="top_k is 33: the two-sided prepare kernel takes at most 32",
        exchange=lambda x: replace(x, top_k=33, experts=128 * x.ep_size),
        everywhere=True,
        modes=("two_sided",),
    ),
    InvalidInput(
        name="fewer experts than ranks or choices",
        unchecked="refused only at the first dispatch",
        words=r"(experts is 0: |experts is \d+ but ep_size is \d+: |top_k is \d+ but there are \d+ experts: )",
        exchange=lambda x: replace(x, experts=x.top_k - 1),
        everywhere=True,
    ),
    InvalidInput(
        name="max_tokens differs between ranks",
        unchecked="workspaces of different size; a peer's row is read past its end",
        words=r"\bmax_tokens is \d+ on ep_rank 0 but \d+ on ep_rank \d+: ",
        exchange=lambda x: replace(x, max_tokens=x.max_tokens + 1),
    ),
    InvalidInput(
        name="modes differ between ranks",
        unchecked="each spins for ever on flags that the other does not know",
        words=r"mode is (one|two)_sided on ep_rank 0 but (?!\1)\w+_sided on ep_rank \d+: ",
        exchange=lambda x: replace(x, mode="two_sided" if x.mode == "one_sided" else "one_sided"),
    ),
    InvalidInput(
        name="experts that ranks cannot share evenly",
        unchecked="integer division sends rows to wrong ranks (trtllm_alltoall_prepare.cu)",
        words=r"experts is \d+: the two-sided prepare kernel needs a multiple of 4",
        exchange=lambda x: replace(x, experts=x.experts + 1),
        everywhere=True,
        modes=("two_sided",),
    ),
    InvalidInput(
        name="rows that are no multiple of 16 bytes",
        unchecked="checked only at the first move",
        words="extra 0 has 20 bytes per row: two_sided needs a multiple of 16 ",
        exchange=lambda x: replace(x, extra_payload_bytes=(20,)),
        everywhere=True,
        modes=("two_sided",),
    ),
    InvalidInput(
        name="a row longer than a FIFO entry",
        unchecked="zero rows fit an entry: an endless loop without a timeout (trtllm_alltoall.cuh)",
        words="extra 0 has 245776 bytes per row: .* at most 245760",
        exchange=lambda x: replace(x, extra_payload_bytes=(245_776,)),
        everywhere=True,
        modes=("two_sided",),
    ),
    InvalidInput(
        name="the FP8 sum of FP32 partials",
        unchecked="the output is bf16 whatever was asked",
        words="low_precision_combine with combine_dtype fp32: its result is bf16",
        exchange=lambda x: replace(x, low_precision_combine=True, combine_dtype="fp32"),
        everywhere=True,
        modes=("one_sided",),
    ),
)


def invalid_inputs(mode: str) -> tuple[InvalidInput, ...]:
    """Those that apply to a mode."""
    return tuple(invalid_input for invalid_input in INVALID_INPUTS if mode in invalid_input.modes)


def require_invalid_input(name: str) -> InvalidInput:
    """The invalid input of that name, in any case.

    Raises:
        Refused: there is none; says which there are.
    """
    by_name = {invalid_input.name: invalid_input for invalid_input in INVALID_INPUTS}
    return by_name[choose(name, by_name, "invalid input")]

"""Exercises of notebook 06: bytes of workspaces in both modes."""

from __future__ import annotations

from functools import cache

import mnnvl_lab as lab
from mnnvl_lab.course.exercise import Exercise, Mistake

EP8 = lab.Layout(dp=8)
MIB, GIB = 2**20, 2**30
FEW, MANY = 64, 16384


@cache
def planned(layout: lab.Layout = EP8, *, max_tokens: int = 8192, format: str = "bf16", sequence_parallel: bool = False):
    return lab.plan(
        layout,
        model="deepseek-v3",
        max_tokens=max_tokens,
        format=format,
        sequence_parallel=sequence_parallel,
        gpu="h100",
    )


def growth(layout: lab.Layout, *, sequence_parallel: bool = False) -> int:
    """How many times as much as TP 1 x DP 8 a rank allocates."""
    wide = planned(layout, sequence_parallel=sequence_parallel)
    return round(wide.one_sided.allocated_bytes / planned().one_sided.allocated_bytes)


def smaller_mode(tokens: int) -> str:
    modes = {each.mode: each.allocated_bytes for each in planned(max_tokens=tokens).modes}
    return min(("one_sided", "two_sided"), key=modes.get)


def most_tokens() -> int:
    return planned(lab.Layout(dp=32), max_tokens=1, format="nvfp4").most_tokens(3 * GIB)


def kept_percent() -> float:
    return 100 * lab.memory_overhead.kept_after_growth(planned().need, (1024, 2048, 4096, 8192)).share


EXERCISES = (
    Exercise(
        number="06.1",
        asks="How many bytes does one token of DeepSeek-V3 take on its way out, in bf16?",
        solution=lambda: planned().need.dispatch_bytes_per_token,
        unit="bytes",
        reason="A row of 7168 numbers of 2 bytes, and an id and a weight of 4 bytes for each of eight experts.",
        hints=("The row, 2 bytes per number. Behind it, for each expert, an int32 and a float32.",),
        mistakes=(
            Mistake(guess=lambda: 7168 * 2, message="that is the row alone, without ids and weights"),
            Mistake(guess=lambda: 7168 * 2 + 8 * 4, message="an expert takes both an id and a weight"),
            Mistake(guess=lambda: 7168, message="that is a number of values; bf16 takes two bytes for each"),
        ),
    ),
    Exercise(
        number="06.2",
        asks="How many whole GiB does each of eight GPUs give up for 8192 tokens per rank, both ways?",
        solution=lambda: planned().one_sided.asked_bytes // GIB,
        unit="GiB",
        reason="Ranks x tokens x (14,400 + 14,336) bytes are 1.75 GiB, and small tables come on top.",
        hints=("8 x 8192 slots, each with the bytes of dispatch and those of combine. A GiB is 2^30 bytes.",),
        mistakes=(
            Mistake(guess=lambda: round(planned().one_sided.asked_bytes / GIB), message="count whole GiB: round down"),
            Mistake(
                guess=lambda: planned().one_sided.asked_bytes // GIB // 2,
                message="that is one way; rows come back, too",
            ),
        ),
    ),
    Exercise(
        number="06.3",
        asks="By what factor grows each GPU's one-sided workspace from 8 GPUs to 64?",
        solution=lambda: growth(lab.Layout(dp=64)),
        tolerance=0.2,
        reason="A rank keeps M slots for each rank that may send, so its memory is in proportion to the ranks.",
        hints=("How many senders must each rank have room for, before and after?",),
        mistakes=(
            Mistake(guess=lambda: 1, message="tokens per rank are the same, but more ranks may send"),
            Mistake(guess=lambda: growth(lab.Layout(dp=64)) ** 2, message="that is the memory of all GPUs together"),
        ),
    ),
    Exercise(
        number="06.A",
        asks="How many MiB does each rank allocate, one-sided, EP 16, 2048 tokens, fp8 blocks?",
        solution=lambda: (
            planned(lab.Layout(dp=16), max_tokens=2048, format="fp8_block").one_sided.allocated_bytes // MIB
        ),
        unit="MiB",
        tolerance=4,
        reason="Dispatch slots hold an fp8 row, 56 scales, ids and weights; combine slots still hold a bf16 row, "
        "which is most of it.",
        hints=(
            "Slots: 16 x 2048. A dispatch slot: 7168 + 56 x 4 + 64 bytes. A combine slot: a row of bf16.",
            "Allocations are rounded up to 2 MiB.",
        ),
        mistakes=(
            Mistake(
                guess=lambda: 16 * 2048 * (7168 + 224 + 64 + 7168) // MIB,
                message="combine is always bf16, two bytes per number",
            ),
            Mistake(guess=lambda: 16 * 2048 * (7168 + 224 + 64) // MIB, message="that is dispatch alone"),
        ),
    ),
    Exercise(
        number="06.B",
        asks="By what factor grows a rank's workspace from TP 1 x DP 8 to TP 2 x DP 8, as vLLM sizes it "
        "and by a share?",
        solution=lambda: [growth(lab.Layout(tp=2, dp=8), sequence_parallel=share) for share in (False, True)],
        reason="Twice as many ranks may send. With a TP rank's share each of them sends half as much.",
        hints=("The slots are R x M. What happens to R, and what to M, in either case?",),
        mistakes=(Mistake(guess=lambda: [1, 2], message="the order is: as vLLM sizes it, then by a share"),),
    ),
    Exercise(
        number="06.C",
        asks="Which mode takes less memory on EP 8 in bf16, for 64 tokens, and which for 16,384?",
        solution=lambda: [smaller_mode(FEW), smaller_mode(MANY)],
        options=("one_sided", "two_sided"),
        reason="One-sided memory is in proportion to the tokens, two-sided memory does not depend on them.",
        hints=("Which of the two lines in the figure over tokens is flat?",),
    ),
    Exercise(
        number="06.D",
        asks="How many tokens can a batch have with 3 GiB on each of 32 GPUs, nvfp4 dispatch?",
        solution=lambda: most_tokens() // 100 * 100,
        tolerance=100,
        reason="3 GiB divided by 32 ranks and by the bytes of a dispatch and a combine slot.",
        hints=("`lab.plan(...).most_tokens(bytes)` answers it for any layout and format.",),
        mistakes=(
            Mistake(
                guess=lambda: planned(lab.Layout(dp=32), max_tokens=1).most_tokens(3 * GIB),
                message="that is for bf16 dispatch",
            ),
        ),
    ),
    Exercise(
        number="06.E",
        asks="What share of the workspaces' memory is of no use after growing from 1024 to 8192 tokens?",
        solution=lambda: round(kept_percent()),
        tolerance=1,
        unit="%",
        reason="The workspaces for 1024, 2048 and 4096 tokens stay allocated beside the last one: 7 parts of 15.",
        hints=("Sizes are 1, 2, 4 and 8 parts, and all stay allocated. Which of them is in use?",),
        mistakes=(Mistake(guess=lambda: 100 - round(kept_percent()), message="that is the part which is in use"),),
    ),
)

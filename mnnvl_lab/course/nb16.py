"""Exercises of notebook 16: predictions for machines that nobody here has."""

from __future__ import annotations

from functools import cache

import mnnvl_lab as lab
from mnnvl_lab.course.exercise import Exercise, Mistake

SHAPE = {"model": "deepseek-v3"}
GB200 = {"format": "nvfp4", "routing": "balanced", "gpu": "gb200"}
HALF = ("more than half", "less than half")


@cache
def grows_by() -> float:
    two, eight = (lab.predict(lab.Layout(dp=n), **SHAPE, tokens=2048, mode="one_sided")["one_sided"] for n in (2, 8))
    return eight.latency_us / two.latency_us


def ahead_with_few_tokens() -> str:
    """At EP 8 on a GB200, with one token."""
    few = lab.predict(lab.Layout(dp=8, gpus_per_node=4), **SHAPE, **GB200, tokens=1, mode=("one_sided", "two_sided"))
    return min(("one_sided", "two_sided"), key=lambda mode: few[mode].latency_us)


@cache
def bounds_factor(ep_size: int) -> float:
    """Bytes of all-gather over those of an all-to-all, over the fullest link."""
    modes = ("one_sided", "allgather_reducescatter")
    layout = lab.Layout(dp=ep_size, gpus_per_node=4)
    found = lab.predict(layout, **SHAPE, **GB200, tokens=1024, mode=modes)
    return found[modes[1]].bound_us / found[modes[0]].bound_us


def waiting_part() -> str:
    load = {"tokens": 256, "format": "nvfp4", "expert_us_per_row": 0.05, "routing": "hot_rank:0.2:5"}
    hot = lab.simulate_round(64, **SHAPE, **load)
    part = hot.table.groupby("rank")["idle_us"].sum().median() / hot.latency_us
    return HALF[0] if part > 0.5 else HALF[1]


EXERCISES = (
    Exercise(
        number="16.1",
        asks="By which factor does a one-sided round of 2048 tokens grow from 2 to 8 ranks?",
        solution=lambda: round(grows_by(), 1),
        tolerance=0.7,
        reason="Per token nearly one row left a rank of two, and 4.6 rows leave a rank of eight; at this "
        "size the link dominates.",
        hints=("How many rows per token leave a rank, before and after? What dominates at 2048 tokens?",),
        mistakes=(
            Mistake(guess=lambda: 8, message="a token does not go to all ranks"),
            Mistake(guess=lambda: 1, message="more of a token's rows leave its rank"),
        ),
    ),
    Exercise(
        number="16.2",
        asks="With few tokens on a GB200 at EP 8, which of the two is ahead?",
        solution=ahead_with_few_tokens,
        options=("one_sided", "two_sided"),
        reason="Without bytes, launches and flags count. One-sided combine waits for the flags of all ranks "
        "and then pulls "
        "from many; two-sided combine is sent.",
        hints=("What does a one-sided combine wait for, and how does that grow with the ranks?",),
    ),
    Exercise(
        number="16.3",
        asks="By which factor do the bytes over a link differ at EP 8 and at EP 64, all-gather over all-to-all?",
        solution=lambda: [round(bounds_factor(n)) for n in (8, 64)],
        reason="All-gather sends a token to all ranks, an all-to-all only to those of its eight experts.",
        hints=("To how many ranks does a token go in either case, with 8 ranks and with 64?",),
    ),
    Exercise(
        number="16.4",
        asks="Of 64 ranks one is hot: which part of the round does a median rank only wait?",
        solution=waiting_part,
        options=HALF,
        reason="Everybody waits until the hot rank has received and computed its rows, and then until it "
        "has sent them.",
        hints=("How many rows does the hot rank get, compared with a median rank?",),
    ),
)

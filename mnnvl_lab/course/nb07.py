"""Exercises of notebook 07: clocks, the slowest rank, and confidence, read from recorded rounds."""

from __future__ import annotations

from functools import cache

import pandas as pd

import mnnvl_lab as lab
from mnnvl_lab.course.exercise import Exercise, Mistake
from mnnvl_lab.records import statistics
from mnnvl_lab.records.table import ONE_ORIGIN

L2_BYTES = 50e6
NEAREST_US = (10, 20, 50, 100)
FIELDS = ("clock", "device", "fabric", "seed")


@cache
def rounds() -> pd.DataFrame:
    return lab.datasets.load_recorded("h100x2_nvlink_ep2_bf16").query("routing == 'uniform'")


def at_128() -> pd.DataFrame:
    return rounds().query("mode == 'one_sided' and tokens == 128")


def p50_us(table: pd.DataFrame, by: str) -> pd.Series:
    return table.pipe(lab.records.summary, by=[by]).set_index(by)["p50_us"]


def eager_round_us() -> float:
    return p50_us(at_128().query("phase == 'round'"), "clock")["eager"]


def round_against_sum() -> str:
    phases_us = p50_us(at_128().query("clock == 'eager'"), "phase")
    ratio = phases_us["round"] / (phases_us["dispatch"] + phases_us["combine"])
    return "less" if ratio < 0.95 else "more" if ratio > 1.05 else "same"


def kernel_against_graph() -> str:
    kernel = lab.datasets.load_recorded("h100x2_nvlink_ep2_kernel")
    kernel = kernel.query("routing == 'uniform' and mode == 'one_sided' and tokens == 128")
    graph_us = at_128().query("clock == 'graph'").pipe(lab.records.summary)["p50_us"].item()
    return "more" if p50_us(kernel, "phase").sum() > graph_us else "less"


def average_too_low_percent() -> float:
    eager = at_128().query("clock == 'eager' and phase == 'dispatch'")
    right_us = lab.records.slowest_rank(eager)["latency_us"].median()
    return 100 * (1 - eager.groupby("iteration")["latency_us"].mean().median() / right_us)


def first_beyond_l2() -> int:
    return int(min(tokens for tokens in rounds()["tokens"].unique() if tokens * 7168 * 2 > L2_BYTES))


def clock_nearest_1_ms() -> str:
    gathered = rounds().query("mode == 'allgather_reducescatter' and tokens == 4096 and phase == 'round'")
    return (p50_us(gathered, "clock") - 1000).abs().idxmin()


EXERCISES = (
    Exercise(
        number="07.1",
        asks="What does a round of 128 tokens take by `eager`: 10, 20, 50 or 100 µs?",
        solution=lambda: min(NEAREST_US, key=lambda choice: abs(choice - eager_round_us())),
        unit="µs",
        reason="Python's calls, the launches and the wait for a peer that left the barrier later weigh far "
        "more than the bytes.",
        hints=("Launching from Python costs some ten microseconds per kernel, on each rank at its own moment.",),
        mistakes=(Mistake(guess=lambda: NEAREST_US[0], message="that is the time of the bytes alone"),),
    ),
    Exercise(
        number="07.2",
        asks="Is the median of a round more than the sum of dispatch and combine, less, or the same?",
        solution=round_against_sum,
        options=("more", "less", "same"),
        reason="Each operation alone pays for its own barrier and entry; in a round that is paid once.",
        hints=("What is paid once per sample, whatever the sample holds?",),
    ),
    Exercise(
        number="07.3",
        asks="Is the sum of both phases by `kernel` more than a round by `graph`, or less?",
        solution=kernel_against_graph,
        options=("more", "less"),
        reason="A kernel span holds the gaps between the kernels of a phase, and what the profiler costs. "
        "A replayed graph overlaps set-up with work.",
        hints=("What does a profiler add to each kernel, and what do rounds in a replayed graph overlap?",),
    ),
    Exercise(
        number="07.4",
        asks="By how much is the median of the ranks' average too low?",
        solution=lambda: round(average_too_low_percent()),
        tolerance=1,
        unit="%",
        reason="The layer goes on when the slowest rank is done. The average mixes its time with that of "
        "ranks that waited less.",
        hints=("Per iteration: the maximum over ranks, and the mean over ranks. Then the medians of both.",),
    ),
    Exercise(
        number="07.5",
        asks="From which recorded token count on do a rank's rows no longer fit into 50 MB?",
        solution=first_beyond_l2,
        reason="A row has 14,336 bytes, and 50 MB hold nearly 3,500 of them; the next recorded count lies above.",
        hints=("Divide 50 MB by the bytes of a row. Recorded are powers of two.",),
        mistakes=(
            Mistake(guess=lambda: first_beyond_l2() // 2, message="these rows still fit"),
            Mistake(
                guess=lambda: first_beyond_l2() * 2,
                message="bf16 takes two bytes per number; an earlier count is too much already",
            ),
        ),
    ),
    Exercise(
        number="07.A",
        asks="To which clock is 1 ms for all-gather and reduce-scatter of 4096 tokens nearer?",
        solution=clock_nearest_1_ms,
        options=("eager", "graph"),
        reason="Of the two medians in the record, this one lies nearer to 1000 µs.",
        hints=("Take the record's rounds of that mode at 4096 tokens, and compare the medians by clock with 1000 µs.",),
    ),
    Exercise(
        number="07.B",
        asks="How often must a round be repeated for the median's 95 % interval to be known at all?",
        solution=lambda: statistics.MIN_SAMPLES,
        reason="The median lies outside all n samples with probability 2 x (1/2)^n, which must be below 5 %.",
        hints=("All n samples lie on one side of the median with probability 2 x (1/2)^n. When is that below 5 %?",),
        mistakes=(
            Mistake(
                guess=lambda: statistics.MIN_SAMPLES - 1,
                message="then both sides together still miss it with more than 5 %",
            ),
        ),
    ),
    Exercise(
        number="07.C",
        asks="Which of clock, device, fabric and seed must agree before two tables are joined?",
        solution=lambda: set(ONE_ORIGIN) & set(FIELDS),
        reason="Another clock, device or fabric makes another quantity of the number; another seed is just "
        "another sample.",
        hints=("Of which could two values never be averaged?",),
        mistakes=(Mistake(guess=lambda: set(FIELDS), message="a seed only draws another sample of the same load"),),
    ),
)

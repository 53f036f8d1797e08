"""Exercises of notebook 08: modes compared, on the records of a pair of H100s."""

from __future__ import annotations

from functools import cache

import pandas as pd

import mnnvl_lab as lab
from mnnvl_lab.course.exercise import Exercise, Mistake

SHAPE = {"experts": 256, "top_k": 8}
SIZES = (2, 4, 8, 16, 32, 64)
LAYERS = 60


@cache
def rounds() -> pd.DataFrame:
    return lab.datasets.load_recorded("h100x2_nvlink_ep2_bf16").query("phase == 'round' and routing == 'uniform'")


def graph() -> pd.DataFrame:
    return rounds().query("clock == 'graph'")


def p50_us(tokens: int) -> pd.Series:
    return graph().query(f"tokens == {tokens}").pipe(lab.records.summary).set_index("mode")["p50_us"]


def least_us(table: pd.DataFrame) -> float:
    return lab.plots.lower_bounds(table.query("tokens == 4096"))["latency_us"].item()


def share_percent(mode: str) -> int:
    return round(100 * least_us(graph()) / p50_us(4096)[mode])


@cache
def changes() -> pd.DataFrame:
    return lab.crossover.crossings(graph())


def changes_of_place() -> int:
    pair = {"two_sided", "allgather_reducescatter"}
    return sum({row.below, row.above} == pair for row in changes().itertuples())


def first_wasteful_size() -> int:
    """From which EP size on all-gather sends more than twice the rows that are needed."""
    load = lab.Load(routing=lab.routing.Uniform(), tokens=256)
    needed = {R: lab.traffic.wire(lab.traffic.rows_RR(load, **SHAPE, ep_size=R)).sum() / (256 * R) for R in SIZES}
    return min(R for R in SIZES if R - 1 > 2 * needed[R])


def wins_of_one_sided(table: pd.DataFrame, clock: str) -> int:
    return int(lab.crossover.table(table, clock=clock)["fastest"].str.startswith("one_sided").sum())


def conventions_of_twice_wire() -> set[str]:
    kernel = lab.datasets.load_recorded("h100x2_nvlink_ep2_kernel").query("routing == 'uniform' and tokens == 4096")
    spans = kernel.pipe(lab.records.summary).set_index(["mode", "phase"])["p50_us"]
    load = lab.Load(routing=lab.routing.Uniform(), tokens=4096)
    more = {"ep_size": 2, "bytes_per_token": 7168 * 2, "latency_us": spans["one_sided", "dispatch"]}
    rates = lab.bandwidth.table(lab.bandwidth.Transfer.of(load, **SHAPE, **more)).set_index("convention")
    ratio = rates["gigabytes_per_s"] / rates["gigabytes_per_s"]["wire"]
    return set(ratio.index[ratio.round() == 2])


def fp8_saves_percent() -> float:
    fp8 = lab.datasets.load_recorded("h100x2_nvlink_ep2_fp8")
    fp8 = fp8.query("clock == 'graph' and phase == 'round' and routing == 'uniform'")
    return 100 * (1 - least_us(fp8) / least_us(graph()))


def crossing_tokens() -> float:
    found = changes()
    return found[found["above"].eq("all_to_all") & found["below"].eq("two_sided")]["tokens"].item()


def another_wins_with_zipf() -> bool:
    zipf = lab.datasets.load_recorded("h100x2_nvlink_ep2_bf16").query("routing == 'zipf:1.2'")
    return not bool(lab.crossover.table(zipf)["fastest"].str.startswith("one_sided").all())


def saved_ms() -> float:
    at_64 = p50_us(64)
    return LAYERS * (at_64["two_sided"] - at_64["one_sided"]) / 1000


EXERCISES = (
    Exercise(
        number="08.1",
        asks="Which share of their time at 4096 tokens do one_sided and two_sided need for the bytes alone?",
        solution=lambda: [share_percent(mode) for mode in ("one_sided", "two_sided")],
        tolerance=5,
        unit="%",
        reason="One-sided writes a row once, where it is used. Two-sided copies it into an entry and out "
        "again, and adds flags.",
        hints=("One mode writes each row once, the other packs it and unpacks it: which is near the bound?",),
    ),
    Exercise(
        number="08.2",
        asks="How often do all-gather / reduce-scatter and two_sided change places from 1 to 4096 tokens?",
        solution=changes_of_place,
        reason="Their curves cross around the token counts at which two_sided is the runner-up.",
        hints=("Follow the two lines from left to right and count where they cross.",),
    ),
    Exercise(
        number="08.3",
        asks="From which size on does all-gather send more than twice as many rows as are needed?",
        solution=first_wasteful_size,
        reason="A token needs at most eight other ranks, however many there are; an all-gather sends it to "
        "all of them.",
        hints=("Compare `gathered` with twice `needed`, line by line.",),
        mistakes=(
            Mistake(guess=lambda: first_wasteful_size() // 2, message="there it is more, but not yet twice as many"),
        ),
    ),
    Exercise(
        number="08.4",
        asks="By `eager`: at how many of the 13 token counts is one_sided surely the fastest?",
        solution=lambda: wins_of_one_sided(rounds(), "eager"),
        reason="It has the fewest launches, too, so that launching from Python does not change the order.",
        hints=("`eager` adds launches to every mode. Which of the modes has the fewest of them?",),
    ),
    Exercise(
        number="08.5",
        asks="Which convention may have reported twice the `wire` figure?",
        solution=conventions_of_twice_wire,
        any_of=True,
        reason="These conventions count something that no link carries, such as rows that stay at home, or "
        "both directions.",
        hints=("Look in the table for rates about twice that of `wire`.",),
    ),
    Exercise(
        number="08.6",
        asks="By how much does the least time of a round shrink with fp8 dispatch, at thousands of tokens?",
        solution=lambda: round(fp8_saves_percent()),
        tolerance=2,
        unit="%",
        reason="Dispatch shrinks to about half, combine not at all, and both had been about equal.",
        hints=("Only one of the two directions gets narrower, to about half. What part of the whole is that?",),
        mistakes=(Mistake(guess=lambda: 50, message="only dispatch shrinks; results come back in bf16"),),
    ),
    Exercise(
        number="08.A",
        asks="At about how many tokens do two_sided and all_to_all change places? The lowest power of two above.",
        solution=lambda: 2 ** int(crossing_tokens()).bit_length(),
        reason="The crossing lies between two recorded token counts, and this is the upper one.",
        hints=("The table of changes has a line with these two modes; take its `tokens`.",),
        mistakes=(
            Mistake(
                guess=lambda: 2 ** (int(crossing_tokens()).bit_length() - 1),
                message="that is the power of two below it",
            ),
        ),
    ),
    Exercise(
        number="08.B",
        asks="With Zipf's law, is another mode the fastest at any token count?",
        solution=another_wins_with_zipf,
        reason="On two ranks nearly every token goes to both, whatever is popular, so skew changes little.",
        hints=("What does skew do to traffic between two ranks, if a token has eight choices?",),
    ),
    Exercise(
        number="08.C",
        asks="How many milliseconds per step does one_sided save over two_sided, 60 layers, 64 tokens?",
        solution=lambda: round(saved_ms(), 1),
        tolerance=0.15,
        unit="ms",
        reason="The difference of the two medians at 64 tokens, once per layer.",
        hints=("Subtract the medians by `graph` at 64 tokens, times 60; a millisecond is 1000 µs.",),
        mistakes=(Mistake(guess=lambda: saved_ms() / LAYERS, message="that is one layer"),),
    ),
)

"""Exercises of notebook 09: who waits for whom, and what a skewed routing does to the links."""

from __future__ import annotations

from collections.abc import Sequence

import mnnvl_lab as lab
from mnnvl_lab.course.exercise import Exercise, Mistake

ENTERED_US, MOVING_US = (0, 5, 40, 10), 20
LATE_MS = 100
DEEPSEEK = {"experts": 256, "top_k": 8, "ep_size": 8}


def reported(entered: Sequence[int], moving: int) -> list[int]:
    """Latencies of ranks that enter at these times and end together, `moving` after the last entry."""
    return [max(entered) + moving - each for each in entered]


def growth_ms() -> list[int]:
    """Of rank 0's dispatch and of its combine after a new barrier, if rank 1 enters a dispatch late."""
    dispatch = reported((0, LATE_MS), 0)[0] - reported((0, 0), 0)[0]
    combine = reported((0, 0), 0)[0] - reported((0, 0), 0)[0]
    return [dispatch, combine]


def shortest_reporter() -> str:
    """In the recorded iteration that the notebook draws."""
    eight = lab.datasets.load_recorded("h100x2_shared_ep8_bf16").query("mode == 'one_sided' and tokens == 1024")
    dispatch = eight.query("clock == 'eager' and routing == 'uniform' and phase == 'dispatch'")
    drawn = lab.skew.entries(dispatch).query("iteration == 15").sort_values("entered_us")
    return "last" if drawn["latency_us"].idxmin() == drawn.index[-1] else "first"


def busier_link() -> str:
    shape = {"experts": 64, "top_k": 4, "ep_size": 2}
    wire_RR = lab.traffic.wire(lab.traffic.rows_RR(lab.Load(routing=lab.routing.Uniform(), tokens=(96, 32)), **shape))
    return "same" if wire_RR.sum(axis=1).max() == wire_RR.sum(axis=0).max() else "rank 0"


def fullest_rows(routing: object) -> int:
    rows_RR = lab.traffic.rows_RR(lab.Load(routing=routing, tokens=1024), **DEEPSEEK)
    return int(lab.traffic.wire(rows_RR).sum(axis=0).max())


def hot_factor() -> float:
    return fullest_rows(lab.routing.HotRank(share=0.5, rank=0)) / fullest_rows(lab.routing.Uniform())


def zipf_costs_percent() -> float:
    pair = lab.datasets.load_recorded("h100x2_nvlink_ep2_bf16")
    pair = pair.query("mode == 'one_sided' and clock == 'graph' and tokens == 4096")
    p50_us = pair.pipe(lab.records.summary).set_index("routing")["p50_us"]
    return 100 * (p50_us["zipf:1.2"] / p50_us["uniform"] - 1)


def reach_percent() -> float:
    """Tokens of other ranks that reach rank 0."""
    load = lab.Load(routing=lab.routing.HotRank(share=0.9, rank=0), tokens=1024)
    return 100 * int(lab.traffic.rows_RR(load, **DEEPSEEK)[1:, 0].sum()) / (7 * 1024)


def mean_and_excess() -> list[float]:
    latencies = reported(ENTERED_US, MOVING_US)
    mean = sum(latencies) / len(latencies)
    return [mean, max(latencies) - mean]


EXERCISES = (
    Exercise(
        number="09.1",
        asks="Which rank reports the shortest latency: the one that entered first or last?",
        solution=shortest_reporter,
        options=("first", "last"),
        reason="All end at nearly the same time, since all wait for the last entry. Who entered last waited "
        "for nobody.",
        hints=("All bars end at about the same time. Which of them is the shortest?",),
    ),
    Exercise(
        number="09.2",
        asks="Rank 1 enters 100 ms late: by how much grow rank 0's dispatch and its combine?",
        solution=growth_ms,
        tolerance=5,
        unit="ms",
        reason="Rank 0 waits in dispatch for the whole delay. Combine begins after a new barrier, at which "
        "both are on time.",
        hints=("Where does rank 0 wait for rank 1? And is anybody still late after the next barrier?",),
        mistakes=(
            Mistake(
                guess=lambda: [LATE_MS // 2, LATE_MS // 2], message="the delay is not shared: it falls into one phase"
            ),
            Mistake(
                guess=lambda: [LATE_MS, LATE_MS], message="a new barrier precedes combine, so nobody is late there"
            ),
        ),
    ),
    Exercise(
        number="09.3",
        asks="Which rank's link is busy for longer, with 96 and 32 tokens?",
        solution=busier_link,
        options=("rank 0", "rank 1", "same"),
        reason="What one sends the other receives, and the fuller direction of either link carries the same rows.",
        hints=("What rank 0 sends, rank 1 must receive.",),
    ),
    Exercise(
        number="09.4",
        asks="By which factor is rank 0's link fuller under `hot_rank:0.5` than under `uniform`?",
        solution=lambda: round(hot_factor(), 1),
        tolerance=0.1,
        reason="A token goes to a rank once. Under uniform routing two thirds of all tokens reach a rank, "
        "so that no link can get more than half as full again.",
        hints=("Under `uniform` a rank gets about 0.66 of all tokens. What is the most that it can get?",),
        mistakes=(Mistake(guess=lambda: 4, message="choices are skewed by that much; rows are not"),),
    ),
    Exercise(
        number="09.5",
        asks="What does a round of 4096 tokens cost with `zipf:1.2` over uniform, EP 2 on NVLink?",
        solution=lambda: round(zipf_costs_percent()),
        tolerance=1,
        unit="%",
        reason="On two ranks nearly every token goes to both, whatever is popular: the traffic is the same.",
        hints=("How many of the tokens go to both ranks, with eight choices?",),
    ),
    Exercise(
        number="09.A",
        asks="Which latencies do ranks report that enter at 0, 5, 40 and 10 µs, if moving takes 20 µs?",
        solution=lambda: reported(ENTERED_US, MOVING_US),
        unit="µs",
        reason="All end at the same time, 20 µs after the last entry. Each reports that end minus its own entry.",
        hints=("At which time do all end? Subtract each entry from it.",),
        mistakes=(
            Mistake(guess=lambda: [MOVING_US] * 4, message="that leaves out the wait for the last entry"),
            Mistake(
                guess=lambda: [each + MOVING_US for each in ENTERED_US],
                message="nobody can end before the last one has entered",
            ),
        ),
    ),
    Exercise(
        number="09.B",
        asks="What is the average of those latencies, and by how much is the slowest above it?",
        solution=mean_and_excess,
        tolerance=0.05,
        unit="µs",
        reason="The average mixes the wait of early ranks with the short time of the late one; no layer was "
        "done in it.",
        hints=("Add up the four latencies of A, divide by four, and subtract the result from the largest.",),
    ),
    Exercise(
        number="09.C",
        asks="Under `hot_rank:0.9` on eight ranks, which share of the other ranks' tokens reaches rank 0?",
        solution=lambda: round(reach_percent()),
        tolerance=0.5,
        unit="%",
        reason="A token misses rank 0 only if none of its eight choices falls there.",
        hints=("Each choice misses rank 0 with a chance of one in ten. How likely do all eight?",),
        mistakes=(Mistake(guess=lambda: 90, message="that is the share of choices; a token has eight of them"),),
    ),
)

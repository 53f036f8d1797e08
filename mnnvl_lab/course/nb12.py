"""Exercises of notebook 12: the smallest one-sided kernels, step by step."""

from __future__ import annotations

import mnnvl_lab as lab
from mnnvl_lab.course.exercise import Exercise, Mistake

TARGETS = ((0, 1), (1, 1), (1, 0))
BOTH = ((True, True), (True, True))


def rows_that_came_twice() -> int:
    return sum(len(ranks) - len(set(ranks)) for ranks in TARGETS)


def found_without_epochs() -> str:
    search = lab.model_check.search(lab.model_check.Pico(rounds=(BOTH, BOTH), mistake="missing epoch").protocol)
    return "fault" if search.violation else "delay"


def further_ahead() -> str:
    ahead = lab.pico.fastest(lab.pico.ladder())
    return "small" if ahead["less, %"].idxmax() < 512 else "large"


EXERCISES = (
    Exercise(
        number="12.1",
        asks="How many rows in the table came twice?",
        solution=rows_that_came_twice,
        reason="Token 1 names rank 1 twice, so that its row came twice.",
        hints=("Which token names the same rank in both of its choices?",),
        mistakes=(Mistake(guess=lambda: len(TARGETS), message="the other tokens name two different ranks"),),
    ),
    Exercise(
        number="12.2",
        asks="Without epochs, does the model checker find a fault or only a delay?",
        solution=found_without_epochs,
        options=("fault", "delay"),
        reason="A flag of the last round lets a rank read before the rows of this round are there.",
        hints=("Flags are never lowered. What does a rank see in the second round, before anything has come?",),
    ),
    Exercise(
        number="12.3",
        asks="Is pico further ahead of FlashInfer in small or in large rounds?",
        solution=further_ahead,
        options=("small", "large"),
        reason="Fewer launches and waits save a fixed time, and that weighs most where there is little else.",
        hints=("Do both send the same bytes? Where, then, can the difference come from?",),
    ),
)

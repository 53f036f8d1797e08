"""Exercises of notebook 04: slots, flags, epochs and pulls of a one-sided round."""

from __future__ import annotations

import numpy as np

from mnnvl_lab.course.exercise import Exercise, Mistake
from mnnvl_lab.exchange import Exchange
from mnnvl_lab.layout import Layout
from mnnvl_lab.model_check import epoch_of
from mnnvl_lab.oracle import target_ranks
from mnnvl_lab.routing import Load, Uniform
from mnnvl_lab.routing.traffic import rows_RR

SHAPE = {"experts": 8, "top_k": 2}
EXCHANGE = Exchange(mode="one_sided", layout=Layout(dp=4), max_tokens=6, hidden=64, **SHAPE)
FIRST = Load(routing=Uniform(), tokens=(5, 3, 6, 4), seed=4)
SECOND = Load(routing=Uniform(), tokens=(1, 3, 6, 0), seed=3)
MOE_LAYERS, STEPS = 58, 100


def targets_TK() -> np.ndarray:
    """Ranks that rank 0's tokens go to; -1 where an earlier choice named the rank already."""
    return target_ranks(FIRST.experts_TK(0, ep_size=4, **SHAPE), experts=8, ep_size=4)


def row_bytes() -> int:
    return sum(part.row_bytes for part in EXCHANGE.payload_parts)


def slot_offset(source: int, slot: int) -> int:
    return (source * EXCHANGE.max_tokens + slot) * row_bytes()


def wire_RR() -> np.ndarray:
    return rows_RR(FIRST, ep_size=4, logical=False, **SHAPE)


def stale_rows() -> int:
    """On rank 1: per source, what the first round filled beyond what the second does."""
    first, second = (rows_RR(load, ep_size=4, **SHAPE)[:, 1] for load in (FIRST, SECOND))
    return int(np.maximum(first - second, 0).sum())


EXERCISES = (
    Exercise(
        number="04.1",
        asks="How many rows does rank 0 put into the memory of rank 3?",
        solution=lambda: int((targets_TK() == 3).sum()),
        reason="One row for each token that has a 3 among its target ranks.",
        hints=("Look for 3 in the column of target ranks.",),
        mistakes=(Mistake(guess=lambda: len(targets_TK()), message="those are all tokens of rank 0"),),
    ),
    Exercise(
        number="04.2",
        asks="How many bytes behind the beginning of the region does slot 1 of source 2 lie?",
        solution=lambda: slot_offset(2, 1),
        unit="bytes",
        reason="Before it lie two whole lines of M slots, those of sources 0 and 1, and slot 0 of its own line.",
        hints=("Count the slots that lie before it, in lines of six. Sources and slots count from 0.",),
        mistakes=(
            Mistake(guess=lambda: slot_offset(1, 0), message="sources count from 0: source 2 has two lines before it"),
            Mistake(guess=lambda: slot_offset(2, 0), message="that is slot 0 of source 2"),
            Mistake(guess=lambda: slot_offset(1, 2), message="that is slot 2 of source 1"),
            Mistake(guess=lambda: slot_offset(2, 1) // row_bytes(), message="that is a number of slots"),
        ),
    ),
    Exercise(
        number="04.3",
        asks="What is the epoch after two rounds, each with a dispatch and a combine?",
        solution=lambda: epoch_of(1, "combine"),
        reason="Every phase moves the epoch on by one, and two rounds have two phases each.",
        hints=("How many phases were there in all? The first one made the epoch 1.",),
        mistakes=(Mistake(guess=lambda: 2, message="that counts rounds; the epoch counts phases"),),
    ),
    Exercise(
        number="04.4",
        asks="How many rows does rank 0 pull in all, its own included?",
        solution=lambda: int((targets_TK() >= 0).sum()),
        reason="It pulls one row from each rank that it sent a row to: every entry of the table that is not -1.",
        hints=("Count the entries of the table of target ranks. Which of them stand for no row?",),
        mistakes=(
            Mistake(guess=lambda: targets_TK().size, message="a -1 stands for no row"),
            Mistake(guess=lambda: int((targets_TK() > 0).sum()), message="that leaves out the rows from rank 0 itself"),
        ),
    ),
    Exercise(
        number="04.A",
        asks="What is the epoch after 100 steps of a decoder with 58 mixtures of experts?",
        solution=lambda: epoch_of(STEPS * MOE_LAYERS - 1, "combine"),
        reason="Each step has one round per mixture-of-experts layer, and each round has two phases.",
        hints=("Layers without experts do no round. How many phases has a round?",),
        mistakes=(
            Mistake(guess=lambda: STEPS * MOE_LAYERS, message="those are rounds; each has two phases"),
            Mistake(guess=lambda: STEPS * 61 * 2, message="that counts the three layers without experts, too"),
        ),
    ),
    Exercise(
        number="04.B",
        asks="How many rows cross a link in the first round, over all ranks?",
        solution=lambda: int(wire_RR().sum()),
        reason="All rows of the table except those on its diagonal, which a rank sends to itself.",
        hints=("Add up the table of counters. Which of its cells cross no link?",),
        mistakes=(
            Mistake(
                guess=lambda: int(rows_RR(FIRST, ep_size=4, **SHAPE).sum()), message="that counts the diagonal, too"
            ),
        ),
    ),
    Exercise(
        number="04.C",
        asks="How many bytes does rank 2 put over links in the first round?",
        solution=lambda: int(wire_RR()[2].sum()) * EXCHANGE.dispatch_bytes_per_token,
        unit="bytes",
        reason="Each row takes two ids and two weights along, 16 bytes more than the row alone.",
        hints=("Rows that rank 2 sends to others, times 128 + 2 x 4 + 2 x 4 bytes.",),
        mistakes=(
            Mistake(guess=lambda: int(wire_RR()[2].sum()) * row_bytes(), message="that is without ids and weights"),
            Mistake(
                guess=lambda: int(rows_RR(FIRST, ep_size=4, **SHAPE)[2].sum()) * EXCHANGE.dispatch_bytes_per_token,
                message="that includes rows to itself, which cross no link",
            ),
        ),
    ),
    Exercise(
        number="04.D",
        asks="How many stale rows does the dispatch region of rank 1 hold after the second dispatch?",
        solution=stale_rows,
        reason="A round overwrites from the left only as many slots as it needs; what the first filled beyond stays.",
        hints=("Count the orange rows at the moment `round 2, after dispatch`, in the dispatch region.",),
    ),
)

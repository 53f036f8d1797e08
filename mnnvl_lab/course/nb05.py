"""Exercises of notebook 05: counts, entries and FIFOs of a two-sided round."""

from __future__ import annotations

import math

import numpy as np

from mnnvl_lab.course.exercise import Exercise, Mistake
from mnnvl_lab.exchange import Exchange
from mnnvl_lab.layout import Layout
from mnnvl_lab.model_check import TwoSidedFifo, search
from mnnvl_lab.routing import Load, Uniform, traffic
from mnnvl_lab.workspace import packets_per_row, rows_per_entry
from mnnvl_lab.workspace.two_sided import FIFO_DEPTH

SHAPE = {"experts": 8, "top_k": 2}
EXCHANGE = Exchange(mode="two_sided", layout=Layout(dp=4), max_tokens=400, hidden=7168, **SHAPE)
LOAD = Load(routing=Uniform(), tokens=(400, 40, 0, 120), seed=4)
SLOTS = 4 * 400


def rows_RR() -> np.ndarray:
    return traffic.rows_RR(LOAD, ep_size=4, **SHAPE)


def per_entry() -> int:
    """Rows of bf16 in an entry: ids and weights went ahead, in prepare."""
    return rows_per_entry(sum(part.row_bytes for part in EXCHANGE.payload_parts))


def own_entries() -> int:
    return math.ceil(rows_RR()[0, 0] / per_entry())


def fp8_rows_per_entry() -> int:
    return rows_per_entry(7168)


def first_overwriting_step() -> int:
    """By search: the fewest entries with which a sender that never waits spoils something."""
    broken = (
        n
        for n in range(1, 32)
        if search(TwoSidedFifo(entries=n, depth=FIFO_DEPTH, mistake="never full").protocol).violation
    )
    return next(broken) - 1


EXERCISES = (
    Exercise(
        number="05.1",
        asks="How many rows must rank 1 lay out room for?",
        solution=lambda: int(rows_RR()[:, 1].sum()),
        reason="What rank 1 receives is a column of the table: the rows that each source announces to it.",
        hints=("A line is what a rank sends, a column what it receives. Its own rows are laid out, too.",),
        mistakes=(
            Mistake(guess=lambda: int(rows_RR()[1].sum()), message="that is the line of rank 1, what it sends"),
            Mistake(
                guess=lambda: int(rows_RR()[:, 1].sum() - rows_RR()[1, 1]), message="rows to itself need room, too"
            ),
            Mistake(
                guess=lambda: SLOTS, message="that is what one-sided mode keeps; here only rows that come need room"
            ),
        ),
    ),
    Exercise(
        number="05.2",
        asks="At which row of rank 1's memory do the rows of rank 3 begin?",
        solution=lambda: int(rows_RR()[:3, 1].sum()),
        reason="Sources lie one behind the other, so those of rank 3 begin after those of ranks 0, 1 and 2.",
        hints=("Add up what rank 1 receives from the sources before rank 3.",),
        mistakes=(
            Mistake(guess=lambda: int(rows_RR()[1, :3].sum()), message="that adds up a line; rank 1 receives a column"),
        ),
    ),
    Exercise(
        number="05.3",
        asks="How many rows does an entry take, and how many one FIFO?",
        solution=lambda: [per_entry(), FIFO_DEPTH * per_entry()],
        reason="An entry has 128 packets and a row takes eight of them. A FIFO has eight entries.",
        hints=("128 packets per entry, divided by the packets of a row; then eight entries per FIFO.",),
    ),
    Exercise(
        number="05.4",
        asks="In how many entries go rank 0's 196 rows to itself, and at which place lies the last?",
        solution=lambda: [own_entries(), (own_entries() - 1) % FIFO_DEPTH],
        reason="The last entry may be partly filled. Entry number s of all time lies at place s mod 8, counted from 0.",
        hints=(
            "Rows divided by rows per entry, rounded up. The last entry's number is one less, since they count from 0.",
        ),
        mistakes=(
            Mistake(
                guess=lambda: [own_entries(), own_entries() % FIFO_DEPTH],
                message="entries count from 0, so the last one's number is one less",
            ),
            Mistake(
                guess=lambda: [own_entries() - 1, (own_entries() - 2) % FIFO_DEPTH],
                message="the rows that are left over take an entry, too",
            ),
        ),
    ),
    Exercise(
        number="05.5",
        asks="Through which FIFO travel the results of rank 1 for rank 0?",
        solution=lambda: f"{1} to {0}",
        options=("0 to 1", "1 to 0"),
        reason="Each direction has its own FIFO, and in combine the rank that received the rows is the sender.",
        hints=("Who is the sender in combine?",),
    ),
    Exercise(
        number="05.A",
        asks="How many FP8 rows of 7168 bytes fit into an entry?",
        solution=fp8_rows_per_entry,
        reason="A row takes 7168 / 1920 packets, rounded up since rows share none, and an entry has 128.",
        hints=("Packets per row, rounded up, with 1920 bytes of data per packet. Then 128 divided by it.",),
        mistakes=(
            Mistake(guess=lambda: 128 // packets_per_row(14336), message="that is for bf16 rows"),
            Mistake(
                guess=lambda: 2**18 // 7168,
                message="part of each packet is flags, so that only 1920 of its 2048 bytes are data",
            ),
        ),
    ),
    Exercise(
        number="05.B",
        asks="After how many rows does a sender stop whose peer takes nothing?",
        solution=lambda: FIFO_DEPTH * per_entry(),
        reason="It fills all entries of the FIFO, and then waits for the tail.",
        hints=("How many rows does one FIFO hold?",),
        mistakes=(Mistake(guess=per_entry, message="that is one entry"),),
    ),
    Exercise(
        number="05.C",
        asks="If a sender ignored the tail: which step first spoils something, and whose rows are lost?",
        solution=lambda: [first_overwriting_step(), first_overwriting_step() % FIFO_DEPTH],
        reason="The places are used in turn, so the first step after all of them are full takes the place "
        "of the first.",
        hints=("Step number s lies at place s mod 8. Which step is the first to reuse a place?",),
        mistakes=(
            Mistake(
                guess=lambda: [FIFO_DEPTH + 1, 1],
                message="steps count from 0, so the first one to reuse a place comes earlier",
            ),
            Mistake(guess=lambda: [FIFO_DEPTH - 1, 0], message="that step takes the last free place"),
        ),
    ),
    Exercise(
        number="05.D",
        asks="How many entries pass through all FIFOs in this dispatch?",
        solution=lambda: int(np.ceil(rows_RR() / per_entry()).sum()),
        reason="Each pair of ranks has its own FIFO, so entries are rounded up for each pair.",
        hints=("Divide each cell of the table by the rows per entry and round it up, before you add.",),
        mistakes=(
            Mistake(
                guess=lambda: math.ceil(rows_RR().sum() / per_entry()),
                message="rows of different pairs share no entry: round up for each pair",
            ),
        ),
    ),
)

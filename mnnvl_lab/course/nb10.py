"""Exercises of notebook 10: hangs, deaths, and protocols with one step missing."""

from __future__ import annotations

from functools import cache

import mnnvl_lab as lab
from mnnvl_lab.course.exercise import Exercise, Mistake
from mnnvl_lab.hang.snapshot import BUSY, DEAD, DONE
from mnnvl_lab.model_check import COUNTERPARTS, OneSided, epoch_of, search
from mnnvl_lab.model_check.counterparts import SAME_SIZE
from mnnvl_lab.workspace import rows_per_entry
from mnnvl_lab.workspace.two_sided import FIFO_DEPTH

ROUNDS_BEFORE = 3
LIVING = (0, 1, 2)
SIGNS = ("a flag", "a counter of its own", "entries in FIFOs that lead to it")


@cache
def violation(name: str) -> str:
    """What the model checker finds in the model of a broken protocol."""
    return search(COUNTERPARTS[name].broken.protocol).violation


def is_deadlock(name: str) -> bool:
    return violation(name).startswith("deadlock")


def wrong_part(name: str) -> str:
    """`rows` if a row of dispatch is wrong, `sums` if a result of combine is."""
    return "sums" if "'sum of" in violation(name) else "rows"


def right_after(rounds: int) -> bool:
    return search(OneSided(rounds=SAME_SIZE[:rounds], mistake="epoch stands still").protocol).violation is None


def choices_of_dead_rank() -> int:
    copies_RR = lab.traffic.copies_RR(small_load(), experts=16, top_k=4, ep_size=4)
    return int(copies_RR[list(LIVING), 3].sum())


def small_load() -> lab.Load:
    """Of `lab.faults.small_point`."""
    return lab.faults.small_point(lab.Layout(tp=2, dp=2)).load


def missing_in_circle() -> int:
    """Culprits that the report names if ranks 0 and 1 wait for each other."""
    from mnnvl_lab.hang.diagnosis import HangReport, Wait

    waits = tuple(Wait(waiter=a, awaited=1 - a, missing="dispatch", evidence="") for a in (0, 1))
    return len(HangReport(layout=lab.Layout(dp=2), snapshots={}, waits=waits, limit_s=2).culprits)


def unnoticed_rows() -> int:
    return FIFO_DEPTH * rows_per_entry(7168 * 2)


EXERCISES = (
    Exercise(
        number="10.1",
        asks="At which epoch do the others hang, after three rounds?",
        solution=lambda: epoch_of(ROUNDS_BEFORE, "dispatch"),
        reason="Three rounds moved the epoch on six times, and the dispatch of the fourth once more.",
        hints=("How many phases are done before the fourth dispatch? That dispatch moves the epoch on, too.",),
        mistakes=(
            Mistake(
                guess=lambda: epoch_of(ROUNDS_BEFORE - 1, "combine"),
                message="that is the epoch of the last phase that was done",
            ),
            Mistake(guess=lambda: ROUNDS_BEFORE + 1, message="that counts rounds; the epoch counts phases"),
        ),
    ),
    Exercise(
        number="10.2",
        asks="What tells that rank 2 has not come to a two-sided combine?",
        solution=lambda: SIGNS[2],
        options=SIGNS,
        reason="A sender fills the entries that lead to it, and nobody empties them: the head stays beyond the tail.",
        hints=("What does a rank leave behind that others wrote for it?",),
    ),
    Exercise(
        number="10.3",
        asks="Which of the others would have noticed the death of rank 2 by themselves, and at once?",
        solution=set,  # no memory of a living rank changes when another process ends
        reason="Shared memory outlives the process that wrote it, and a flag that does not come looks like "
        "one that is late.",
        hints=("What would have to change in a rank's own memory for it to notice?",),
        mistakes=(Mistake(guess=lambda: {0, 1, 3}, message="all of them wait for it, but waiting is not noticing"),),
    ),
    Exercise(
        number="10.4",
        asks="How many of the 60 choices of the living fall on rank 3?",
        solution=choices_of_dead_rank,
        tolerance=3,
        reason="Rank 3 owns a quarter of the experts, so that about a quarter of all choices are lost.",
        hints=("Which share of the experts does rank 3 own?",),
        mistakes=(
            Mistake(guess=lambda: 0, message="a mask keeps rows from being sent; the router still chose these experts"),
        ),
    ),
    Exercise(
        number="10.5",
        asks="Broken 1, the flag before the rows: what is wrong?",
        solution=lambda: "hang" if is_deadlock("FlagBeforePayload") else f"the {wrong_part('FlagBeforePayload')}",
        options=("the counts", "the rows", "hang"),
        reason="A receiver waits for the flag alone. Counts are written before it, rows after it: whoever "
        "is fast reads old ones.",
        hints=("The flag comes as ever, so nobody waits too long. What is not there yet when it comes?",),
    ),
    Exercise(
        number="10.6",
        asks="Broken 2, no barrier after clearing: wrong rows or hang?",
        solution=lambda: "hang" if is_deadlock("NoBarrierAfterInitialising") else "wrong rows",
        options=("wrong rows", "hang"),
        reason="The slow rank wipes out flags that others have raised already. It waits for them for ever, "
        "and soon they wait for it.",
        hints=(
            "The others are done with clearing and go on. What do they write into the slow rank's memory, "
            "before it clears it?",
        ),
    ),
    Exercise(
        number="10.7",
        asks="Broken 3, the epoch stays at 1: are one round and two rounds right?",
        solution=lambda: [right_after(rounds) for rounds in (1, 2)],
        reason="Flags are never lowered. In the second round those of the first are still up, and nobody waits.",
        hints=("Before the first round all flags are 0. What are they before the second?",),
    ),
    Exercise(
        number="10.8",
        asks="Broken 4, combine without waiting: what is wrong, dispatch's rows or combine's sums?",
        solution=lambda: {"rows": "dispatch", "sums": "combine"}[wrong_part("CombineWithoutWaiting")],
        options=("dispatch", "combine"),
        reason="Dispatch says that rows have arrived, not that the experts are done with them. Combine "
        "pulls results that are not there yet.",
        hints=("Which phase reads what it has not waited for?",),
    ),
    Exercise(
        number="10.9",
        asks="Broken 5: up to how many rows for one peer does a sender that never waits go unnoticed?",
        solution=unnoticed_rows,
        reason="As long as all rows fit into the FIFO's eight entries, nothing is overwritten.",
        hints=("How many entries has a FIFO? An entry takes 16 of these rows.",),
        mistakes=(Mistake(guess=lambda: rows_per_entry(7168 * 2), message="that is one entry"),),
    ),
    Exercise(
        number="10.A",
        asks="In which state is a rank found that closed its transport and returned?",
        solution=lambda: DONE,
        options=(BUSY, DONE, DEAD),
        reason="Its call has answered and its process lives on, ready for the next call.",
        hints=("Did its process end? Did its call?",),
    ),
    Exercise(
        number="10.B",
        asks="How many ranks are missing if ranks 0 and 1 wait for each other alone?",
        solution=missing_in_circle,
        reason="Missing is who is waited for and waits for nobody. In a circle everybody waits, so they are "
        "out of step.",
        hints=("A rank is missing if others wait for it and it waits for nobody. Who waits for nobody here?",),
        mistakes=(Mistake(guess=lambda: 2, message="both are waited for, but both also wait"),),
    ),
    Exercise(
        number="10.C",
        asks="Which value has rank 1's combine flag, if it stayed away from the combine of the fourth round?",
        solution=lambda: epoch_of(ROUNDS_BEFORE - 1, "combine"),
        reason="It signalled last in the combine of the third round, and nothing has cleared that flag since.",
        hints=("When did rank 1 raise its combine flag for the last time, and what was the epoch then?",),
        mistakes=(
            Mistake(
                guess=lambda: epoch_of(ROUNDS_BEFORE, "combine"), message="that is the epoch which the others wait for"
            ),
            Mistake(guess=lambda: epoch_of(ROUNDS_BEFORE, "dispatch"), message="that is its dispatch flag"),
        ),
    ),
)

"""Exercises of notebook 15: a step of prepare that is published twice."""

from __future__ import annotations

import re
from functools import cache

import mnnvl_lab as lab
from mnnvl_lab.course.exercise import Exercise, Mistake
from mnnvl_lab.model_check import Prepare, search, trace_table

SHAPE = {"top_k": 8, "experts": 256}
LOAD = lab.Load(routing=lab.routing.Uniform(), tokens=2048, seed=11)
SENDERS = ("another token's", "another rank's", "round 0's")
STATES = ("under 100", "about 10,000", "over a million")
QUESTIONS = ("is the step empty?", "is the step full?", "does the step hold a packet, and is it not full?")
PLACES = ("everywhere", "only where a last step is full", "only with many ranks")


@cache
def found(packets: tuple[int, ...] = (2, 2), *, fixed: bool = False):
    return search(Prepare(packets=packets, fixed=fixed).protocol)


def first_wrong() -> tuple[int, int, int]:
    """Round and packet that was due, and the round of the packet that was read, by the shortest counterexample."""
    read, due = re.findall(r"packet (\d+) of round (\d+)", found().violation)
    return int(due[1]), int(due[0]), int(read[1])


def rows_to_self() -> int:
    return int(lab.traffic.rows_RR(LOAD, **SHAPE, ep_size=2)[0, 0])


def head_at_rest() -> int:
    return Prepare(packets=(2,)).protocol.cells["head"]


def highest_head(packets: int) -> int:
    """That a round of so many packets publishes in the model, before a round that goes wrong."""
    return int(trace_table(found((packets, 2))).query("cell == 'head'")["value"].max())


def states() -> str:
    return STATES[0] if found().states < 100 else STATES[1] if found().states < 10**6 else STATES[2]


def line_of_second_publication() -> str:
    """S4 publishes a step when its last packet is filled; what publishes without one is S5."""
    labels = [event.label for event in found().trace if event.process == "sender"]
    last = max(i for i, label in enumerate(labels) if "publish" in label)
    return "S4" if "fill" in labels[last - 1] else "S5"


def cure() -> str:
    """The mended model publishes at the end only what is begun and not full."""
    return QUESTIONS[2] if found(fixed=True).violation is None else QUESTIONS[1]


def places() -> str:
    lost = lab.findings.lost_steps()
    return PLACES[1] if set(lost.query("lost > 0")["last_step"]) == {"full"} else PLACES[0]


EXERCISES = (
    Exercise(
        number="15.1",
        asks="Whose weights did round 1 receive?",
        solution=lambda: SENDERS[2] if first_wrong()[2] < first_wrong()[0] else SENDERS[0],
        options=SENDERS,
        reason="The receiver read the buffer before the sender had filled it again, so it found what the "
        "last round left.",
        hints=("Compare the column of what round 1 received with the columns of what was due.",),
    ),
    Exercise(
        number="15.2",
        asks="Which value should head have between two rounds?",
        solution=head_at_rest,
        reason="Both counters begin at 0 in each round, and the receiver sets them back after its last packet.",
        hints=("What does line R5 do?",),
    ),
    Exercise(
        number="15.3",
        asks="How many packets are about 2040 rows, and is the last step full?",
        solution=lambda: [
            lab.workspace.prepare_packets(rows_to_self(), **SHAPE),
            lab.workspace.fills_last_step(rows_to_self(), **SHAPE),
        ],
        reason="A packet carries 128 tokens, and a step has as many packets as these rows need.",
        hints=("Rows divided by 128 tokens per packet, rounded up. How many packets has a step?",),
    ),
    Exercise(
        number="15.4",
        asks="How many states does the search visit until it finds the mistake?",
        solution=states,
        options=STATES,
        reason="The two sides wait for each other most of the time, so that few orders are possible.",
        hints=("Most of the time one side cannot go on before the other has. How many orders does that leave?",),
    ),
    Exercise(
        number="15.5",
        asks="Which line of the table does step 13?",
        solution=line_of_second_publication,
        options=("S2", "S4", "S5"),
        reason="The last step is full: one line has published it when its last packet was filled, and this "
        "one does so again.",
        hints=("Which line publishes at the end of a round, whatever was published before?",),
    ),
    Exercise(
        number="15.6",
        asks="What must S5 ask, so that it publishes only what S4 has not?",
        solution=cure,
        options=QUESTIONS,
        reason="An empty step has nothing to publish, and a full one has been published.",
        hints=("There are two cases in which S5 must publish nothing.",),
    ),
    Exercise(
        number="15.7",
        asks="Which packet will be the first wrong one, in which round? Round and packet.",
        solution=lambda: list(first_wrong()[:2]),
        reason="The head that stayed up lets the receiver read in the next round at once, from the first packet on.",
        hints=("Round 0 begins with clean counters. Which is the first round that finds a head above 0?",),
        mistakes=(Mistake(guess=lambda: [0, 0], message="in round 0 the counters begin at 0, and all is right"),),
    ),
    Exercise(
        number="15.8",
        asks="In which cases are steps lost on GPUs?",
        solution=places,
        options=PLACES,
        reason="Only a full last step is published twice.",
        hints=("When does S5 publish something that was published already?",),
    ),
    Exercise(
        number="15.A",
        asks="What is head after a round of four packets in two steps, with the reset just before the "
        "last publication?",
        solution=lambda: highest_head(4),
        reason="S4 publishes heads 1 and 2. S5 publishes one more, whatever the receiver has reset in between.",
        hints=("The sender counts its publications by itself. How many are there, with S5's?",),
        mistakes=(
            Mistake(
                guess=lambda: highest_head(4) - 1, message="that is without the second publication of the last step"
            ),
        ),
    ),
    Exercise(
        number="15.B",
        asks="With top-6, what is the least number of rows to one target that is hit?",
        solution=lambda: lab.workspace.first_rows_that_fill(top_k=6, experts=256),
        reason="Hit are rounds that need the last packet of a step: one row more than the packets before it hold.",
        hints=("63 packets of 256 choices hold 63 x 256 choices, six per row. One row more needs packet 64.",),
    ),
    Exercise(
        number="15.C",
        asks="Is anything wrong in rounds of one packet more than a full step?",
        solution=lambda: bool(found((3, 3)).violation),
        reason="The last step of such a round has a single packet, so S4 never published it, and S5 publishes it once.",
        hints=("Is the last step of such a round full?",),
    ),
)

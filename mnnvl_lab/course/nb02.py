"""Exercises of notebook 02: a workspace over the DP group, where it fails and where nobody notices."""

from __future__ import annotations

from mnnvl_lab.course.exercise import Exercise, Mistake
from mnnvl_lab.layout import Layout
from mnnvl_lab.wrong_group import affected_layouts

SQUARE = Layout(tp=2, dp=2)
ROW = Layout(dp=4)
CUBE = Layout(tp=2, pcp=2, dp=2)
WIDE = Layout(tp=2, dp=4)
SIZES = ((1, 8, 1, 1), (2, 4, 1, 1), (4, 2, 1, 1), (8, 1, 1, 1), (1, 4, 2, 1), (1, 4, 1, 2), (2, 2, 1, 2))
LAYOUTS = tuple(Layout(tp=tp, dp=dp, pcp=pcp, pp=pp) for tp, dp, pcp, pp in SIZES)
MODES = ("one_sided", "two_sided")


def right_rounds(layout: Layout) -> int:
    """Of four attempts, two modes with two groups, those whose workspace has a row for each EP rank."""
    spans = [len(layout.group_of(group, 0)) for group in ("dp", "ep")]
    return len(MODES) * sum(each == layout.ep_size for each in spans)


def rows_where(column: str) -> set[int]:
    table = affected_layouts(LAYOUTS)
    return set(table.index[table[column]])


def out_of_reach(layout: Layout) -> set[int]:
    return set(layout.group_of("ep", 0)) - set(layout.group_of("dp", 0))


EXERCISES = (
    Exercise(
        number="02.1",
        asks="How many rows does rank 0 see, if the DP group of TP 2 x DP 2 allocates the workspace?",
        solution=lambda: len(SQUARE.group_of("dp", 0)),
        reason="A workspace has a row for each rank of the group that allocates it, and a DP group here has two ranks.",
        hints=("How many ranks have one colour in the second picture?",),
        mistakes=(Mistake(guess=lambda: SQUARE.ep_size, message="that is the EP group, which the kernels believe in"),),
    ),
    Exercise(
        number="02.2",
        asks="In how many of four attempts (two modes, two groups) is a round right, on DP 4?",
        solution=lambda: right_rounds(ROW),
        reason="With TP 1 there is one DP group, and it is the EP group: the wrong call returns the right ranks.",
        hints=("Draw both groups for TP 1. Which ranks does each of them have?",),
        mistakes=(
            Mistake(guess=lambda: right_rounds(SQUARE), message="that was so with TP 2: look at the DP group again"),
        ),
    ),
    Exercise(
        number="02.A",
        asks="Which of these layouts of eight GPUs were hit? A set of row numbers.",
        solution=lambda: rows_where("hit"),
        reason="Hit are the layouts that exchange tokens and have TP or PCP above 1. "
        "Pipeline stages alone change nothing, since they cut both groups.",
        hints=(
            "Two conditions must both hold: DP or PCP above 1, and a DP group that is not the EP group.",
            "Compare dp with tp x dp x pcp, line by line. PP does not enter.",
        ),
        mistakes=(
            Mistake(
                guess=lambda: {i for i, each in enumerate(LAYOUTS) if each.groups("dp") != each.groups("ep")},
                message="one of these has DP 1 and PCP 1, and so no all-to-all: nothing is exchanged through "
                "a workspace",
            ),
            Mistake(
                guess=lambda: {i for i, each in enumerate(LAYOUTS) if each.dp != each.world_size and each.dp > 1},
                message="one of these has stages, but an EP group is one stage and there equals the DP group",
            ),
        ),
    ),
    Exercise(
        number="02.B",
        asks="How many EP ranks are out of reach of rank 0, on TP 2 x PCP 2 x DP 2?",
        solution=lambda: len(out_of_reach(CUBE)),
        reason="The DP group of rank 0 has two ranks, itself and one more. The others of eight are not mapped.",
        hints=("Count the EP group, and take away the ranks of the DP group.",),
        mistakes=(Mistake(guess=lambda: len(CUBE.group_of("dp", 0)), message="those are the ranks within reach"),),
    ),
    Exercise(
        number="02.C",
        asks="Which two numbers name the kernels if the TP group allocates, on TP 2 x DP 4?",
        solution=lambda: [len(WIDE.group_of("tp", 0)), WIDE.ep_size],
        reason="First the rows of the workspace, then ep_size: the message compares what is there with what is asked.",
        hints=("The message has the form (rows of the workspace vs. ep_size).",),
        mistakes=(
            Mistake(guess=lambda: [len(WIDE.group_of("dp", 0)), WIDE.ep_size], message="that is with the DP group"),
            Mistake(
                guess=lambda: [WIDE.ep_size, len(WIDE.group_of("tp", 0))],
                message="the numbers are right, their order is not",
            ),
        ),
    ),
)

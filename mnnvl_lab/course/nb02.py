"""Exercises of notebook 02: a workspace over the DP group, where it fails and where nobody notices."""

from __future__ import annotations

from mnnvl_lab.course.exercise import Exercise, Mistake
from mnnvl_lab.layout import Layout
from mnnvl_lab.planner import plan
from mnnvl_lab.wrong_group import affected_layouts, recorded, workspace_over

SQUARE = Layout(tp=2, dp=2)
ROW = Layout(dp=4)
CUBE = Layout(tp=2, pcp=2, dp=2)
WIDE = Layout(tp=2, dp=4)
SIZES = ((1, 8, 1, 1), (2, 4, 1, 1), (4, 2, 1, 1), (8, 1, 1, 1), (1, 4, 2, 1), (1, 4, 1, 2), (2, 2, 1, 2))
LAYOUTS = tuple(Layout(tp=tp, dp=dp, pcp=pcp, pp=pp) for tp, dp, pcp, pp in SIZES)
STAGES = Layout(tp=4, dp=2, pp=2)
MODES = ("one_sided", "two_sided")
PHASES = ("open", "prepare", "dispatch", "combine")


def right_rounds(layout: Layout) -> int:
    """Of four attempts, two modes with two groups, those whose workspace has a row for each EP rank."""
    spans = [len(layout.group_of(group, 0)) for group in ("dp", "ep")]
    return len(MODES) * sum(each == layout.ep_size for each in spans)


def rows_where(column: str) -> set[int]:
    table = affected_layouts(LAYOUTS)
    return set(table.index[table[column]])


def out_of_reach(layout: Layout) -> set[int]:
    return set(layout.group_of("ep", 0)) - set(layout.group_of("dp", 0))


def found_row(rank: int, row: int) -> int:
    """Whose memory a kernel finds in a row of the workspace over the DP group."""
    wrong = workspace_over(plan(SQUARE, model="deepseek-v3", max_tokens=2048)).mapped_rows()
    return int(wrong.set_index(["rank", "row"]).loc[(rank, row), "found"])


def refusals(layer: str, mode: str) -> set[str]:
    """Phases in which a layer refused, of all recorded attempts."""
    table = recorded()
    rows = table[table["layer"].str.startswith(layer) & table["mode"].eq(mode) & table["outcome"].eq("mismatch")]
    return set(rows["phase"])


def phase(layer: str, mode: str) -> str:
    (only,) = refusals(layer, mode)
    return only


def first_to_refuse() -> str:
    return min(("MnnvlMoe", "moe_ep"), key=lambda layer: PHASES.index(phase(layer, "two_sided")))


def two_numbers(layout: Layout, group: str) -> list[int]:
    """Rows of the workspace, and `ep_size`."""
    return [len(layout.group_of(group, 0)), layout.ep_size]


EXERCISES = (
    Exercise(
        number="02.1",
        asks="How many rows has the workspace of rank 0, if its DP group allocates it, on TP 2 x DP 2?",
        solution=lambda: len(SQUARE.group_of("dp", 0)),
        reason="A workspace has a row for each rank of the group that allocates it, and a DP group here has two ranks.",
        hints=("How many ranks share a colour in the second picture?",),
        mistakes=(Mistake(guess=lambda: SQUARE.ep_size, message="that is the EP group, which the kernels count on"),),
    ),
    Exercise(
        number="02.2",
        asks="Whose memory is row 1 of the workspace of rank 1?",
        solution=lambda: found_row(1, 1),
        reason="Rows are in the order of the group that allocates: row 0 is the first rank of this DP "
        "group, row 1 the second.",
        hints=("Write down the ranks of its DP group, and count them from 0.",),
        mistakes=(
            Mistake(guess=lambda: 1, message="so the kernel believes; but row i belongs to the group's rank number i"),
            Mistake(guess=lambda: found_row(0, 1), message="that is row 1 of rank 0, which is in another DP group"),
        ),
    ),
    Exercise(
        number="02.3",
        asks="When does the one-sided mode notice: open, dispatch or combine?",
        solution=lambda: phase("kernels", "one_sided"),
        options=("open", "dispatch", "combine"),
        reason="The call that initialises a one-sided workspace compares its rows with ep_size, before "
        "there is anything to send.",
        hints=("Its kernels initialise the workspace before they use it. What could that call compare?",),
    ),
    Exercise(
        number="02.4",
        asks="When does the two-sided mode notice: open, prepare, dispatch or combine?",
        solution=lambda: phase("kernels", "two_sided"),
        options=PHASES,
        reason="Neither open nor prepare compares rows with ep_size. The first phase that moves rows does.",
        hints=("The check stands in the kernel that moves rows. Which phase is the first to call it?",),
        mistakes=(
            Mistake(guess=lambda: "open", message="so it is in one-sided mode; here it compares nothing"),
            Mistake(guess=lambda: "prepare", message="it exchanges counts, and compares nothing"),
            Mistake(guess=lambda: "combine", message="rows move before that already"),
        ),
    ),
    Exercise(
        number="02.5",
        asks="In how many of four attempts (two modes, two groups) is a round right, on DP 4?",
        solution=lambda: right_rounds(ROW),
        reason="With TP 1 there is one DP group, and it is the EP group: the wrong call returns the right ranks.",
        hints=("Which ranks has the DP group if TP is 1? And the EP group?",),
        mistakes=(
            Mistake(
                guess=lambda: right_rounds(SQUARE), message="that was so with TP 2: which ranks has the DP group now?"
            ),
        ),
    ),
    Exercise(
        number="02.6",
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
        number="02.7",
        asks="Which class refuses a two-sided workspace over the DP group already in open?",
        solution=first_to_refuse,
        options=("MnnvlMoe", "moe_ep"),
        reason="It is told the number of ranks and the communicator together, and compares them before it "
        "allocates anything.",
        hints=("To compare two numbers one must have both of them. Which class does?",),
    ),
    Exercise(
        number="02.A",
        asks="Which two numbers do the kernels name on TP 4 x DP 2 x PP 2, with a workspace over the DP group?",
        solution=lambda: two_numbers(STAGES, "dp"),
        reason="A DP group has as many ranks as DP. The EP group is one stage, DP x TP ranks.",
        hints=("First the ranks of a DP group, then those of the EP group. An EP group does not cross stages.",),
        mistakes=(
            Mistake(
                guess=lambda: [STAGES.dp, STAGES.world_size],
                message="that counts both stages; an EP group is one of them",
            ),
            Mistake(guess=lambda: two_numbers(STAGES, "dp")[::-1], message="the numbers are right, their order is not"),
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
        solution=lambda: two_numbers(WIDE, "tp"),
        reason="First the rows of the workspace, then ep_size: the message compares what is there with what is asked.",
        hints=("The message has the form (rows of the workspace vs. ep_size).",),
        mistakes=(
            Mistake(guess=lambda: two_numbers(WIDE, "dp"), message="that is with the DP group"),
            Mistake(
                guess=lambda: two_numbers(WIDE, "tp")[::-1],
                message="the numbers are right, their order is not",
            ),
        ),
    ),
)

"""Exercises of notebook 01: groups of ranks, owners of experts, tokens per rank."""

from __future__ import annotations

from mnnvl_lab.course.exercise import Exercise, Mistake
from mnnvl_lab.layout import Layout, expert_owner, sp_token_counts

LAYOUT = Layout(tp=2, dp=4)
STAGED = Layout(tp=2, dp=2, pp=2)
THREE_AXES = Layout(tp=4, dp=2, pp=2)
TWO_NODES = Layout(tp=2, dp=8, gpus_per_node=8)
EIGHT = tuple(Layout(tp=tp, dp=8 // tp) for tp in (1, 2, 4, 8))
CHOICES = (7, 100, 101, 255)
TOKENS = (7, 3, 8, 1)


def owners() -> list[int]:
    return list(expert_owner(CHOICES, experts=256, ep_size=LAYOUT.ep_size))


def on_other_node() -> int:
    return sum(TWO_NODES.node_of(peer) != TWO_NODES.node_of(0) for peer in TWO_NODES.group_of("ep", 0))


EXERCISES = (
    Exercise(
        number="01.1",
        asks="Which ranks are in the DP group of rank 5, on TP 2 x DP 4?",
        solution=lambda: LAYOUT.group_of("dp", 5),
        reason="Rank 5 has TP 1. With TP held at 1, DP runs down the right column of the grid.",
        hints=("A DP group keeps the TP coordinate. In the table of the grid, which column holds 5?",),
        tells_length=False,
        mistakes=(
            Mistake(
                guess=lambda: LAYOUT.group_of("tp", 5), message="that is the TP group: there TP runs and DP is fixed"
            ),
            Mistake(guess=lambda: LAYOUT.group_of("ep", 5), message="that is the EP group: here only DP may run"),
            Mistake(guess=lambda: LAYOUT.group_of("dp", 0), message="that is the DP group of the ranks with TP 0"),
        ),
    ),
    Exercise(
        number="01.2",
        asks="How many ranks has the EP group of TP 2 x DP 4?",
        solution=lambda: LAYOUT.ep_size,
        reason="The EP group merges DP, PCP and TP, so its size is their product.",
        hints=("Which ranks hold the same MoE layer? All of those belong to it.",),
        mistakes=(
            Mistake(guess=lambda: len(LAYOUT.group_of("dp", 0)), message="that is the size of a DP group"),
            Mistake(guess=lambda: len(LAYOUT.group_of("tp", 0)), message="that is the size of a TP group"),
        ),
    ),
    Exercise(
        number="01.3",
        asks="To how many ranks travels a token that chose the experts 7, 100, 101 and 255?",
        solution=lambda: len(set(owners())),
        reason="Each rank owns 32 experts. 100 and 101 live on the same rank, which gets the row once.",
        hints=("256 experts on 8 ranks: divide each expert's number by the experts per rank and drop the fraction.",),
        mistakes=(Mistake(guess=lambda: len(CHOICES), message="that counts experts, and two of them share a rank"),),
    ),
    Exercise(
        number="01.4",
        asks="Which global ranks form the EP group of rank 0, on TP 2 x DP 2 x PP 2?",
        solution=lambda: STAGED.group_of("ep", 0),
        reason="Stage 0 has the ranks whose PP coordinate is 0. PP moves slower than TP and faster than DP, "
        "so that the two stages alternate in pairs.",
        hints=(
            "Write the ranks as digits DP, PP, TP, from 000 to 111. Rank 0 is in stage 0.",
            "The middle digit is the stage. Take the four numbers in which it is 0.",
        ),
        tells_length=False,
        mistakes=(
            Mistake(
                guess=lambda: list(range(STAGED.ep_size)),
                message="these are the first ranks by number; the grid counts PP before DP",
            ),
            Mistake(
                guess=lambda: list(range(STAGED.world_size)),
                message="those are both stages; each has experts of its own",
            ),
            Mistake(guess=lambda: STAGED.group_of("dp", 0), message="that is the DP group of rank 0"),
        ),
    ),
    Exercise(
        number="01.5",
        asks="How many tokens sends each of eight EP ranks with SP-MoE, if the DP ranks hold 7, 3, 8 and 1?",
        solution=lambda: sp_token_counts(list(TOKENS), tp=2, sequence_parallel=True),
        reason="Each of the two TP ranks takes half of its DP rank's tokens, padded to the same number.",
        hints=("Divide each DP rank's tokens by TP, round up, and write the result once for each TP rank.",),
        mistakes=(
            Mistake(
                guess=lambda: sp_token_counts(list(TOKENS), tp=2, sequence_parallel=False),
                message="that is without SP-MoE: both TP ranks send all tokens",
            ),
            Mistake(
                guess=lambda: [n // 2 + half for n in TOKENS for half in (n % 2, 0)],
                message="the sum is right, but shares are padded: both TP ranks send equally many",
            ),
        ),
    ),
    Exercise(
        number="01.A",
        asks="What is the EP rank of global rank 13, on TP 4 x DP 2 x PP 2?",
        solution=lambda: THREE_AXES.ep_rank(13),
        reason="Rank 13 has DP 1, PP 1, TP 1. Within its stage it comes after the four ranks of DP 0 and after TP 0.",
        hints=("13 = 8 x DP + 4 x PP + TP. Leave out the stage, and count DP and TP alone.",),
        mistakes=(
            Mistake(guess=lambda: 13, message="that is its global rank"),
            Mistake(guess=lambda: THREE_AXES.coordinates(13)["tp"], message="that is its TP rank"),
        ),
    ),
    Exercise(
        number="01.B",
        asks="For which TP is the DP group the same as the EP group, on eight ranks?",
        solution=lambda: {each.tp for each in EIGHT if each.groups("dp") == each.groups("ep")},
        reason="The EP group merges DP and TP, so it can only equal the DP group where TP has a single rank.",
        hints=("How many ranks has a DP group if TP is 2? And the EP group?",),
        mistakes=(
            Mistake(
                guess=lambda: {each.tp for each in EIGHT if each.groups("tp") == each.groups("ep")},
                message="there the TP group is the EP group",
            ),
        ),
    ),
    Exercise(
        number="01.C",
        asks="How many EP peers of rank 0 sit on the other node, on TP 2 x DP 8 over two nodes of eight?",
        solution=on_other_node,
        reason="The EP group has all sixteen ranks, and a node holds eight of them.",
        hints=("How many ranks has the EP group in all, and how many GPUs has a node?",),
        mistakes=(
            Mistake(
                guess=lambda: sum(TWO_NODES.node_of(peer) != 0 for peer in TWO_NODES.group_of("dp", 0)),
                message="those are the peers of its DP group",
            ),
            Mistake(guess=lambda: TWO_NODES.ep_size, message="that is the whole EP group"),
        ),
    ),
)

"""Exercises of notebook 03: rows, copies and traffic that follow from a routing."""

from __future__ import annotations

from mnnvl_lab.course.exercise import Exercise, Mistake
from mnnvl_lab.layout import expert_owner
from mnnvl_lab.model import require_model
from mnnvl_lab.routing import HotRank, Load, Uniform, Zipf
from mnnvl_lab.routing.traffic import rows_RR

EP_SIZE, TOKENS = 8, 128
LOAD = Load(routing=Uniform(), tokens=TOKENS)
HOTTEST = Load(routing=HotRank(share=1.0, rank=0), tokens=TOKENS)
HOT = Load(routing=HotRank(share=0.5, rank=0), tokens=TOKENS)
RAGGED = Load(routing=Uniform(), tokens=(512, 64, 64, 64, 64, 64, 0, 192))
SINGLE = {"experts": 128, "top_k": 1, "ep_size": EP_SIZE}
PAIR = {"experts": 256, "top_k": 8, "ep_size": 2}


def shape() -> dict[str, int]:
    model = require_model("deepseek-v3")
    return {"experts": model.experts, "top_k": model.top_k, "ep_size": EP_SIZE}


def first_owners() -> list[int]:
    """Ranks that own the experts of rank 0's first token."""
    return list(expert_owner(LOAD.experts_TK(0, **shape())[0], experts=shape()["experts"], ep_size=EP_SIZE))


def rows_per_token() -> float:
    return rows_RR(LOAD, **shape()).sum() / (EP_SIZE * TOKENS)


def filled_percent() -> float:
    """Of the slots on rank 6, in the ragged load."""
    return 100 * rows_RR(RAGGED, **shape())[:, 6].sum() / (RAGGED.max_tokens * EP_SIZE)


def crossing_percent() -> float:
    wire, logical = (rows_RR(LOAD, **PAIR, logical=kind).sum() for kind in (False, True))
    return 100 * wire / logical


def hot_rank_sends() -> str:
    sums = rows_RR(HOT, **shape(), logical=False).sum(axis=1)
    return "fewer" if sums[0] < sums[1:].min() else "more"


def same_first_choices() -> bool:
    short = Load(routing=Uniform(), tokens=16)
    return bool((short.experts_TK(3, **shape()) == LOAD.experts_TK(3, **shape())[:16]).all())


EXERCISES = (
    Exercise(
        number="03.1",
        asks="How many rows of rank 0's first token must be sent, one per rank?",
        solution=lambda: len(set(first_owners())),
        reason="One row serves all experts of a rank, so the rows are the different ranks in the table.",
        hints=("Count the different numbers in the line `rank` of the table.",),
        mistakes=(
            Mistake(guess=lambda: len(first_owners()), message="that is the number of choices; some share a rank"),
            Mistake(
                guess=lambda: len(set(first_owners()) - {0}),
                message="that leaves out the row that stays on rank 0, which counts too",
            ),
        ),
    ),
    Exercise(
        number="03.2",
        asks="How many different ranks does a token reach on average, eight choices over eight ranks?",
        solution=lambda: round(rows_per_token(), 1),
        tolerance=0.15,
        reason="A rank is missed by all eight choices with probability of about (7/8)^8, a third, "
        "and so two thirds of the eight ranks are reached.",
        hints=("A choice misses a certain rank with probability 7/8. How likely do all eight miss it?",),
        mistakes=(Mistake(guess=lambda: EP_SIZE, message="some choices fall on the same rank"),),
    ),
    Exercise(
        number="03.3",
        asks="One in how many rows stays at home, in an even routing over 8 ranks?",
        solution=lambda: round(rows_RR(LOAD, **shape()).sum() / rows_RR(LOAD, **shape()).trace()),
        reason="Every rank is as likely a target as any other, and one of the R targets is the token's own rank.",
        hints=("The diagonal is one cell of a line. How many cells has a line?",),
    ),
    Exercise(
        number="03.4",
        asks="What is the largest number of rows that can arrive at one rank, with 128 tokens on each of eight?",
        solution=lambda: int(rows_RR(HOTTEST, **shape())[:, 0].sum()),
        reason="A token goes to a rank once, whatever it chose: one row for each token that exists.",
        hints=("How many tokens exist in all, and how often may one token arrive at the same rank?",),
        mistakes=(
            Mistake(guess=lambda: TOKENS, message="those are the tokens of one rank"),
            Mistake(
                guess=lambda: TOKENS * EP_SIZE * shape()["top_k"], message="those are copies; a row goes once per rank"
            ),
            Mistake(guess=lambda: TOKENS * (EP_SIZE - 1), message="that leaves out its own tokens, which count too"),
        ),
    ),
    Exercise(
        number="03.5",
        asks="What part of rank 6's 8 x 512 slots is filled in the ragged round?",
        solution=lambda: round(filled_percent()),
        tolerance=1,
        unit="%",
        reason="Slots are sized for the fullest rank, but only one rank is full: most slots stay empty.",
        hints=("The sum on top of column 6, divided by 8 x 512.",),
    ),
    Exercise(
        number="03.A",
        asks="How many rows per token travel on 8 ranks with top-1, home included?",
        solution=lambda: int(
            rows_RR(Load(routing=Zipf(exponent=1.2), tokens=TOKENS), **SINGLE).sum() / (EP_SIZE * TOKENS)
        ),
        reason="A single choice names a single rank, in any routing.",
        hints=("How many experts does a token choose, and on how many ranks can these live?",),
    ),
    Exercise(
        number="03.B",
        asks="About how many percent of all rows cross the link, top-8 of 256 experts on 2 ranks?",
        solution=lambda: round(crossing_percent()),
        tolerance=1,
        unit="%",
        reason="With eight choices nearly every token reaches both ranks, and one of its two rows stays at home.",
        hints=("How likely do all eight choices fall on the same one of two ranks?",),
        mistakes=(Mistake(guess=lambda: 100, message="each token's row for its own rank crosses no link"),),
    ),
    Exercise(
        number="03.C",
        asks="Does rank 0 send more or fewer rows over links than the others, in the hot-rank load?",
        solution=hot_rank_sends,
        options=("more", "fewer"),
        reason="The favourite target of rank 0's own tokens is rank 0 itself, and those rows cross no link.",
        hints=("Half of all choices fall on rank 0. What does that mean for the tokens that are there already?",),
    ),
    Exercise(
        number="03.D",
        asks="Are the choices of the first 16 tokens the same in loads of 16 and of 128 tokens?",
        solution=same_first_choices,
        reason="Random numbers are drawn per token from a counter, so that a token's choices do not depend "
        "on how many follow.",
        hints=("Try it: `experts_TK` of both loads, and compare the first 16 lines.",),
    ),
)

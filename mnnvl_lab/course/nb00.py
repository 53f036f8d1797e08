"""Exercises of notebook 00: memory and traffic of the quickstart's round, before it runs."""

from __future__ import annotations

import mnnvl_lab as lab
from mnnvl_lab.course.exercise import Exercise, Mistake

LAYOUT = lab.Layout(tp=2, dp=2)
SHAPE = {"experts": 32, "top_k": 8}
MAX_TOKENS, MIB = 512, 2**20
MANY = ("more than three", "less than three")


def slots() -> int:
    return LAYOUT.ep_size * MAX_TOKENS


def dispatch_mib() -> float:
    """Room for what may arrive in dispatch: rows, ids and weights."""
    need = lab.ExchangeShape(layout=LAYOUT, max_tokens=MAX_TOKENS, hidden=1024, **SHAPE)
    return slots() * need.dispatch_bytes_per_token / MIB


def ranks_per_token() -> str:
    load = lab.Load(routing=lab.routing.Uniform(), tokens=MAX_TOKENS, seed=0)
    reached = lab.traffic.rows_RR(load, **SHAPE, ep_size=LAYOUT.ep_size).sum() / slots()
    return MANY[0] if reached > 3 else MANY[1]


EXERCISES = (
    Exercise(
        number="00.1",
        asks="How many MiB must a rank keep free for what may arrive, four ranks with at most 512 tokens each?",
        solution=lambda: round(dispatch_mib(), 1),
        tolerance=0.15,
        unit="MiB",
        reason="Any of the four ranks, itself included, may send 512 rows of 2048 bytes, each with 64 bytes "
        "of ids and weights.",
        hints=("Ranks x tokens x bytes per token. How many bytes has a token, and how many has a MiB?",),
        mistakes=(
            Mistake(
                guess=lambda: dispatch_mib() / LAYOUT.ep_size,
                message="that is room for a single sender; any rank may send",
            ),
            Mistake(
                guess=lambda: dispatch_mib() * (LAYOUT.ep_size - 1) / LAYOUT.ep_size,
                message="a rank also sends to itself, so that it is a sender, too",
            ),
            Mistake(
                guess=lambda: 2 * dispatch_mib(),
                message="that counts combine, too; asked is what may arrive in dispatch",
            ),
        ),
    ),
    Exercise(
        number="00.2",
        asks="Does a token with 8 of 32 experts reach more or less than three of four ranks, on average?",
        solution=ranks_per_token,
        options=MANY,
        reason="A rank is missed only if all eight choices fall on the other three, and that is rare.",
        hints=("How likely do all eight choices miss the eight experts of one rank?",),
    ),
)

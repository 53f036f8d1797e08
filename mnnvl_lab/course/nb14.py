"""Exercises of notebook 14: placements of experts, EPLB, the memory of replicas, the least redundancy."""

from __future__ import annotations

from functools import cache

import numpy as np
import pandas as pd

from mnnvl_lab.course.exercise import Exercise, Mistake
from mnnvl_lab.layout import Layout
from mnnvl_lab.placement import Placement, balanced, effects, least_redundant
from mnnvl_lab.placement.balance import replicated
from mnnvl_lab.routing import Load, Zipf
from mnnvl_lab.routing.traffic import copies_E

EXPERTS, EP_SIZE, TOKENS, REDUNDANT = 256, 8, 256, 32
SHAPE = {"experts": EXPERTS, "top_k": 8, "ep_size": EP_SIZE}
ROUTING = Zipf(exponent=1.2)
SMALL_LOADS, SMALL_SLOTS = (90, 40, 20, 10), 6


def counted(seed: int = 0) -> np.ndarray:
    """Copies per logical expert of a round."""
    return copies_E(Load(routing=ROUTING, tokens=TOKENS, seed=seed), **SHAPE)


@cache
def table() -> pd.DataFrame:
    placements = [Placement.linear(EXPERTS, EP_SIZE), balanced(counted(), EP_SIZE, redundant=REDUNDANT)]
    return effects(placements, routing=ROUTING, tokens=TOKENS, layout=Layout(dp=EP_SIZE), model="deepseek-v3")


def hottest_percent() -> float:
    """Copies of the most popular expert, as a share of a rank's mean."""
    loads = counted()
    return 100 * loads.max() / (loads.sum() / EP_SIZE)


def small_replicas() -> list[int]:
    return np.bincount(replicated(np.array(SMALL_LOADS, dtype=float), SMALL_SLOTS)).tolist()


def shorter_percent() -> float:
    before, after = table()["predicted_us"]
    return 100 * (1 - after / before)


def least() -> list[int]:
    needed = least_redundant(256, 3).set_index(["layer", "mode"])["redundant"]
    return [int(needed["vLLM 0.33", mode]) for mode in ("one_sided", "two_sided")]


def stale_is() -> str:
    """A placement that was balanced for one popularity, under another."""
    load_R = balanced(counted(0), EP_SIZE, redundant=REDUNDANT).load_R(counted(1))
    return "balanced" if load_R.max() < 1.2 * load_R.mean() else "not balanced"


def first_choices_percent() -> float:
    """Of first choices of an expert with two replicas, those that take the first replica by position."""
    placement = Placement.linear(4, 2, redundant=4)
    chosen = np.tile(np.arange(4), (100, 1))
    found = placement.physical_ids(chosen, rank=0, pick="by_position")[:, 0]
    return 100 * float((found == 0).mean())


EXERCISES = (
    Exercise(
        number="14.1",
        asks="Which rank has expert 100 of 256 in a round-robin placement on 8 ranks?",
        solution=lambda: next(r for r in range(EP_SIZE) if 100 in Placement.round_robin(EXPERTS, EP_SIZE).held_by(r)),
        reason="Expert e lies on rank e mod R.",
        hints=("Deal the experts out like cards: 0 to rank 0, 1 to rank 1, and so on.",),
        mistakes=(Mistake(guess=lambda: 100 // 32, message="that is its rank in the linear placement"),),
    ),
    Exercise(
        number="14.2",
        asks="The most popular expert alone: what part of a rank's mean load is it, in percent?",
        solution=lambda: round(hottest_percent()),
        tolerance=2,
        unit="%",
        reason="One expert of 256 makes most of the load of a rank that has 32; whatever lies beside it, that rank is "
        "nearly full.",
        hints=("`counts.max()`, over the mean load of a rank, which is `counts.sum() / 8`.",),
        mistakes=(
            Mistake(
                guess=lambda: round(100 * counted().max() / counted().sum()),
                message="that is its part of all copies, not of one rank's mean",
            ),
        ),
    ),
    Exercise(
        number="14.3",
        asks="Four experts with loads 90, 40, 20 and 10 get six slots. How many replicas has each?",
        solution=small_replicas,
        reason="The first extra slot halves the 90 to 45, which is still the largest share, so the second one goes to "
        "the same expert.",
        hints=("One slot each. Which expert has most load per replica? Give it the next slot, and ask again.",),
        mistakes=(Mistake(guess=lambda: [2, 2, 1, 1], message="after the first extra slot, compare shares again"),),
    ),
    Exercise(
        number="14.4",
        asks="What do 32 redundant experts cost each of the 8 ranks, for DeepSeek-V3 with weights in fp8?",
        solution=lambda: round(table()["replica_bytes"].iloc[1] / 2**30, 1),
        tolerance=0.3,
        unit="GiB",
        reason="Four more slots per rank in each of 58 layers, and an expert has three matrices of 7,168 x 2,048 "
        "numbers, one byte each.",
        hints=("Slots per rank and layer, times layers, times the parameters of one expert.",),
        mistakes=(
            Mistake(
                guess=lambda: round(8 * table()["replica_bytes"].iloc[1] / 2**30, 1),
                message="that is what all ranks pay together",
            ),
        ),
    ),
    Exercise(
        number="14.5",
        asks="By how many percent does the predicted round get shorter, from linear to balanced with 32 more slots?",
        solution=lambda: round(shorter_percent()),
        tolerance=3,
        unit="%",
        reason="The fullest link carries fewer rows, and a round is as long as its fullest link; the experts' work is "
        "evened out much further.",
        hints=("Compare `predicted_us` in the first and the last row of the table.",),
    ),
    Exercise(
        number="14.6",
        asks="256 experts on 3 ranks: the least redundant experts that vLLM takes one-sided, and two-sided?",
        solution=least,
        reason="One-sided, the number must be a multiple of 3. The two-sided kernel also wants a multiple of 4, so the "
        "next one is a multiple of 12.",
        hints=("Find the next multiple of 3, then the next multiple of both 3 and 4, and subtract 256.",),
    ),
    Exercise(
        number="14.A",
        asks="A placement was balanced for one day's popularity. Under another day's, is it balanced?",
        solution=stale_is,
        options=("balanced", "not balanced"),
        reason="Replicas stand for experts that were popular, and other experts are popular now: counts must be taken "
        "again, and experts moved.",
        hints=("Compute `load_R` of the old placement with the new counts.",),
    ),
    Exercise(
        number="14.B",
        asks="Top-4, two replicas, picked by position: what part of an expert's first choices takes the first replica?",
        solution=lambda: round(first_choices_percent()),
        unit="%",
        reason="The position of a first choice is 4 times the token, which is even, so modulo 2 it is always the same.",
        hints=("Write down the positions of the first choices of tokens 0, 1 and 2, modulo 2.",),
        mistakes=(Mistake(guess=lambda: 50, message="that would be so if position and choice were independent"),),
    ),
)

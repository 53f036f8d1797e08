"""Exercises of notebook 11: sweeps, records and comparisons of one's own."""

from __future__ import annotations

from dataclasses import replace

import mnnvl_lab as lab
from mnnvl_lab.course.exercise import Exercise, Mistake

LAYOUT = lab.Layout(dp=2)
SMALL_TOKENS, WHOLE_TOKENS = (8, 64), (8, 64, 512)
PAYLOAD_BYTES = 100e6
COMPARED, ONE_ALARM = 40, 0.01


def sweep(tokens: tuple[int, ...]):
    return lab.Sweep(layouts=(LAYOUT,), tokens=tokens, hidden=1024, experts=32, top_k=4)


def points(tokens: tuple[int, ...]) -> int:
    return len(list(sweep(tokens).points()))


def link_us() -> float:
    """Least time for 100 MB out while as much comes in, of the two H100s' record."""
    h100 = lab.links.limits(lab.datasets.load_recorded("h100x2_nvlink_links", kind="links"))
    both_ways = h100.query("quantity == 'kernel_stores' and direction == 'both_ways'")["gigabytes_per_s"].max()
    return 2 * PAYLOAD_BYTES / (both_ways * 1e9) * 1e6


def slower_percent() -> float:
    pair = [lab.datasets.load_recorded(name) for name in ("h100x2_nvlink_ep2_bf16", "h100x2_nvlink_ep2_again")]
    rounds = lab.records.compare(*pair).query("phase == 'round' and verdict == 'slower'")
    return float(rounds["change_percent"].max())


def wider_points() -> int:
    return len(list(replace(sweep(WHOLE_TOKENS), hidden=2048).points()))


def common_counts() -> int:
    mine, theirs = ({2**n for n in powers} for powers in (range(6, 13), range(7)))
    return len(mine & theirs)


EXERCISES = (
    Exercise(
        number="11.1",
        asks="What is the least time for one rank's 100 MB, if a kernel stores them while the other does the same?",
        solution=lambda: round(link_us()),
        tolerance=3,
        unit="µs",
        reason="The rate adds up both directions, so that each has half of it.",
        hints=("The line `kernel_stores`, `both_ways`. How many MB cross the link in all?",),
        mistakes=(
            Mistake(
                guess=lambda: link_us() / 2, message="the rate counts both directions: two times 100 MB are stored"
            ),
        ),
    ),
    Exercise(
        number="11.2",
        asks="How many points are measured, if 512 is added to the token counts and `resume=True`?",
        solution=lambda: points(WHOLE_TOKENS) - points(SMALL_TOKENS),
        reason="A point is a mode at a token count. The file holds the others already.",
        hints=("How many modes does the sweep have? Points in the file are left alone.",),
        mistakes=(
            Mistake(guess=lambda: points(WHOLE_TOKENS), message="those in the file are not measured again"),
            Mistake(guess=lambda: 1, message="each mode is a point of its own"),
        ),
    ),
    Exercise(
        number="11.3",
        asks="By how much is the one line that says `slower` slower?",
        solution=lambda: round(slower_percent(), 1),
        tolerance=0.1,
        unit="%",
        reason="Many samples make a small difference certain; they do not make it important.",
        hints=("Read `change_percent` in the line whose verdict is `slower`.",),
    ),
    Exercise(
        number="11.A",
        asks="How many new points are measured with twice the hidden size, three token counts, two modes?",
        solution=wider_points,
        reason="Another hidden size is another point, so that none of them is in the file.",
        hints=("What names a point? Is there any in the file with this hidden size?",),
        mistakes=(Mistake(guess=lambda: 0, message="points of another hidden size are others"),),
    ),
    Exercise(
        number="11.B",
        asks="At how many token counts can `compare` say anything about 1 to 64 and 64 to 4096?",
        solution=common_counts,
        reason="Only points that both files hold can be compared.",
        hints=("Which token counts do both files hold?",),
    ),
    Exercise(
        number="11.C",
        asks="How likely is a false alarm among 40 points, with one in a hundred for each?",
        solution=lambda: round(100 * (1 - (1 - ONE_ALARM) ** COMPARED)),
        tolerance=1,
        unit="%",
        reason="No alarm at all needs 40 times no alarm, 0.99 to the power of 40.",
        hints=("How likely is no alarm at all? Each point has none with 99 in 100.",),
        mistakes=(
            Mistake(
                guess=lambda: 100 * ONE_ALARM * COMPARED, message="chances do not simply add up: two alarms count once"
            ),
        ),
    ),
)

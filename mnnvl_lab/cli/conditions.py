"""Conditions on a comparison, in words, for the exit status of a program that watches for regressions."""

from __future__ import annotations

import argparse
import re
from dataclasses import dataclass

import pandas as pd

from mnnvl_lab.records.compare import TOO_FEW

PATTERN = re.compile(r"(slower|faster) by (\d+(?:\.\d+)?) ?%|(different|too few samples)")
FORMS = '"slower by 5%", "faster by 5%", "different" or "too few samples"'


@dataclass(frozen=True, kw_only=True)
class Condition:
    """What counts as a failure.

    Attributes:
        words: as it was given.
        direction: `slower`, `faster`, `different` or `too few samples`.
        percent: by how much at least the median of a point must have moved; 0 without a number.
    """

    words: str
    direction: str
    percent: float = 0.0

    def points(self, table: pd.DataFrame) -> pd.DataFrame:
        """Rows of `records.compare` that fail: the samples surely differ, and the median moved by as much or more.

        A median that moved while its samples could be of one distribution is no failure: it is noise.
        """
        if self.direction == TOO_FEW:
            return table[table["verdict"] == TOO_FEW]
        if self.direction == "different":
            return table[table["verdict"].isin(("faster", "slower"))]
        moved = table["change_percent"].abs() >= self.percent
        return table[(table["verdict"] == self.direction) & moved]


def condition(text: str) -> Condition:
    """A condition as it is typed.

    Raises:
        argparse.ArgumentTypeError: it is none.
    """
    found = PATTERN.fullmatch(" ".join(text.lower().split()))
    if not found:
        raise argparse.ArgumentTypeError(f"{text!r} is no condition: write {FORMS}")
    direction, percent, word = found.groups()
    return Condition(words=text, direction=word or direction, percent=float(percent or 0))

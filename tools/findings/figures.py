"""A figure for each finding."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd

from mnnvl_lab.plots.style import BLUE, GREEN, INK, ORANGE, PURPLE, QUIET, SKY, VERMILLION, head, style
from tools.findings.results import PER, poisson_interval

if TYPE_CHECKING:
    from matplotlib.axes import Axes

GPUS = 2
COLOURS = {"none": BLUE, "copies": GREEN, "link": VERMILLION}
MARKERS = {"none": "o", "copies": "s", "link": "^"}
LABELS = {"none": "nothing beside", "copies": "copies in the GPU's memory", "link": "writes to the next rank"}
BELOW = -0.75
"""Where the crosses of cases with a wrong round stand: under the rates, whose axis is linear below 1."""
CURES = {"none": BLUE, "empty_dispatch": GREEN, "fixed_offset": PURPLE, "constant_max": ORANGE, "barrier": VERMILLION}
GROUPS = {2: BLUE, 4: GREEN, 8: VERMILLION}
CARDS = ({"marker": "o", "ls": "-"}, {"marker": "s", "ls": ":", "mfc": "none", "ms": 10})
"""How the lines of a card look: of the one with most cases, and of the other."""
LOADS = {"cure": "ragged", "cure, even loads": "even", "cure, decoding": "decoding"}


def draw_prepares(table: pd.DataFrame, device: str) -> Axes:
    """Steps lost per 100,000 calls by tokens, with what was running beside; filled where the last step is full."""
    stock = table[(table["kernel"] == "0.7.2") & (table["top_k"] == 8)]
    panels = dict(list(stock.groupby(["card", "ep"])))
    widths = [rows["tokens"].nunique() for rows in panels.values()]
    with style():
        _, axes = plt.subplots(
            1, len(panels), figsize=(12, 4.2), width_ratios=widths, sharey=True, squeeze=False, layout="constrained"
        )
        for ax, ((card, ep), rows) in zip(axes[0], panels.items(), strict=True):
            _prepares_of(ax, rows)
            head(ax, f"{card}, EP {ep}", f"{ep // GPUS} rank{'s' if ep > GPUS else ''} per GPU")
        first, widest = axes[0][0], axes[0][int(np.argmax(widths))]
        first.set(ylabel=f"Steps lost per {PER:,} calls", yscale="symlog", ylim=(-1.2, 2500))
        first.set_yticks([0, 1, 10, 100, 1000], labels=["0", "1", "10", "100", "1000"])
        widest.legend(handles=list(_handles()), frameon=False, fontsize=8, loc="upper left", ncols=2)
        marks = "equal cases added up; filled: a pair fills its last step; bars: 95 % interval"
        _below(first, f"{device}; top-8 of 256 experts; {marks}")
    return first


def _handles() -> Iterator[plt.Line2D]:
    for name, label in LABELS.items():
        yield plt.Line2D([], [], marker=MARKERS[name], ls="", color=COLOURS[name], label=label)
    yield plt.Line2D([], [], marker="x", ls="", color=INK, label="left alone, a round went wrong")


def _prepares_of(ax: Axes, of_group: pd.DataFrame) -> None:
    tokens = sorted(of_group["tokens"].unique())
    for traffic in COLOURS:
        rows = of_group[of_group["traffic"] == traffic]
        shift = {"none": -0.22, "copies": 0, "link": 0.22}[traffic]
        _rates(ax, rows.assign(place=rows["tokens"].map(tokens.index) + shift), traffic)
    ax.set_xticks(range(len(tokens)), tokens)
    ax.set_xlim(-0.6, len(tokens) - 0.4)
    ax.set_xlabel("Tokens per rank")


def _below(ax: Axes, words: str) -> None:
    """The caption of the whole figure, to the lower right as in the package's figures."""
    ax.figure.supxlabel(words, x=0.995, ha="right", fontsize=7.5, color=QUIET)


def _rates(ax: Axes, rows: pd.DataFrame, traffic: str) -> None:
    """A point for each number of tokens: runs of the same case are added up."""
    for full, part in rows.groupby(rows["full_pairs"] > 0):
        sums = part.groupby("place")[["lost", "prepares"]].sum()
        rate = PER * sums["lost"] / sums["prepares"]
        bounds = [poisson_interval(lost, n) for lost, n in zip(sums["lost"], sums["prepares"], strict=True)]
        low, high = (PER * np.array(side) for side in zip(*bounds, strict=True))
        ax.errorbar(
            sums.index,
            rate,
            yerr=[np.maximum(rate - low, 0), np.maximum(high - rate, 0)],
            fmt=MARKERS[traffic],
            color=COLOURS[traffic],
            mfc=COLOURS[traffic] if full else "white",
            ms=5,
            lw=1,
        )
    wrong = rows.loc[rows["first_wrong"].notna(), "place"].unique()
    ax.plot(wrong, np.full(len(wrong), BELOW), "x", color=COLOURS[traffic], ms=6, mew=1.6)


def draw_sizes(table: pd.DataFrame, device: str) -> Axes:
    """How often the first round of a pair is wrong by the gap behind it, and what each cure takes."""
    by_card = table["card"].value_counts().index
    with style():
        _, (left, right) = plt.subplots(1, 2, figsize=(10, 4), layout="constrained")
        for card, looks in zip(by_card, CARDS[: len(by_card)], strict=True):
            _wrong_by_gap(left, table[(table["card"] == card) & (table["what"] == "gap")], looks)
        left.set(xscale="symlog", xlabel="Other work between the rounds (µs)", ylabel="Pairs with a wrong sum (%)")
        left.set_xticks([0, 1, 10, 100], labels=["0", "1", "10", "100"])
        head(left, "Pairs of rounds that go wrong", "a ragged round, then a larger one; marks: the gaps measured")
        left.legend(frameon=False)
        _costs(right, table[(table["ep"] == GPUS) & table["what"].isin(list(LOADS))])
        where = "hidden 7168, top-8 of 256 experts, back to back in CUDA graphs; barrier: without graphs"
        _below(left, f"{device}; {where}")
    return left


def _wrong_by_gap(ax: Axes, gaps: pd.DataFrame, looks: dict) -> None:
    for (card, ep), rows in gaps.groupby(["card", "ep"]):
        share_percent = 100 * rows["wrong"] / rows["pairs"]
        ax.plot(rows["gap_us"], share_percent, color=GROUPS[ep], label=f"{card}, EP {ep}", **looks)


def _costs(ax: Axes, table: pd.DataFrame) -> None:
    """Of the card on which every cure was tried."""
    tried = table.groupby("card")["cure"].agg(set)
    (card,) = tried.index[tried.map(set(CURES).issubset)]
    width = 0.8 / len(CURES)
    for index, (cure, colour) in enumerate(CURES.items()):
        rows = table[(table["card"] == card) & (table["cure"] == cure)].set_index("what").loc[list(LOADS)]
        places = np.arange(len(LOADS)) + (index - len(CURES) / 2 + 0.5) * width
        hatch = {"color": colour} if cure != "none" else {"color": SKY, "hatch": "//"}
        ax.bar(places, rows["pair_us"], width, label=cure.replace("_", " "), **hatch)
    ax.set_xticks(range(len(LOADS)), LOADS.values())
    ax.set(ylabel="Two rounds (µs)")
    ax.set_ylim(top=1.35 * table["pair_us"].max())
    ax.legend(frameon=False, fontsize=8, ncols=3, loc="upper left")
    head(ax, "What a pair takes with each cure", f"{card}, EP {GPUS}")

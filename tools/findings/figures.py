"""A figure for each finding."""

from __future__ import annotations

from typing import TYPE_CHECKING

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd

from mnnvl_lab.plots.style import BLUE, GREEN, ORANGE, PURPLE, QUIET, SKY, VERMILLION, head, style
from tools.findings.results import poisson_interval

if TYPE_CHECKING:
    from matplotlib.axes import Axes

PER = 100_000
GPUS = 2
COLOURS = {"none": BLUE, "copies": GREEN, "link": VERMILLION}
LABELS = {"none": "nothing beside", "copies": "copies in the GPU's memory", "link": "writes to the next rank"}
CURES = {"none": BLUE, "empty_dispatch": GREEN, "fixed_offset": PURPLE, "constant_max": ORANGE, "barrier": VERMILLION}
GROUPS = {2: BLUE, 4: GREEN, 8: VERMILLION}
LOADS = {"cure": "ragged", "cure, even loads": "even", "cure, decoding": "decoding"}


def draw_prepares(table: pd.DataFrame, device: str) -> Axes:
    """Steps lost per 100,000 calls by tokens, with what was running beside; filled where the last step is full."""
    stock = table[(table["kernel"] == "0.7.2") & (table["top_k"] == 8)]
    groups = sorted(stock["ep"].unique())
    with style():
        _, axes = plt.subplots(
            1, len(groups), figsize=(10, 4), width_ratios=[10, 4, 2], sharey=True, layout="constrained"
        )
        for ax, ep in zip(axes, groups, strict=True):
            _prepares_of(ax, stock[stock["ep"] == ep])
            head(ax, f"EP {ep}", "1 rank per GPU" if ep == GPUS else f"{ep // GPUS} ranks per GPU")
        axes[0].set(ylabel=f"Steps lost per {PER:,} calls", yscale="symlog", ylim=(-0.4, 2500))
        axes[0].set_yticks([0, 1, 10, 100, 1000], labels=["0", "1", "10", "100", "1000"])
        shown = [plt.Line2D([], [], marker="o", ls="", color=COLOURS[name], label=LABELS[name]) for name in COLOURS]
        axes[0].legend(handles=shown, frameon=False, fontsize=8, loc="upper left")
        _below(axes[0], f"{device}, top-8 of 256 experts; filled: a pair fills its last step; bars: 95 % interval")
    return axes[0]


def _prepares_of(ax: Axes, of_group: pd.DataFrame) -> None:
    tokens = sorted(of_group["tokens"].unique())
    for traffic in COLOURS:
        _rates(ax, of_group[of_group["traffic"] == traffic], traffic, tokens)
    ax.set_xticks(range(len(tokens)), tokens)
    ax.set_xlim(-0.6, len(tokens) - 0.4)
    ax.set_xlabel("Tokens per rank")


def _below(ax: Axes, words: str) -> None:
    """The caption of the whole figure, to the lower right as in the package's figures."""
    ax.figure.supxlabel(words, x=0.995, ha="right", fontsize=7.5, color=QUIET)


def _rates(ax: Axes, rows: pd.DataFrame, traffic: str, tokens: list[int]) -> None:
    shift = {"none": -0.2, "copies": 0, "link": 0.2}[traffic]
    for full, part in rows.groupby(rows["full_pairs"] > 0):
        rate = PER * part["lost"] / part["prepares"]
        bounds = [poisson_interval(lost, n) for lost, n in zip(part["lost"], part["prepares"], strict=True)]
        low, high = (PER * np.array(side) for side in zip(*bounds, strict=True))
        ax.errorbar(
            part["tokens"].map(tokens.index) + shift,
            rate,
            yerr=[np.maximum(rate - low, 0), np.maximum(high - rate, 0)],
            fmt="o",
            color=COLOURS[traffic],
            mfc=COLOURS[traffic] if full else "white",
            ms=5,
            lw=1,
        )


def draw_sizes(table: pd.DataFrame, device: str) -> Axes:
    """How often the first round of a pair is wrong by the gap behind it, and what each cure takes."""
    with style():
        _, (left, right) = plt.subplots(1, 2, figsize=(10, 4), layout="constrained")
        for ep, rows in table[table["what"] == "gap"].groupby("ep"):
            share_percent = 100 * rows["wrong"] / rows["pairs"]
            left.plot(rows["gap_us"], share_percent, "o-", color=GROUPS[ep], label=f"EP {ep}")
        left.set(xscale="symlog", xlabel="Other work between the rounds (µs)", ylabel="Pairs with a wrong sum (%)")
        left.set_xticks([0, 1, 10, 100], labels=["0", "1", "10", "100"])
        head(left, "Pairs of rounds that go wrong", "a ragged round, then a larger one")
        left.legend(frameon=False)
        _costs(right, table[(table["ep"] == 2) & table["what"].isin(list(LOADS))])
        where = "hidden 7168, top-8 of 256 experts, back to back in CUDA graphs; barrier: without graphs"
        _below(left, f"{device}, {where}")
    return left


def _costs(ax: Axes, table: pd.DataFrame) -> None:
    width = 0.8 / len(CURES)
    for index, (cure, colour) in enumerate(CURES.items()):
        rows = table[table["cure"] == cure].set_index("what").loc[list(LOADS)]
        places = np.arange(len(LOADS)) + (index - len(CURES) / 2 + 0.5) * width
        hatch = {"color": colour} if cure != "none" else {"color": SKY, "hatch": "//"}
        ax.bar(places, rows["pair_us"], width, label=cure.replace("_", " "), **hatch)
    ax.set_xticks(range(len(LOADS)), LOADS.values())
    ax.set(ylabel="Two rounds (µs)")
    ax.set_ylim(top=1.35 * table["pair_us"].max())
    ax.legend(frameon=False, fontsize=8, ncols=3, loc="upper left")
    head(ax, "What a pair takes with each cure", "EP 2")

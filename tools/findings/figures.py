"""A figure for each finding."""

from __future__ import annotations

from typing import TYPE_CHECKING

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd

from mnnvl_lab.plots.style import BLUE, GREEN, ORANGE, PURPLE, RC, SKY, VERMILLION
from tools.findings.results import poisson_interval

if TYPE_CHECKING:
    from matplotlib.axes import Axes

PER = 100_000
COLOURS = {"none": BLUE, "copies": GREEN, "link": VERMILLION}
LABELS = {"none": "nothing beside", "copies": "copies in the GPU's memory", "link": "writes to the next rank"}
CURES = {"none": BLUE, "empty_dispatch": GREEN, "fixed_offset": PURPLE, "constant_max": ORANGE, "barrier": VERMILLION}
GROUPS = {2: BLUE, 4: GREEN, 8: VERMILLION}
LOADS = {"cure": "ragged", "cure, even loads": "even", "cure, decoding": "decoding"}


def draw_prepares(table: pd.DataFrame, device: str) -> Axes:
    """Steps lost per 100,000 calls by tokens, with what was running beside; filled where the last step is full."""
    stock = table[(table["kernel"] == "0.7.2") & (table["top_k"] == 8)]
    groups = sorted(stock["ep"].unique())
    with plt.rc_context(dict(RC)):
        _, axes = plt.subplots(
            1, len(groups), figsize=(10, 3.8), width_ratios=[10, 4, 2], sharey=True, layout="constrained"
        )
    for ax, ep in zip(axes, groups, strict=True):
        of_group = stock[stock["ep"] == ep]
        tokens = sorted(of_group["tokens"].unique())
        for traffic in COLOURS:
            _rates(ax, of_group[of_group["traffic"] == traffic], traffic, tokens)
        ax.set_xticks(range(len(tokens)), tokens, rotation=90 if len(tokens) > 5 else 0)
        where = "one rank per GPU"
        ax.set(title=f"EP {ep}, {where}" if ep == 2 else f"EP {ep}", xlabel="Tokens per rank", yscale="symlog")
    axes[0].set_ylabel(f"Steps lost per {PER:,} calls")
    shown = [plt.Line2D([], [], marker="o", ls="", color=COLOURS[name], label=LABELS[name]) for name in COLOURS]
    axes[0].legend(handles=shown, frameon=False, fontsize=8, loc="upper left")
    axes[0].figure.supxlabel(
        f"{device}, top-8 of 256 experts; filled: a pair fills its last step; bars: 95 % interval", fontsize=8
    )
    return axes[0]


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
    with plt.rc_context(dict(RC)):
        _, (left, right) = plt.subplots(1, 2, figsize=(10, 3.8), layout="constrained")
    for ep, rows in table[table["what"] == "gap"].groupby("ep"):
        left.plot(rows["gap_us"], 100 * rows["wrong"] / rows["pairs"], "o-", color=GROUPS[ep], label=f"EP {ep}")
    left.set(xscale="symlog", xlabel="Other work between the rounds (µs)", ylabel="Pairs with a wrong sum (%)")
    left.set_title("A ragged round, then a larger one")
    left.legend(frameon=False)
    _costs(right, table[(table["ep"] == 2) & table["what"].isin(list(LOADS))])
    left.figure.supxlabel(
        f"{device}, hidden 7168, top-8 of 256 experts, back to back in CUDA graphs; `barrier` without graphs",
        fontsize=8,
    )
    return left


def _costs(ax: Axes, table: pd.DataFrame) -> None:
    width = 0.8 / len(CURES)
    for index, (cure, colour) in enumerate(CURES.items()):
        rows = table[table["cure"] == cure].set_index("what").loc[list(LOADS)]
        places = np.arange(len(LOADS)) + (index - len(CURES) / 2 + 0.5) * width
        hatch = {"color": colour} if cure != "none" else {"color": SKY, "hatch": "//"}
        ax.bar(places, rows["pair_us"], width, label=cure.replace("_", " "), **hatch)
    ax.set_xticks(range(len(LOADS)), LOADS.values())
    ax.set(ylabel="Two rounds (µs)", title="What a pair takes with each cure, EP 2")
    ax.set_ylim(top=1.35 * table["pair_us"].max())
    ax.legend(frameon=False, fontsize=8, ncols=3, loc="upper left")

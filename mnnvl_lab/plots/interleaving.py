"""A counterexample of the model checker: who does what in which order, and what the cells then hold."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import TYPE_CHECKING

import pandas as pd

from mnnvl_lab.errors import Refused
from mnnvl_lab.plots.style import BLUE, FAINT, ORANGE, QUIET, VERMILLION, caption, contrast_color, head, new_axes, style

if TYPE_CHECKING:
    from matplotlib.axes import Axes

DONE, CHANGED, WRONG = "a step of this process", "a cell that it changed", "the step that goes wrong"
FILLS = {DONE: BLUE, CHANGED: ORANGE, WRONG: VERMILLION}
LONGEST = 9  # characters of a value that fit into a cell
CAPTION_POINTS = 118  # below the slanted actions


def interleaving(
    table: pd.DataFrame, *, cells: Sequence[str] | None = None, words: str = "", ax: Axes | None = None
) -> Axes:
    """One row per process and per cell, one column per step; below each column what was done.

    Args:
        table: of `model_check.trace_table`.
        cells: which cells to show, from top to bottom; those that some step changes unless given.
        words: for the caption.

    Raises:
        Refused: a cell that the table does not have.
    """
    shown = _cells(table, cells)
    steps = table[table["step"] > 0].drop_duplicates("step").set_index("step")
    processes = sorted(steps["process"].unique(), key=list(steps["process"]).index)
    values = table[table["cell"].isin(shown)].set_index(["step", "cell"])
    with style():
        ax = new_axes(ax, width=max(5.0, 1.6 + 0.46 * len(steps)), height=2.9 + 0.34 * (len(processes) + len(shown)))
        for step, row in steps.iterrows():
            _box(ax, step, processes.index(row["process"]), str(step), WRONG if row["wrong"] else DONE)
            for line, cell in enumerate(shown, start=len(processes)):
                now = values.loc[(step, cell)]
                _box(ax, step, line, _short(now["value"]), CHANGED if now["changed"] else None)
        _frame(ax, steps, [*processes, *shown], len(processes))
        title, wrong = (str(table.attrs.get(name, "")) for name in ("protocol", "violation"))
        head(ax, title or "Counterexample", wrong, above_points=22)
        if words:
            caption(ax, words, below_points=CAPTION_POINTS)
    return ax


def _cells(table: pd.DataFrame, cells: Sequence[str] | None) -> list[str]:
    known = list(dict.fromkeys(table["cell"]))
    if cells is None:
        changed = set(table.loc[table["changed"], "cell"])
        return [cell for cell in known if cell in changed]
    if unknown := [cell for cell in cells if cell not in known]:
        raise Refused(f"cell {unknown[0]!r} is not in the trace: choose from {', '.join(known)}")
    return list(cells)


def _box(ax: Axes, step: int, line: int, text: str, kind: str | None) -> None:
    from matplotlib.patches import Rectangle

    fill = FILLS[kind] if kind else "white"
    edge = FAINT if kind is None else fill
    ax.add_patch(Rectangle((step - 0.47, line - 0.42), 0.94, 0.84, facecolor=fill, edgecolor=edge, gid=kind or "cell"))
    color = contrast_color(fill) if kind else QUIET
    ax.text(step, line, text, ha="center", va="center", fontsize=7.5, color=color, gid="value")


def _frame(ax: Axes, steps: pd.DataFrame, lines: Sequence[str], processes: int) -> None:
    from matplotlib.patches import Patch

    ax.set(xlim=(0.4, len(steps) + 0.6), ylim=(len(lines) - 0.5, -0.5))
    ax.set_xticks(steps.index, steps["action"], rotation=55, ha="right", rotation_mode="anchor", fontsize=8)
    ax.set_yticks(range(len(lines)), lines)
    for label, wrong in zip(ax.get_xticklabels(), steps["wrong"], strict=True):
        label.set(color=VERMILLION if wrong else label.get_color(), weight="bold" if wrong else "normal")
    ax.axhline(processes - 0.5, color=QUIET, linewidth=0.8)
    ax.grid(visible=False)
    ax.tick_params(length=0)
    ax.spines[:].set(visible=False)
    kinds = FILLS if steps["wrong"].any() else {kind: FILLS[kind] for kind in (DONE, CHANGED)}
    handles = [Patch(facecolor=fill, label=kind) for kind, fill in kinds.items()]
    place = {"loc": "lower left", "bbox_to_anchor": (0, 1.0)}
    ax.legend(handles=handles, ncols=3, frameon=False, fontsize=8.5, borderaxespad=0.2, **place)


def _short(value: object) -> str:
    """`p0 r1` for `packet 0 of round 1`; else the value, cut to what fits."""
    text = str(value)
    if match := re.fullmatch(r"packet (\d+) of round (\d+)", text):
        return f"p{match[1]} r{match[2]}"
    if match := re.match(r"(row|sum) of round (\d+)", text):
        return f"{match[1]} r{match[2]}"
    return text if len(text) <= LONGEST else text[: LONGEST - 1] + "…"

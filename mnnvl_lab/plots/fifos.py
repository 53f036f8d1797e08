"""FIFOs as their heads and tails describe them: which entries wait to be taken, which are free."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from mnnvl_lab.plots.look import BLUE, FAINT, INK, QUIET, caption, head, ink_on, new_axes, style
from mnnvl_lab.workspace.two_sided import FIFO_DEPTH

if TYPE_CHECKING:
    from matplotlib.axes import Axes

UNUSED, WAITING, TAKEN = 0, 1, 2
BETWEEN = "#BDBDBD"
FILLS = {UNUSED: "white", WAITING: BLUE, TAKEN: FAINT}
STATES = {UNUSED: "never used", WAITING: "filled, to be taken", TAKEN: "taken, free again"}


def fifos(
    table: pd.DataFrame, *, y: str = "moment", depth: int = FIFO_DEPTH, words: str = "", ax: Axes | None = None
) -> Axes:
    """A line a FIFO or moment, a cell an entry; the number in it counts the entries ever filled before it.

    Args:
        table: `head` and `tail`, one row a line (`measure.live_fifos.looks_table`).
        y: the column that names the lines.
        depth: entries of a FIFO.
        words: for the caption, such as fabric and device.
    """
    with style():
        ax = new_axes(ax, width=8.4, height=1.7 + 0.36 * len(table))
        heads, tails = table["head"].to_numpy(), table["tail"].to_numpy()
        steps = last_steps(heads, depth)
        _cells(ax, states(steps, tails))
        for (line, entry), step in np.ndenumerate(steps):
            if step >= 0:
                color = ink_on(FILLS[WAITING if step >= tails[line] else TAKEN])
                ax.text(entry, line, str(step), ha="center", va="center", fontsize=8.5, color=color, gid="step")
        for line, (filled, taken) in enumerate(zip(heads, tails, strict=True)):
            _counters(ax, depth, line, filled, taken)
        ax.set_xticks(range(depth))
        ax.set_xlabel("Entry")
        ax.set_yticks(range(len(table)), [_name(table, y, value) for value in table[y]])
        _legend(ax)
        head(ax, _title(table), "number in a cell: how many entries were filled before it", above_points=22)
        if words:
            caption(ax, words)
    return ax


def last_steps(heads: np.ndarray, depth: int) -> np.ndarray:
    """`[lines, depth]`: which step was the last to fill each entry, -1 for none. Step s fills entry s % depth."""
    entries = np.arange(depth)
    last = heads[:, None] - 1
    return np.maximum(last - (last - entries) % depth, -1)


def states(steps: np.ndarray, tails: np.ndarray) -> np.ndarray:
    return np.where(steps < 0, UNUSED, np.where(steps >= tails[:, None], WAITING, TAKEN))


def _cells(ax: Axes, states_LD: np.ndarray) -> None:
    from matplotlib.colors import ListedColormap

    ax.imshow(states_LD, cmap=ListedColormap(list(FILLS.values())), vmin=0, vmax=2, aspect="auto")
    ax.set_xticks(np.arange(states_LD.shape[1] + 1) - 0.5, minor=True)
    ax.set_yticks(np.arange(states_LD.shape[0] + 1) - 0.5, minor=True)
    ax.grid(visible=False)
    ax.grid(visible=True, which="minor", color=BETWEEN, linewidth=0.8)
    ax.tick_params(which="both", length=0)
    ax.spines[:].set(visible=True, color=FAINT)


def _counters(ax: Axes, depth: int, line: int, filled: int, taken: int) -> None:
    """`head 8, tail 0: full`, dark where the sender must wait."""
    full = filled - taken == depth
    words = f"  head {filled}, tail {taken}" + (": full" if full else "")
    ax.text(depth - 0.45, line, words, va="center", fontsize=8.5, color=INK if full else QUIET, gid="counters")


def _name(table: pd.DataFrame, y: str, value: object) -> str:
    return str(value) if y == "moment" else f"{y} {value}"


def _title(table: pd.DataFrame) -> str:
    """The ends that all lines share."""
    ends = {side: sorted(table[side].unique()) for side in ("sender", "receiver")}
    named = {side: f"rank {ranks[0]}" for side, ranks in ends.items() if len(ranks) == 1}
    noun = "FIFO" if len(named) == len(ends) else "FIFOs"
    return noun + "".join(
        f" {word} {named[side]}" for word, side in (("from", "sender"), ("to", "receiver")) if side in named
    )


def _legend(ax: Axes) -> None:
    from matplotlib.patches import Patch

    handles = [Patch(facecolor=FILLS[state], edgecolor=QUIET, label=name) for state, name in STATES.items()]
    ax.legend(handles=handles, ncols=3, frameon=False, loc="lower right", bbox_to_anchor=(1, 1), fontsize=8.5)

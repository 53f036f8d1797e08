"""Figures of a rank's workspace after each phase: slots by source, stale rows, counters and flags."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from mnnvl_lab.errors import Refused
from mnnvl_lab.plots.shown import describe_figures
from mnnvl_lab.plots.style import BLUE, FAINT, INK, ORANGE, QUIET, caption, contrast_color, head, new_axes, style
from mnnvl_lab.workspace.snapshot import NAMELESS, STALE, STATES, UNTOUCHED, VALID, Snapshot
from mnnvl_lab.workspace.two_sided import FIFO_DEPTH

if TYPE_CHECKING:
    from IPython.display import HTML, Image
    from matplotlib.animation import FuncAnimation
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

FILLS = {UNTOUCHED: "white", VALID: BLUE, STALE: ORANGE}
REGIONS = ("dispatch", "combine")
FILM_DPI = 100
READABLE = 24
"""Up to so many slots each row of dispatch carries the number of its token."""


def live_region(snapshot: Snapshot, *, region: str = "dispatch", words: str = "", ax: Axes | None = None) -> Axes:
    """One cell per slot, one line per source; beside it how many rows came and which epoch the source last signalled.

    A row that dispatch brought carries the number that its token has on its source, where there is room.

    Args:
        snapshot: of `measure.live.capture_rounds`.
        region: `dispatch` for the rows that came, `combine` for those that peers pull.
        words: for the caption, such as fabric and device.

    Raises:
        Refused: another region.
    """
    if region not in REGIONS:
        raise Refused(f"region is {region!r}: rows lie in {' and '.join(REGIONS)}; name one of these")
    states_RM = getattr(snapshot, f"{region}_RM")
    with style():
        ax = new_axes(ax, width=8.4, height=1.5 + 0.4 * len(states_RM))
        _cells(ax, states_RM)
        if region == "dispatch" and states_RM.shape[1] <= READABLE:
            _name_tokens(ax, snapshot)
        for source, flag in enumerate(getattr(snapshot, f"{region}_flags_R")):
            _flag(ax, states_RM.shape[1], source, int(snapshot.received_R[source]), int(flag), snapshot.epoch)
        ax.set_xlabel("Slot")
        ax.set_yticks(range(len(states_RM)), [f"from {source}" for source in range(len(states_RM))])
        title = f"{region.capitalize()} rows of rank {snapshot.ep_rank}"
        head(ax, title, f"{snapshot.moment} · epoch {snapshot.epoch}")
        _legend(ax)
        if words:
            caption(ax, words)
    return ax


def strip(snapshots: Sequence[Snapshot], *, region: str = "dispatch", words: str = "") -> Figure:
    """The snapshots below each other, on one scale, as the frames of a round."""
    from matplotlib import pyplot

    describe_figures()
    height = 0.75 + 0.3 * len(snapshots[0].received_R)
    with style():
        figure, axes = pyplot.subplots(
            len(snapshots), 1, figsize=(8.4, height * len(snapshots)), layout="constrained", squeeze=False
        )
    for ax, shot in zip(axes[:, 0], snapshots, strict=True):
        live_region(shot, region=region, ax=ax, words=words if shot is snapshots[-1] else "")
        if shot is not snapshots[0]:
            ax.get_legend().remove()
            ax.set_title("", loc="left")
        if shot is not snapshots[-1]:
            ax.set(xlabel="", xticklabels=[])
    return figure


def animate(
    snapshots: Sequence[Snapshot], *, region: str = "dispatch", words: str = "", interval_ms: int = 1200
) -> FuncAnimation:
    """The snapshots one after the other."""
    from matplotlib.animation import FuncAnimation

    ax = live_region(snapshots[0], region=region, words=words)

    def draw(frame: int):
        ax.clear()
        live_region(snapshots[frame], region=region, words=words, ax=ax)
        return ax.get_children()

    return FuncAnimation(ax.figure, draw, frames=len(snapshots), interval=interval_ms, repeat=True)


def film(snapshots: Sequence[Snapshot], *, region: str = "dispatch", words: str = "", frame_s: float = 1.5) -> Image:
    """`animate` as an animated GIF, for a notebook: a picture, so that nothing runs where it is shown."""
    from IPython.display import Image
    from matplotlib import pyplot
    from matplotlib.animation import PillowWriter

    animation = animate(snapshots, region=region, words=words)
    with TemporaryDirectory() as folder:
        path = Path(folder) / "film.gif"
        animation.save(path, writer=PillowWriter(fps=1 / frame_s), dpi=FILM_DPI)
        pyplot.close(animation._fig)
        moments = "; ".join(shot.moment for shot in snapshots)
        alt = f"Film of the {region} rows of rank {snapshots[0].ep_rank} in {len(snapshots)} frames: {moments}."
        return Image(data=path.read_bytes(), format="gif", alt=alt)


def play(snapshots: Sequence[Snapshot], *, region: str = "dispatch", words: str = "") -> HTML:
    """`animate` with controls to step back and forth. They are a script: share no notebook that keeps this output."""
    from IPython.display import HTML
    from matplotlib import pyplot

    animation = animate(snapshots, region=region, words=words)
    html = animation.to_jshtml(default_mode="once")
    pyplot.close(animation._fig)
    return HTML(html)


def _cells(ax: Axes, states_RM: np.ndarray) -> None:
    from matplotlib.colors import ListedColormap

    ax.imshow(states_RM, cmap=ListedColormap([FILLS[state] for state in STATES]), vmin=0, vmax=2, aspect="auto")
    ax.set_xticks(np.arange(states_RM.shape[1] + 1) - 0.5, minor=True)
    ax.set_yticks(np.arange(states_RM.shape[0] + 1) - 0.5, minor=True)
    ax.grid(visible=False)
    if states_RM.shape[1] <= 64:
        ax.grid(visible=True, which="minor", color=FAINT, linewidth=0.6)
    ax.tick_params(which="both", length=0)
    ax.spines[:].set(visible=True, color=FAINT)


def _name_tokens(ax: Axes, snapshot: Snapshot) -> None:
    for (source, slot), token in np.ndenumerate(snapshot.tokens_RM):
        if token != NAMELESS:
            color = contrast_color(FILLS[int(snapshot.dispatch_RM[source, slot])])
            ax.text(slot, source, str(token), ha="center", va="center", fontsize=8.5, color=color, gid="token")


def _flag(ax: Axes, slots: int, source: int, received: int, flag: int, epoch: int) -> None:
    """`rows 5, flag 3`, dark where the flag has this epoch."""
    words = f"  rows {received}, flag {flag}"
    ax.text(slots - 0.4, source, words, va="center", fontsize=8.5, color=INK if flag == epoch else QUIET, gid="flag")


def _legend(ax: Axes) -> None:
    from matplotlib.patches import Patch

    handles = [Patch(facecolor=FILLS[state], edgecolor=QUIET, label=name) for state, name in STATES.items()]
    ax.legend(handles=handles, ncols=3, frameon=False, loc="lower right", bbox_to_anchor=(1, 1), fontsize=8.5)


UNUSED, WAITING, TAKEN = 0, 1, 2
BETWEEN = "#BDBDBD"
FIFO_FILLS = {UNUSED: "white", WAITING: BLUE, TAKEN: FAINT}
FIFO_STATES = {UNUSED: "never used", WAITING: "filled, to be taken", TAKEN: "taken, free again"}


def fifos(
    table: pd.DataFrame, *, y: str = "moment", depth: int = FIFO_DEPTH, words: str = "", ax: Axes | None = None
) -> Axes:
    """A line per FIFO or moment, a cell per entry; the number in it counts the entries ever filled before it.

    Args:
        table: `head` and `tail`, one row per line (`measure.live_fifos.snapshots_table`).
        y: the column that names the lines.
        depth: entries of a FIFO.
        words: for the caption, such as fabric and device.
    """
    with style():
        ax = new_axes(ax, width=8.4, height=1.7 + 0.36 * len(table))
        heads, tails = table["head"].to_numpy(), table["tail"].to_numpy()
        steps = last_steps(heads, depth)
        _fifo_cells(ax, states(steps, tails))
        for (line, entry), step in np.ndenumerate(steps):
            if step >= 0:
                color = contrast_color(FIFO_FILLS[WAITING if step >= tails[line] else TAKEN])
                ax.text(entry, line, str(step), ha="center", va="center", fontsize=8.5, color=color, gid="step")
        for line, (filled, taken) in enumerate(zip(heads, tails, strict=True)):
            _counters(ax, depth, line, filled, taken)
        ax.set_xticks(range(depth))
        ax.set_xlabel("Entry")
        ax.set_yticks(range(len(table)), [_name(table, y, value) for value in table[y]])
        _fifo_legend(ax)
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


def _fifo_cells(ax: Axes, states_LD: np.ndarray) -> None:
    from matplotlib.colors import ListedColormap

    ax.imshow(states_LD, cmap=ListedColormap(list(FIFO_FILLS.values())), vmin=0, vmax=2, aspect="auto")
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


def _fifo_legend(ax: Axes) -> None:
    from matplotlib.patches import Patch

    handles = [Patch(facecolor=FIFO_FILLS[state], edgecolor=QUIET, label=name) for state, name in FIFO_STATES.items()]
    ax.legend(handles=handles, ncols=3, frameon=False, loc="lower right", bbox_to_anchor=(1, 1), fontsize=8.5)

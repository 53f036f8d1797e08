"""Who sends how much to whom, as a heat map."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from mnnvl_lab.plots.style import BINARY_UNITS, QUIET, caption, contrast_color, head, new_axes, style
from mnnvl_lab.records import require_column

if TYPE_CHECKING:
    from matplotlib.axes import Axes

READABLE = 16
"""Up to so many ranks each cell carries its number."""


def traffic(
    table: pd.DataFrame, *, x: str = "target", y: str = "source", hue: str = "rows", ax: Axes | None = None
) -> Axes:
    """A cell for each pair of ranks, dark where much is sent; sums of what each sends and receives at the edges.

    The diagonal is hatched: what a rank sends to itself crosses no link, and counts in no sum.

    Args:
        table: one row per pair, as `tables.traffic_table` makes it.
        x, y: columns of the receiving and the sending rank.
        hue: column of the amount.
    """
    matrix = table.pivot_table(index=y, columns=x, values=hue, aggfunc="sum", fill_value=0).to_numpy()
    shown, unit = _scaled(matrix, hue)
    ranks = len(matrix)
    with style():
        size = min(3.0 + 0.42 * ranks, 8)
        ax = new_axes(ax, width=size + 0.8, height=size)
        image = ax.imshow(shown, cmap="Blues", vmin=0, vmax=max(float(shown.max()), 1e-9) * 1.15, aspect="equal")
        _hatch_diagonal(ax, ranks)
        if ranks <= READABLE:
            decimals = _decimals(shown)
            _write_cells(ax, shown, decimals)
            _write_sums(ax, shown, decimals)
        else:
            ax.figure.colorbar(image, ax=ax, shrink=0.7, pad=0.02).outline.set_visible(False)
        _frame(ax, ranks, x, y)
        head(ax, f"{require_column(hue).label} from source to target{unit}", _imbalance(matrix), above_points=20)
        caption(ax, "computed from the routing", "hatched: stays on its rank, in no sum", below_points=36)
    return ax


def _scaled(matrix: np.ndarray, hue: str) -> tuple[np.ndarray, str]:
    """Amounts in one unit for all cells, and its name for the title."""
    if require_column(hue).unit != "B":
        return matrix, ""
    power = 0 if matrix.max() < 1024 else min(int(np.log2(matrix.max()) // 10), len(BINARY_UNITS) - 1)
    return matrix / 1024**power, f", in {BINARY_UNITS[power]}"


def _imbalance(matrix: np.ndarray) -> str:
    received = _on_the_wire(matrix).sum(axis=0)
    if not received.any():
        return "nothing crosses a link"
    return f"the fullest rank receives {received.max() / received.mean():.2f} times the mean"


def _on_the_wire(matrix: np.ndarray) -> np.ndarray:
    return matrix - np.diag(np.diag(matrix))


def _hatch_diagonal(ax: Axes, ranks: int) -> None:
    from matplotlib.patches import Rectangle

    for rank in range(ranks):
        corner = (rank - 0.5, rank - 0.5)
        ax.add_patch(Rectangle(corner, 1, 1, fill=False, hatch="///", edgecolor="white", linewidth=0, alpha=0.7))


def _write_cells(ax: Axes, shown: np.ndarray, decimals: int) -> None:
    from matplotlib.colors import to_hex

    image = ax.images[0]
    for (source, target), amount in np.ndenumerate(shown):
        fill = to_hex(image.cmap(image.norm(amount)))
        words = _words(amount, decimals)
        text = ax.text(target, source, words, ha="center", va="center", fontsize=8, color=contrast_color(fill))
        if source == target:
            text.set_bbox({"facecolor": fill, "edgecolor": "none", "pad": 1.5})


def _write_sums(ax: Axes, shown: np.ndarray, decimals: int) -> None:
    wire, ranks = _on_the_wire(shown), len(shown)
    quiet = {"fontsize": 8, "color": QUIET}
    for rank in range(ranks):
        ax.text(ranks - 0.4, rank, _words(wire[rank].sum(), decimals), ha="left", va="center", gid="sent", **quiet)
        ax.text(rank, -0.56, _words(wire[:, rank].sum(), decimals), ha="center", va="bottom", gid="received", **quiet)
    ax.text(ranks - 0.4, -0.56, "sum", ha="left", va="bottom", style="italic", **quiet)


def _frame(ax: Axes, ranks: int, x: str, y: str) -> None:
    step = max(1, ranks // READABLE)
    for axis, name in ((ax.xaxis, x), (ax.yaxis, y)):
        axis.set_ticks(range(0, ranks, step))
        axis.set_label_text(require_column(name).axis_label)
    ax.tick_params(length=0)
    ax.grid(visible=False)
    ax.spines[:].set_visible(False)


def _decimals(shown: np.ndarray) -> int:
    """Digits after the point, the same in all cells: three significant ones of the largest."""
    if (shown == shown.astype(int)).all():
        return 0
    return max(0, 2 - int(np.floor(np.log10(shown.max()))))


def _words(amount: float, decimals: int) -> str:
    return f"{amount:.{decimals}f}" if amount else "0"

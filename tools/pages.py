"""Tables and figures of the pages in `docs/`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import pandas as pd

if TYPE_CHECKING:
    from matplotlib.axes import Axes

DOCS = Path(__file__).resolve().parents[1] / "docs"


def save_figure(ax: Axes, name: str) -> Path:
    """Write the figure to `docs/figures/`."""
    path = DOCS / "figures" / f"{name}.png"
    path.parent.mkdir(exist_ok=True)
    ax.figure.savefig(path, dpi=144, bbox_inches="tight")
    return path


def tokens_heading(tokens: int) -> str:
    """Heading of a column for so many tokens."""
    return f"{tokens} token{'s' if tokens > 1 else ''}"


def markdown(table: pd.DataFrame, *, digits: int = 1) -> str:
    """A table as Markdown, numbers to so many digits."""
    rows = [[_heading(str(name)) for name in table.columns], ["---"] * len(table.columns)]
    rows += [[_cell(value, digits) for value in row] for row in table.itertuples(index=False)]
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)


def _heading(name: str) -> str:
    return name.replace("_us", " (µs)").replace("_percent", " (%)").replace("_", " ")


def _cell(value: object, digits: int) -> str:
    words = f"{round(value, digits) + 0:.{digits}f}" if isinstance(value, float) else str(value)
    return words.replace("|", "\\|")

"""Tables of the pages in `docs/`."""

from __future__ import annotations

import pandas as pd


def markdown(table: pd.DataFrame, *, digits: int = 1) -> str:
    """A table as Markdown, numbers to so many digits."""
    rows = [[_heading(str(name)) for name in table.columns], ["---"] * len(table.columns)]
    rows += [[_cell(value, digits) for value in row] for row in table.itertuples(index=False)]
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)


def _heading(name: str) -> str:
    return name.replace("_us", " (µs)").replace("_percent", " (%)").replace("_", " ")


def _cell(value: object, digits: int) -> str:
    return f"{round(value, digits) + 0:.{digits}f}" if isinstance(value, float) else str(value)

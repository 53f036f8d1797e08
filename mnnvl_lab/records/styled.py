"""Tables that go into a paper, a page or a README as they are: labels, units, intervals, aligned numbers, escaped."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

import numpy as np
import pandas as pd

from mnnvl_lab.errors import choose, named_arguments
from mnnvl_lab.notebook import readable_bytes
from mnnvl_lab.records.schema import COLUMNS, LOAD_WORDS, OPTIONS, POINT_COLUMNS, SIZES
from mnnvl_lab.records.statistics import summary
from mnnvl_lab.records.table_styles import STYLES, Field

STATISTICS = ("p50_us", "interval", "p90_us", "p99_us", "min_us", "n")
"""What is shown of a summary, in order, unless `columns` says otherwise."""
INTERVAL = "interval"
"""Name, in `columns`, of the two ends `low_us` and `high_us` as one cell."""
DIGITS = 3
"""Significant digits that the least number of a column keeps."""
MOST_DECIMALS = 4


@named_arguments
def table(
    frame: pd.DataFrame,
    *,
    style: str = "markdown",
    columns: Sequence[str] | None = None,
    caption: str | None = None,
    headings: Mapping[str, str] | None = None,
) -> str:
    """A table in the words of the column registry.

    Args:
        frame: of `records.summary`, or samples, which are summed up first, or any other table.
        style: `latex` (booktabs; `\\usepackage{booktabs}`), `markdown` or `html`, whose cells carry the full number
            in `data-value`.
        columns: which, in order; `interval` is `low_us` to `high_us`. By default the point columns that vary, then the
            statistics; what does not vary is said once, in the caption.
        caption: in place of that.
        headings: of columns that neither the registry nor their own name describes well.

    Raises:
        Refused: no such style or column.
    """
    render = STYLES[choose(style, STYLES, "style")]
    if {"iteration", "latency_us"} <= set(frame.columns):
        frame = summary(frame)
    names = [_require(name, frame) for name in columns] if columns is not None else _shown(frame)
    fields = [_field(name, frame) for name in names]
    fields = [replace(field, heading=(headings or {}).get(field.name, field.heading)) for field in fields]
    return render(fields, _constants(frame) if caption is None else caption)


def _require(name: str, frame: pd.DataFrame) -> str:
    known = [*frame.columns, *([INTERVAL] if {"low_us", "high_us"} <= set(frame.columns) else [])]
    return choose(name, {each: each for each in known}, "column")


def _shown(frame: pd.DataFrame) -> list[str]:
    """What varies among the point columns, then statistics in their order; every column of another table."""
    points = [name for name in (*POINT_COLUMNS, "device") if name in frame.columns]
    if "p50_us" not in frame.columns or not points:
        return list(frame.columns)
    varying = [name for name in points if frame[name].nunique() > 1 and not _follows(name, frame)]
    have = {*frame.columns, *([INTERVAL] if "low_us" in frame.columns else [])}
    rest = [n for n in frame.columns if n not in points and n not in (*STATISTICS, "low_us", "high_us", "spread")]
    return [*varying, *(name for name in STATISTICS if name in have), *rest]


def _follows(name: str, frame: pd.DataFrame) -> bool:
    """Whether a column says nothing new: a size that follows from the tokens, an option that its mode always has."""
    if name in SIZES and "tokens" in frame.columns:
        return bool((frame[name] == frame["tokens"].clip(lower=1)).all())
    return name in OPTIONS and "mode" in frame.columns and bool((frame.groupby("mode")[name].nunique() == 1).all())


def _constants(frame: pd.DataFrame) -> str:
    """The words of a load that hold for all rows, where there are such."""
    forms = {"phase": "{}", "fabric": "fabric {}", "clock": "clock {}", **LOAD_WORDS}
    del forms["tokens"]  # a column of every such table
    same = [name for name in forms if name in frame.columns and frame[name].nunique() == 1]
    return " · ".join(forms[name].format(frame[name].iloc[0]) for name in same)


def _field(name: str, frame: pd.DataFrame) -> Field:
    if name == INTERVAL:
        return _interval(frame)
    column, values = COLUMNS.get(name), frame[name]
    numeric = pd.api.types.is_numeric_dtype(values) and not pd.api.types.is_bool_dtype(values)
    is_bytes = (column.unit == "B") if column else name.endswith("_bytes")
    write = _bytes if is_bytes and numeric else number_writer(values) if numeric else _words(name)
    cells = tuple("" if pd.isna(value) else write(value) for value in values)
    raw = tuple(None if pd.isna(value) else value for value in values) if numeric else (None,) * len(values)
    return Field(name=name, heading=heading_of(name, is_bytes=is_bytes), cells=cells, numeric=numeric, values=raw)


def heading_of(name: str, *, is_bytes: bool = False) -> str:
    """Label and unit of a column: the registry's, else those in its name."""
    if name in COLUMNS:
        return COLUMNS[name].label if is_bytes else COLUMNS[name].axis_label
    units = {"_us": " (µs)", "_percent": " (%)", "_gigabytes_per_s": " (GB/s)", "_bytes": ""}
    for suffix, unit in units.items():
        if name.endswith(suffix):
            return _capital(name.removesuffix(suffix).replace("_", " ")) + unit
    return _capital(name.replace("_", " "))


def _capital(words: str) -> str:
    return words[:1].upper() + words[1:]


def _interval(frame: pd.DataFrame) -> Field:
    ends = pd.concat([frame["low_us"], frame["high_us"]])
    write = number_writer(ends)
    pairs = list(zip(frame["low_us"], frame["high_us"], strict=True))
    cells = tuple("" if np.isnan(low) else f"{write(low)} – {write(high)}" for low, high in pairs)
    raw = tuple(None if np.isnan(low) else f"{low!r} {high!r}" for low, high in pairs)
    return Field(name=INTERVAL, heading="95 % interval (µs)", cells=cells, numeric=True, values=raw)


def number_writer(values: pd.Series) -> Callable[[float], str]:
    """Writes each number of a column to the same decimals: three significant digits of the least one, at most four."""
    if not pd.api.types.is_float_dtype(values):
        return lambda value: f"{int(value)}" if abs(value) < 10_000 else f"{int(value):,}"
    sizes = values.abs()[np.isfinite(values) & (values != 0)]
    decimals = 0 if sizes.empty else int(np.clip(DIGITS - 1 - np.floor(np.log10(sizes.min())), 0, MOST_DECIMALS))
    if sizes.empty or sizes.max() >= 100:
        decimals = min(decimals, 1)
    return lambda value: f"{round(value, decimals) + 0:,.{decimals}f}" if np.isfinite(value) else "∞"


def _bytes(value: float) -> str:
    return f"-{readable_bytes(-int(value))}" if value < 0 else readable_bytes(int(value))


def _words(name: str) -> Callable[[object], str]:
    """Modes as people write them; yes and no; anything else as it is."""

    def write(value: object) -> str:
        if isinstance(value, bool | np.bool_):
            return "yes" if value else "no"
        return str(value).replace("_", "-") if name == "mode" else str(value)

    return write

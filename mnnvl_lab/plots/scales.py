"""Axes that show powers of two as people say them: 128 tokens, 64 MiB, 20 µs."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from mnnvl_lab.records import require_column

if TYPE_CHECKING:
    from matplotlib.axis import Axis

BINARY_UNITS = ("B", "KiB", "MiB", "GiB", "TiB")
WIDE = 4
"""From this ratio of largest to least on, an axis is logarithmic."""


def size_words(size_bytes: float) -> str:
    """Bytes in the largest binary unit that leaves at least one, with up to three digits."""
    power = 0 if size_bytes < 1 else min(int(np.log2(size_bytes) // 10), len(BINARY_UNITS) - 1)
    number = size_bytes / 1024**power
    shown = f"{number:.0f}" if number >= 100 or number == int(number) else f"{number:.3g}"
    return f"{shown} {BINARY_UNITS[power]}"


def number_words(number: float) -> str:
    """A count: 16, 4096, 65,536."""
    return f"{number:g}" if abs(number) < 1e4 else f"{number:,.0f}"


def time_words(number: float) -> str:
    """A measured value: 0.5, 20, 5,000."""
    return f"{number:g}" if abs(number) < 1e3 else f"{number:,.0f}"


def dress(axis: Axis, name: str, values: np.ndarray) -> None:
    """Label, scale and ticks of an axis for a column of the registry with these values."""
    column = require_column(name)
    is_bytes = column.unit == "B"
    axis.set_label_text(column.label if is_bytes else column.axis_label)
    words = size_words if is_bytes else time_words if column.unit else number_words
    if _is_wide(values):
        _logarithmic(axis, values, binary=is_bytes or not column.unit)
    elif is_bytes:
        binary_steps(axis, values)
    axis.set_major_formatter(lambda value, _: words(value))


def _is_wide(values: np.ndarray) -> bool:
    positive = values[values > 0]
    return len(positive) > 0 and positive.max() >= WIDE * positive.min()


def _logarithmic(axis: Axis, values: np.ndarray, *, binary: bool) -> None:
    from matplotlib.ticker import FixedLocator, LogLocator, NullLocator

    scale = "log" if values.min() > 0 else "symlog"
    set_scale = getattr(axis.axes, f"set_{axis.axis_name}scale")
    set_scale(scale, base=2 if binary else 10, **({} if scale == "log" else {"linthresh": 1}))
    if binary:
        axis.set_major_locator(FixedLocator(_octaves(values)))
    else:
        decades = np.log10(values.max() / values[values > 0].min())
        axis.set_major_locator(LogLocator(base=10, subs=(1, 2, 5) if decades < 2.5 else (1,)))
    axis.set_minor_locator(NullLocator())


def _octaves(values: np.ndarray, at_most: int = 12) -> list[float]:
    """Powers of two over the range of the values, thinned to a readable number, with 0 where there is one."""
    positive = values[values > 0]
    low, high = int(np.floor(np.log2(positive.min()))), int(np.ceil(np.log2(positive.max())))
    step = max(1, -(-(high - low + 1) // at_most))
    zero = [0.0] if values.min() <= 0 else []
    return zero + [2.0**power for power in range(low, high + 1, step)]


def binary_steps(axis: Axis, values: np.ndarray) -> None:
    """Ticks at multiples of a power of two, named as sizes."""
    from matplotlib.ticker import MultipleLocator

    top = max(float(values.max()), 1)
    axis.set_major_locator(MultipleLocator(2.0 ** (np.floor(np.log2(top)) - 2)))
    axis.set_major_formatter(lambda size_bytes, _: size_words(size_bytes))

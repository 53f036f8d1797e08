"""Units of answers: what may be written beside a number, and a right amount in another unit."""

from __future__ import annotations

import re
from collections.abc import Iterator

MEMORY = {"bytes": 1, "KiB": 2**10, "MiB": 2**20, "GiB": 2**30, "KB": 10**3, "MB": 10**6, "GB": 10**9}
TIME = {"ns": 1e-3, "µs": 1, "ms": 1e3, "s": 1e6}
SHARE = {"%": 1, "as a fraction of 1": 100}
DIMENSIONS = (MEMORY, TIME, SHARE)
SPELLINGS = {
    "b": "bytes", "byte": "bytes", "us": "µs", "μs": "µs", "microseconds": "µs", "milliseconds": "ms",
    "seconds": "s", "percent": "%", "per cent": "%", "kb": "KB", "mb": "MB", "gb": "GB",
    "bytes": "bytes", "kib": "KiB", "mib": "MiB", "gib": "GiB", "ns": "ns", "µs": "µs", "ms": "ms", "s": "s", "%": "%",
}  # fmt: skip
QUANTITY = re.compile(r"\s*(?:about|around|~|≈|=)?\s*([+-]?[\d.,_]+(?:[eE][+-]?\d+)?)\s*([^\d]*?)\s*")


def dimension(unit: str) -> dict[str, float]:
    """The units that measure the same as `unit`, with their factors; just itself for a noun such as `rows`."""
    return next((each for each in DIMENSIONS if unit in each), {unit: 1})


def quantity(text: str) -> tuple[float, str] | None:
    """Number and unit of a text such as `"226 MiB"`; "" for no unit or a noun; None where the text begins otherwise."""
    match = QUANTITY.fullmatch(text)
    value = _number(match[1]) if match else None
    return None if value is None else (value, SPELLINGS.get(match[2].casefold().rstrip("."), ""))


def _number(text: str) -> float | None:
    """With `,` between thousands, or as a decimal comma."""
    grouped = re.fullmatch(r"[+-]?\d{1,3}(,\d{3})+(\.\d+)?", text)
    try:
        return float(text.replace(",", "") if grouped else text.replace(",", "."))
    except ValueError:
        return None


def in_other_units(value: float, unit: str) -> Iterator[tuple[str, float]]:
    """An amount of `unit`, in each of the other units of its dimension."""
    known = dimension(unit)
    yield from ((other, value * known[unit] / factor) for other, factor in known.items() if other != unit)

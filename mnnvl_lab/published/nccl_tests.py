"""The text of nccl-tests as published figures. Tried on output of a GB300."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping

import pandas as pd

from mnnvl_lab.errors import RecordError
from mnnvl_lab.published.figures import figures, read_text

RANK_LINE = re.compile(r"#\s+Rank\s+\d+ .* device\s+\d+ \[[^]]*\] (.+)")
ROW = re.compile(r"\s*(\d+)\s+(\d+)\s+(\S+)\s+\S+\s+\S+\s+([\d.]+)\s+([\d.]+)\s+([\d.]+)\s")


def read_nccl_tests(path: str | os.PathLike) -> pd.DataFrame:
    """The text of nccl-tests' `alltoall_perf` and its like; the out-of-place columns.

    `tokens` stays empty: a size is not a load. It stands in `variant`, in bytes of the send buffer of a rank. Times are
    means over iterations and ranks, back to back.
    """
    text = read_text(path)
    name = re.search(r"Collective test starting: (\w+)", text)
    devices = RANK_LINE.findall(text)
    if not (name or "algbw" in text):
        raise RecordError(f"{path}: no nccl-tests output: it names algbw and busbw; pass alltoall_perf's text")
    about = {
        "mode": name[1] if name else "",
        "library": "nccl-tests",
        "device": ", ".join(dict.fromkeys(device.strip().removeprefix("NVIDIA ") for device in devices)),
        "devices": len(devices) or None,
        "ep_size": len(devices) or None,
        "percentile": "mean",
        "clock": "graph" if re.search(r"graph: [1-9]", text) else "unspecified",
        "routing": "equal",
        "source": "NVIDIA/nccl-tests",
        "caveat": "out of place; equal parts to every rank; back to back",
    }
    return figures(path, (row for line in text.splitlines() for row in _line(line, about)))


def _line(line: str, about: Mapping[str, object]) -> Iterator[dict[str, object]]:
    found = ROW.match(line)
    if found:
        size, _, kind, time_us, _, bus = found.groups()
        own = about | {"phase": "all-to-all", "variant": f"{size} B", "format": kind}
        yield own | {"quantity": "latency", "value": float(time_us), "unit": "us"}
        rate = {"quantity": "bandwidth", "value": float(bus), "unit": "GB/s", "bandwidth_convention": "nccl_bus"}
        yield own | rate

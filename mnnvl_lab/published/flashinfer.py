"""The output of FlashInfer's benchmark `moe_comm` as published figures. Follows its writer alone."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping
from io import StringIO

import pandas as pd

from mnnvl_lab.published.figures import figures, read_text

PERF = re.compile(
    r"\[PERF\] (\S+)\s*:: median time ([\d.]+|nan) ms; std ([\d.]+|nan) ms;.* tb_per_sec ([\d.]+|nan) TB/sec"
)
ARGUMENT = re.compile(r"(\w+)=('[^']*'|[^,\s)]+)")


def read_flashinfer(path: str | os.PathLike) -> pd.DataFrame:
    """FlashInfer's `moe_comm` benchmark: its CSV (`--output_path`), or its log with `-vv`.

    Times are medians over iterations of the slowest rank, from a CUDA graph by default, with a cold L2 cache; with
    `--per_phase_timing` eager. Bandwidth is TB/s of all ranks together. A log names the load only if it is verbose.
    """
    text = read_text(path)
    if text.lstrip().startswith("routine,") or "dispatch_tb_sec" in text.partition("\n")[0]:
        return figures(path, _csv(text))
    return figures(path, _log(text))


def _csv(text: str) -> Iterator[dict[str, object]]:
    table = pd.read_csv(StringIO(text))
    for row in table[table["routine"].astype(str).str.startswith("moe_a2a")].to_dict("records"):
        yield from _row(row)


def _row(row: Mapping[str, object]) -> Iterator[dict[str, object]]:
    per_phase = pd.notna(row.get("dispatch_time"))
    clock = "eager" if per_phase or str(row.get("no_cuda_graph")) == "True" else "graph"
    about = _about(row, clock)
    for phase, time, spread, rate in (
        ("round", "median_time", "std_time", "tb_per_sec"),
        ("dispatch", "dispatch_time", "dispatch_std", "dispatch_tb_sec"),
        ("combine", "combine_time", "combine_std", "combine_tb_sec"),
    ):
        if pd.notna(row.get(time)):
            yield from _pair(about | {"phase": phase}, row[time], row.get(spread), row.get(rate))


def _log(text: str) -> Iterator[dict[str, object]]:
    about = _about({}, "unspecified")
    phases = {"a2a_total": "round", "a2a_dispatch": "dispatch", "a2a_combine": "combine"}
    for line in text.splitlines():
        if "args = Namespace(" in line:
            given = {name: value.strip("'") for name, value in ARGUMENT.findall(line.partition("Namespace(")[2])}
            eager = "True" in (given.get("per_phase_timing"), given.get("no_cuda_graph"))
            about = _about(given, "eager" if eager else "graph")
        elif (found := PERF.search(line)) and found[1] in phases:
            time, spread, rate = (None if value == "nan" else float(value) for value in found.groups()[1:])
            yield from _pair(about | {"phase": phases[found[1]]}, time, spread, rate)


def _about(row: Mapping[str, object], clock: str) -> dict[str, object]:
    quantised = str(row.get("quant_dtype") or "")
    carried = quantised if quantised not in ("", "nan", "None") else str(row.get("input_dtype", "")).split(".")[-1]
    return {
        "mode": "one_sided",
        "library": "FlashInfer",
        "variant": "payload in the workspace",
        "percentile": "p50",
        "devices": row.get("ep_size"),
        "ep_size": row.get("ep_size"),
        "tokens": row.get("num_tokens"),
        "hidden": row.get("hidden_size"),
        "experts": row.get("num_experts"),
        "top_k": row.get("top_k"),
        "format": {"bfloat16": "bf16", "float16": "fp16"}.get(carried, carried),
        "clock": clock,
        "routing": "uniform",
        "source": "flashinfer-ai/flashinfer benchmarks/routines/moe_comm.py",
        "caveat": "cold L2; slowest rank; combine in the input's dtype",
    }


def _pair(about: Mapping, time_ms, spread_ms, rate_tb) -> Iterator[dict[str, object]]:
    if time_ms is not None:
        spread = None if spread_ms is None or pd.isna(spread_ms) else 1e3 * float(spread_ms)
        yield about | {"quantity": "latency", "value": 1e3 * float(time_ms), "unit": "us", "plus_minus": spread}
    if rate_tb is not None and pd.notna(rate_tb):
        rate = {"quantity": "bandwidth", "value": 1e3 * float(rate_tb), "unit": "GB/s"}
        yield about | rate | {"bandwidth_convention": "flashinfer"}

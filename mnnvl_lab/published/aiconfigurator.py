"""The table of aiconfigurator, in Parquet or text, as published figures."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType

import numpy as np
import pandas as pd

from mnnvl_lab.errors import RecordError

MODES: Mapping[str, str] = MappingProxyType({"NVLinkOneSided": "one_sided", "NVLinkTwoSided": "two_sided"})
PHASES: Mapping[str, str] = MappingProxyType(
    {
        "alltoall_prepare": "prepare",
        "alltoall_dispatch": "dispatch",
        "alltoall_combine": "combine",
        "alltoall_combine_low_precision": "combine",
    }
)
FORMATS: Mapping[str, str] = MappingProxyType(
    {"bfloat16": "bf16", "float16": "bf16", "fp8": "fp8", "mxfp8": "mxfp8", "nvfp4": "nvfp4"}
)
COLUMNS = (
    "framework",
    "version",
    "device",
    "op_name",
    "kernel_source",
    "moe_dtype",
    "num_tokens",
    "hidden_size",
    "topk",
    "num_experts",
    "moe_ep_size",
    "distribution",
    "latency",
)
TWO_SIDED_COMBINE = "without the final sum over a token's K rows (do_reduce=False)"
ONE_SIDED_COMBINE = "payload in the workspace"
LOW_PRECISION = "low precision combine"


def read_aiconfigurator(path: str | os.PathLike) -> pd.DataFrame:
    """Read a `trtllm_alltoall_perf` table of ai-dynamo/aiconfigurator (Apache-2.0).

    The collector (`collector/slurm_comm_collector/collect_trtllm_alltoall.py`) times each phase by itself, replayed
    from a CUDA graph, and keeps what rank 0 saw. Whether a figure is a mean or a median is not stated.

    Args:
        path: the Parquet file, or the comma-separated text that the collector writes.

    Returns:
        One row per figure, in the columns of `data/published/`: `mode`, `phase` and `format` in this package's names,
        `value` in microseconds. `format` is what travels: combine's rows are bf16 whatever dispatch carried, unless
        `variant` says `low precision combine`; `caveat` says what dispatch carried then.

    Raises:
        RecordError: the file lacks a column, names an unknown kernel, operation or format, or has a latency or count
            that is none.
    """
    raw = _table(Path(path))
    missing = [name for name in COLUMNS if name not in raw.columns]
    if missing:
        raise RecordError(
            f"{path}: no column {', '.join(missing)}: a trtllm_alltoall_perf table has {', '.join(COLUMNS)}; "
            "pass such a file of aiconfigurator"
        )
    latency_ms = pd.to_numeric(raw["latency"], errors="coerce")
    if raw.empty or not (np.isfinite(latency_ms) & (latency_ms > 0)).all():
        raise RecordError(f"{path}: latencies must be positive numbers of milliseconds; remove the rows that have none")
    return _published(raw, latency_ms, str(path))


def _table(path: Path) -> pd.DataFrame:
    try:
        return pd.read_csv(path) if path.suffix in (".txt", ".csv") else pd.read_parquet(path)
    except FileNotFoundError:
        raise RecordError(f"{path}: no such file; pass the path of aiconfigurator's table") from None
    except (OSError, ValueError) as reason:
        raise RecordError(f"{path}: cannot be read as a table ({reason}); pass a Parquet or CSV file") from reason


def _published(raw: pd.DataFrame, latency_ms: pd.Series, path: str) -> pd.DataFrame:
    phase = _renamed(raw, "op_name", PHASES, path)
    mode = _renamed(raw, "kernel_source", MODES, path)
    carried = _renamed(raw, "moe_dtype", FORMATS, path)
    low = raw["op_name"] == "alltoall_combine_low_precision"
    is_combine = phase == "combine"
    note = mode.map({"one_sided": ONE_SIDED_COMBINE, "two_sided": TWO_SIDED_COMBINE})
    columns = {
        "quantity": "latency",
        "phase": phase,
        "value": (1e3 * latency_ms).round(4),
        "unit": "us",
        "plus_minus": np.nan,
        "percentile": "unspecified",
        "mode": mode,
        "library": raw["framework"].astype(str) + " " + raw["version"].astype(str),
        "variant": np.where(low, LOW_PRECISION, ""),
        "device": raw["device"].astype(str).str.removeprefix("NVIDIA "),
        "devices": raw["moe_ep_size"],
        "ep_size": raw["moe_ep_size"],
        "tokens": raw["num_tokens"],
        "hidden": raw["hidden_size"],
        "experts": raw["num_experts"],
        "top_k": raw["topk"],
        "format": np.where(is_combine, "bf16", carried),
        "clock": "graph",
        "bandwidth_convention": "",
        "routing": raw["distribution"],
        "source": "ai-dynamo/aiconfigurator trtllm_alltoall_perf",
        "date": "",
        "caveat": np.where(is_combine, "after dispatch in " + carried + "; " + note, "rank 0"),
    }
    table = pd.DataFrame(columns, index=raw.index)
    counts = ("devices", "ep_size", "tokens", "hidden", "experts", "top_k")
    try:
        return table.astype(dict.fromkeys(counts, "Int64")).reset_index(drop=True)
    except (TypeError, ValueError) as reason:
        raise RecordError(f"{path}: counts must be whole numbers ({reason}); correct the columns of counts") from None


def _renamed(raw: pd.DataFrame, column: str, names: Mapping[str, str], path: str) -> pd.Series:
    found = raw[column].map(names)
    if found.isna().any():
        unknown = sorted(raw.loc[found.isna(), column].astype(str).unique())
        raise RecordError(
            f"{path}: {column} {', '.join(unknown)} is not known: it is one of {', '.join(names)}; correct it"
        )
    return found

"""The output of TensorRT-LLM's `bench_moe_comm.py` as published figures. Follows its writer alone."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from types import MappingProxyType

import pandas as pd

from mnnvl_lab.errors import RecordError
from mnnvl_lab.published.figures import figures, read_json

MODES = MappingProxyType(
    {
        "NVLINK_ONE_SIDED": "one_sided",
        "NVLINK_TWO_SIDED": "two_sided",
        "ALLGATHER": "allgather_reducescatter",
        "DEEPEP": "normal",
        "DEEPEPLOWLATENCY": "low_latency",
        "NCCL_EP": "nccl_ep",
    }
)


def read_tensorrt_llm(path: str | os.PathLike) -> pd.DataFrame:
    """TensorRT-LLM's `bench_moe_comm.py --output_file`: of each rank a mean, or with `--iter_stats` a median.

    The slowest rank's is kept; that is not the median of the slowest rank in each iteration, which the file has not.
    Kernel spans by CUPTI, or CUDA events where its `warning` says so. Two-sided prepare is part of dispatch.
    """
    data = read_json(path)
    report = data if isinstance(data, dict) else {"results": data}
    about, results = report.get("benchmark_metadata") or {}, report.get("results")
    if not isinstance(results, list) or not all(isinstance(r, dict) and "local_batch_size" in r for r in results):
        raise RecordError(f"{path}: no results with local_batch_size: pass what bench_moe_comm.py --output_file wrote")
    return figures(path, (row for result in results for row in _rows(result, about)))


def _rows(result: Mapping, about: Mapping) -> Iterator[dict[str, object]]:
    backend = str(result.get("backend") or about.get("backend") or "")
    fell_back = bool(about.get("warning"))
    for phase in ("dispatch", "combine"):
        ranks = {rank: value for rank, value in (result.get(f"{phase}_us") or {}).items() if value}
        medians = {rank: v["median"] if isinstance(v, dict) else v for rank, v in ranks.items()}
        if not medians:
            continue
        kind = "p50" if any(isinstance(v, dict) for v in ranks.values()) else "mean"
        yield {
            "quantity": "latency",
            "phase": phase,
            "value": max(medians.values()),
            "unit": "us",
            "percentile": kind,
            "mode": MODES.get(backend.upper(), backend.lower()),
            "library": "TensorRT-LLM",
            "variant": "payload in the workspace" if result.get("payload_in_workspace") else "",
            "device": about.get("device_name") or about.get("gpu") or "",
            "devices": about.get("ep_size") or len(ranks),
            "ep_size": about.get("ep_size") or len(ranks),
            "tokens": result["local_batch_size"],
            "hidden": about.get("hidden_size"),
            "experts": about.get("num_experts") or about.get("num_experts_total"),
            "top_k": about.get("top_k"),
            "format": str(about.get("quant_algo") or about.get("quant") or "").lower(),
            "clock": "eager" if fell_back else "kernel",
            "routing": "perfect router" if about.get("perfect_router") else "uniform",
            "source": "NVIDIA/TensorRT-LLM tests/microbenchmarks/bench_moe_comm.py",
            "caveat": "slowest rank's own statistic" + ("; prepare inside" if phase == "dispatch" else ""),
        }

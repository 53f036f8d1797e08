"""Readers of what other benchmarks write, each into published figures: the columns of `data/published/`.

A figure keeps its clock, what its bandwidth counts, and what to beware of. Published figures are context: drawn in grey
(`plots.context`), never joined with records, whose columns differ. Built from the writers' sources, and tried on
real output where some could be had: CollectiveX (an assembled run) and nccl-tests (GB300); FlashInfer's and
TensorRT-LLM's files follow their writers alone.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from io import StringIO
from pathlib import Path
from types import MappingProxyType

import pandas as pd

from mnnvl_lab.datasets import COUNTS, NUMBERS, WORDS
from mnnvl_lab.errors import RecordError, choose
from mnnvl_lab.read_published import read_aiconfigurator

COLLECTIVEX = "SemiAnalysisAI/InferenceX experimental/CollectiveX"
OPERATIONS = MappingProxyType(
    {"dispatch": "dispatch", "combine": "combine", "roundtrip": "round", "pair_period": "round"}
)
WINDOWS = MappingProxyType({"pair_period": "graph"})
"""Clock of an operation where it is not eager: the period of pairs back to back is nearest to `graph`."""
PERF = re.compile(
    r"\[PERF\] (\S+)\s*:: median time ([\d.]+|nan) ms; std ([\d.]+|nan) ms;.* tb_per_sec ([\d.]+|nan) TB/sec"
)
ARGUMENT = re.compile(r"(\w+)=('[^']*'|[^,\s)]+)")
RANK_LINE = re.compile(r"#\s+Rank\s+\d+ .* device\s+\d+ \[[^]]*\] (.+)")
NCCL_ROW = re.compile(r"\s*(\d+)\s+(\d+)\s+(\S+)\s+\S+\s+\S+\s+([\d.]+)\s+([\d.]+)\s+([\d.]+)\s")
TRTLLM_MODES = MappingProxyType(
    {
        "NVLINK_ONE_SIDED": "one_sided",
        "NVLINK_TWO_SIDED": "two_sided",
        "ALLGATHER": "allgather_reducescatter",
        "DEEPEP": "normal",
        "DEEPEPLOWLATENCY": "low_latency",
        "NCCL_EP": "nccl_ep",
    }
)


def read_published(path: str | os.PathLike, *, format: str) -> pd.DataFrame:
    """A file of another benchmark as published figures.

    Args:
        format: `aiconfigurator`, `collectivex`, `flashinfer`, `tensorrt_llm` or `nccl_tests`.

    Returns:
        A row per figure, in the columns of `datasets.load_published`.

    Raises:
        RecordError: no such file, or not of that format. Refused: no such format.
    """
    return READERS[choose(format, READERS, "format")](path)


def read_collectivex(path: str | os.PathLike) -> pd.DataFrame:
    """CollectiveX' JSON: a `case-attempt` document, or a run assembled for its dashboard (`series`).

    Latencies are eager and fresh-entry, launch included, the largest over ranks, then nearest-rank percentiles;
    `pair_period` is the chained period. Bytes are logical and rank-deduplicated. Rows that its oracle failed are left
    out.
    """
    data = _json(path)
    if isinstance(data, dict) and data.get("record_type") == "case-attempt":
        return _figures(path, _case_attempt(data))
    if isinstance(data, dict) and isinstance(data.get("series"), list):
        run = str(data.get("run", {}).get("run_id", ""))
        date = str(data.get("run", {}).get("generated_at", ""))[:10]
        return _figures(path, (row for series in data["series"] for row in _series(series, run, date)))
    raise RecordError(f"{path}: no CollectiveX document: it has record_type case-attempt, or series; pass such a file")


def _series(series: Mapping, run: str, date: str) -> Iterator[dict[str, object]]:
    system = series["system"]
    about = {
        "mode": series["mode"],
        "library": series["backend"],
        "device": system["sku"],
        "devices": system["ep_size"],
        "ep_size": system["ep_size"],
        "format": series["precision"],
        "variant": series.get("phase", ""),
        "routing": "uniform",
        "source": f"{COLLECTIVEX} run {run}",
        "date": date,
    }
    for point in series["points"]:
        if point.get("correctness") is False:
            continue
        for name, component in point["components"].items():
            if component and name in OPERATIONS:
                yield from _percentiles(name, component["latency_us"], about | {"tokens": point["tokens_per_rank"]})
                rates = component.get("payload_data_rate_gbps_at_latency_percentile") or {}
                yield from _rates(name, rates, about | {"tokens": point["tokens_per_rank"]})


def _case_attempt(data: Mapping) -> Iterator[dict[str, object]]:
    case = data["identity"]["case_factors"]["case"]
    about = {
        "mode": case["mode"],
        "library": case["backend"],
        "device": data["topology"].get("device_product") or data["identity"]["case_factors"]["sku"],
        "devices": data["topology"]["world_size"],
        "ep_size": case["ep"],
        "hidden": case["hidden"],
        "experts": case["experts"],
        "top_k": case["topk"],
        "format": case["precision"],
        "variant": case.get("phase", ""),
        "routing": case["routing"],
        "source": f"{COLLECTIVEX} case {data['identity']['case_id']}",
        "date": str(data["generated_at"])[:10],
    }
    for row in data["measurement"]["rows"]:
        if not row["correctness"]["passed"]:
            continue
        for name, component in row["components"].items():
            if name in OPERATIONS and component["percentiles_us"]:
                own = about | {"tokens": row["tokens_per_rank"]}
                yield from _percentiles(name, component["percentiles_us"], own)
                size = row["byte_provenance"].get(name, {}).get("total_logical_bytes")
                if size:
                    rates = {k: size / case["ep"] / us / 1e3 for k, us in component["percentiles_us"].items()}
                    yield from _rates(name, rates, own)


def _percentiles(name: str, values: Mapping[str, float], about: Mapping[str, object]) -> Iterator[dict[str, object]]:
    words = "launch and entry skew inside; largest over ranks"
    chained = "chained period of dispatch and combine; median over ranks"
    for percentile, value in values.items():
        yield about | {
            "quantity": "latency",
            "phase": OPERATIONS[name],
            "value": value,
            "unit": "us",
            "percentile": percentile,
            "clock": WINDOWS.get(name, "eager"),
            "caveat": chained if name in WINDOWS else words,
        }


def _rates(name: str, values: Mapping[str, float], about: Mapping[str, object]) -> Iterator[dict[str, object]]:
    for percentile, value in values.items():
        yield about | {
            "quantity": "bandwidth",
            "phase": OPERATIONS[name],
            "value": value,
            "unit": "GB/s",
            "percentile": percentile,
            "clock": WINDOWS.get(name, "eager"),
            "bandwidth_convention": "collectivex",
            "caveat": "logical bytes of a rank at that percentile of latency",
        }


def read_flashinfer(path: str | os.PathLike) -> pd.DataFrame:
    """FlashInfer's `moe_comm` benchmark: its CSV (`--output_path`), or its log with `-vv`.

    Times are medians over iterations of the slowest rank, from a CUDA graph by default, with a cold L2 cache; with
    `--per_phase_timing` eager. Bandwidth is TB/s of all ranks together. A log names the load only if it is verbose.
    """
    text = _text(path)
    if text.lstrip().startswith("routine,") or "dispatch_tb_sec" in text.partition("\n")[0]:
        table = pd.read_csv(StringIO(text))
        rows = table[table["routine"].astype(str).str.startswith("moe_a2a")].to_dict("records")
        return _figures(path, (figure for row in rows for figure in _flashinfer_row(row)))
    return _figures(path, _flashinfer_log(text))


def _flashinfer_row(row: Mapping[str, object]) -> Iterator[dict[str, object]]:
    per_phase = pd.notna(row.get("dispatch_time"))
    clock = "eager" if per_phase or str(row.get("no_cuda_graph")) == "True" else "graph"
    about = _flashinfer_about(row, clock)
    for phase, time, spread, rate in (
        ("round", "median_time", "std_time", "tb_per_sec"),
        ("dispatch", "dispatch_time", "dispatch_std", "dispatch_tb_sec"),
        ("combine", "combine_time", "combine_std", "combine_tb_sec"),
    ):
        if pd.notna(row.get(time)):
            yield from _flashinfer_pair(about | {"phase": phase}, row[time], row.get(spread), row.get(rate))


def _flashinfer_log(text: str) -> Iterator[dict[str, object]]:
    about = _flashinfer_about({}, "unspecified")
    phases = {"a2a_total": "round", "a2a_dispatch": "dispatch", "a2a_combine": "combine"}
    for line in text.splitlines():
        if "args = Namespace(" in line:
            given = {name: value.strip("'") for name, value in ARGUMENT.findall(line.partition("Namespace(")[2])}
            eager = "True" in (given.get("per_phase_timing"), given.get("no_cuda_graph"))
            about = _flashinfer_about(given, "eager" if eager else "graph")
        elif (found := PERF.search(line)) and found[1] in phases:
            time, spread, rate = (None if value == "nan" else float(value) for value in found.groups()[1:])
            yield from _flashinfer_pair(about | {"phase": phases[found[1]]}, time, spread, rate)


def _flashinfer_about(row: Mapping[str, object], clock: str) -> dict[str, object]:
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


def _flashinfer_pair(about: Mapping, time_ms, spread_ms, rate_tb) -> Iterator[dict[str, object]]:
    if time_ms is not None:
        spread = None if spread_ms is None or pd.isna(spread_ms) else 1e3 * float(spread_ms)
        yield about | {"quantity": "latency", "value": 1e3 * float(time_ms), "unit": "us", "plus_minus": spread}
    if rate_tb is not None and pd.notna(rate_tb):
        rate = {"quantity": "bandwidth", "value": 1e3 * float(rate_tb), "unit": "GB/s"}
        yield about | rate | {"bandwidth_convention": "flashinfer"}


def read_tensorrt_llm(path: str | os.PathLike) -> pd.DataFrame:
    """TensorRT-LLM's `bench_moe_comm.py --output_file`: of each rank a mean, or with `--iter_stats` a median.

    The slowest rank's is kept; that is not the median of the slowest rank in each iteration, which the file has not.
    Kernel spans by CUPTI, or CUDA events where its `warning` says so. Two-sided prepare is part of dispatch.
    """
    data = _json(path)
    report = data if isinstance(data, dict) else {"results": data}
    about, results = report.get("benchmark_metadata") or {}, report.get("results")
    if not isinstance(results, list) or not all(isinstance(r, dict) and "local_batch_size" in r for r in results):
        raise RecordError(f"{path}: no results with local_batch_size: pass what bench_moe_comm.py --output_file wrote")
    return _figures(path, (row for result in results for row in _trtllm(result, about)))


def _trtllm(result: Mapping, about: Mapping) -> Iterator[dict[str, object]]:
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
            "mode": TRTLLM_MODES.get(backend.upper(), backend.lower()),
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


def read_nccl_tests(path: str | os.PathLike) -> pd.DataFrame:
    """The text of nccl-tests' `alltoall_perf` and its like; the out-of-place columns.

    `tokens` stays empty: a size is not a load. It stands in `variant`, in bytes of the send buffer of a rank. Times are
    means over iterations and ranks, back to back.
    """
    text = _text(path)
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
    return _figures(path, (row for line in text.splitlines() for row in _nccl_line(line, about)))


def _nccl_line(line: str, about: Mapping[str, object]) -> Iterator[dict[str, object]]:
    found = NCCL_ROW.match(line)
    if found:
        size, _, kind, time_us, _, bus = found.groups()
        own = about | {"phase": "all-to-all", "variant": f"{size} B", "format": kind}
        yield own | {"quantity": "latency", "value": float(time_us), "unit": "us"}
        rate = {"quantity": "bandwidth", "value": float(bus), "unit": "GB/s", "bandwidth_convention": "nccl_bus"}
        yield own | rate


def _figures(path: str | os.PathLike, rows: Iterable[Mapping[str, object]]) -> pd.DataFrame:
    """Rows as a table of published figures.

    Raises:
        RecordError: none, or the file has not the fields that its format promises.
    """
    try:
        made = [dict(row) for row in rows]
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        reason = f"{type(error).__name__}: {error}"
        raise RecordError(f"{path}: not as its writer makes it ({reason}); pass such a file") from None
    if not made:
        raise RecordError(f"{path}: holds no figures; pass a file with results")
    table = pd.DataFrame(made).reindex(columns=[*WORDS, *NUMBERS, *COUNTS])
    words = {name: table[name].astype(object).fillna("").astype(str) for name in WORDS}
    counts = {name: pd.to_numeric(table[name], errors="coerce").astype("Int64") for name in COUNTS}
    numbers = {name: pd.to_numeric(table[name], errors="coerce") for name in NUMBERS}
    return table.assign(**words, **counts, **numbers)


def _text(path: str | os.PathLike) -> str:
    try:
        return Path(path).read_text(encoding="utf-8", errors="replace")
    except OSError as error:
        raise RecordError(f"{path}: cannot be read ({error.strerror}); name another file") from None


def _json(path: str | os.PathLike) -> object:
    try:
        return json.loads(_text(path))
    except json.JSONDecodeError as error:
        raise RecordError(f"{path}: no JSON ({error}); pass the file as it was written") from None


READERS: Mapping[str, Callable[[str | os.PathLike], pd.DataFrame]] = MappingProxyType(
    {
        "aiconfigurator": read_aiconfigurator,
        "collectivex": read_collectivex,
        "flashinfer": read_flashinfer,
        "tensorrt_llm": read_tensorrt_llm,
        "nccl_tests": read_nccl_tests,
    }
)

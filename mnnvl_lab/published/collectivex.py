"""CollectiveX' JSON as published figures. Tried on an assembled run."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from types import MappingProxyType

import pandas as pd

from mnnvl_lab.errors import RecordError
from mnnvl_lab.published.figures import figures, read_json

COLLECTIVEX = "SemiAnalysisAI/InferenceX experimental/CollectiveX"
OPERATIONS = MappingProxyType(
    {"dispatch": "dispatch", "combine": "combine", "roundtrip": "round", "pair_period": "round"}
)
WINDOWS = MappingProxyType({"pair_period": "graph"})
"""Clock of an operation where it is not eager: the period of pairs back to back is nearest to `graph`."""


def read_collectivex(path: str | os.PathLike) -> pd.DataFrame:
    """CollectiveX' JSON: a `case-attempt` document, or a run assembled for its dashboard (`series`).

    Latencies are eager and fresh-entry, launch included, the largest over ranks, then nearest-rank percentiles;
    `pair_period` is the chained period. Bytes are logical and rank-deduplicated. Rows that its oracle failed are left
    out.
    """
    data = read_json(path)
    if isinstance(data, dict) and data.get("record_type") == "case-attempt":
        return figures(path, _case_attempt(data))
    if isinstance(data, dict) and isinstance(data.get("series"), list):
        return figures(path, _assembled(data))
    raise RecordError(f"{path}: no CollectiveX document: it has record_type case-attempt, or series; pass such a file")


def _assembled(data: Mapping) -> Iterator[dict[str, object]]:
    about = data.get("run", {})
    run, date = str(about.get("run_id", "")), str(about.get("generated_at", ""))[:10]
    for series in data["series"]:
        yield from _series(series, run, date)


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

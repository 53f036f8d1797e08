"""A measurement in the schema of others, to be handed upstream: aiconfigurator's Parquet, CollectiveX' JSON.

What a schema has no place for is not forced into it: aiconfigurator's has no clock and no interval, so that only spans
of kernels go there; CollectiveX' fresh-entry samples are eager, so that only these become its components.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType

import numpy as np
import pandas as pd

from mnnvl_lab.errors import RecordError, choose, named_arguments
from mnnvl_lab.model import require_format
from mnnvl_lab.records.files import replacing
from mnnvl_lab.records.schema import POINT_COLUMNS, SIZES
from mnnvl_lab.records.statistics import slowest_rank, summary
from mnnvl_lab.records.table import parts_of, provenance_of
from mnnvl_lab.routing import ROUTINGS, Load, parse, traffic

PERCENTILES = (50, 90, 95, 99)
DECODE_TOKENS = 512
"""CollectiveX counts batches up to so many tokens per rank as decode, larger ones as prefill."""
COMPONENTS = MappingProxyType({"dispatch": "dispatch", "combine": "combine", "round": "roundtrip"})
KERNELS = MappingProxyType({"one_sided": "NVLinkOneSided", "two_sided": "NVLinkTwoSided"})
PHASES = MappingProxyType(
    {"prepare": "alltoall_prepare", "dispatch": "alltoall_dispatch", "combine": "alltoall_combine"}
)
DTYPES = MappingProxyType(
    {"bf16": "bfloat16", "fp16": "float16", "fp8_block": "fp8", "mxfp8": "mxfp8", "nvfp4": "nvfp4"}
)

NAMED = ("mode", "fabric", "ep_size", "format", "routing", "seed", "hidden", "experts", "top_k")
"""What a case of CollectiveX has fields for, or its name says."""
IN_CASE = ("phase", "tokens", "token_counts", *SIZES, "ep_group", "repeat", "delayed_rank", "delay_us")
"""What differs within a case; samples of repeats and of EP groups are of one distribution."""
CASE = tuple(name for name in POINT_COLUMNS if name not in IN_CASE)


@named_arguments
def export(table: pd.DataFrame, path: str | os.PathLike, *, format: str) -> list[Path]:
    """Write samples in the schema of another project.

    Args:
        path: a file for `aiconfigurator`, a folder for `collectivex`, which has one file per case.
        format: `aiconfigurator` or `collectivex`.

    Returns:
        The files.

    Raises:
        RecordError: the samples have nothing that the schema holds, were not all checked, or were measured in several
            ways that the schema does not tell apart. Refused: no such format.
    """
    write = WRITERS[choose(format, WRITERS, "format")]
    if not table["checked"].isin(["exact", "bounded"]).all():
        raise RecordError("samples that were not checked against the oracle are not handed on; leave them out")
    return write(table[table["delay_us"] == 0], Path(path), _machine(table))


def _machine(table: pd.DataFrame) -> dict[str, object]:
    """What all runs of a table have in common, and when the last of them was made; formats have one place for each.

    Raises:
        RecordError: the runs are of several devices or versions of FlashInfer.
    """
    parts = parts_of(provenance_of(table))
    for field, words in {"device": "measured on", "flashinfer": "measured with FlashInfer"}.items():
        found = {str(part.get(field)) for part in parts}
        if len(found) != 1:
            raise RecordError(
                f"{words} {' and '.join(sorted(found))}: the format has room for one; export each by itself"
            )
    common = {field: value for field, value in parts[0].items() if all(part.get(field) == value for part in parts)}
    return common | {"created_at": max(str(part.get("created_at", "")) for part in parts)}


def _aiconfigurator(table: pd.DataFrame, path: Path, machine: Mapping[str, object]) -> list[Path]:
    """`trtllm_alltoall_perf`: a row a phase, in milliseconds, of the kernel clock."""
    table = _even(table)
    known = table["mode"].isin(KERNELS) & table["phase"].isin(PHASES) & table["format"].isin(DTYPES)
    chosen = table[known & (table["clock"] == "kernel") & (table["fabric"] == "nvlink")]
    if chosen.empty:
        raise RecordError(
            "no kernel spans of one-sided or two-sided over NVLink: aiconfigurator's table holds kernels' times and "
            "has no column for a clock; record with --clock kernel"
        )
    medians = summary(chosen)
    low = np.where(medians["low_precision_combine"], "_low_precision", "")
    columns = {
        "framework": "mnnvl_lab FlashInfer",
        "version": str(machine.get("flashinfer", "")),
        "device": re.sub(r"^\d+ x ", "", str(machine.get("device", ""))),
        "op_name": medians["phase"].map(PHASES) + np.where(medians["phase"] == "combine", low, ""),
        "kernel_source": medians["mode"].map(KERNELS),
        "moe_dtype": medians["format"].map(DTYPES),
        "num_tokens": medians["tokens"],
        "hidden_size": medians["hidden"],
        "topk": medians["top_k"],
        "num_experts": medians["experts"],
        "moe_ep_size": medians["ep_size"],
        "distribution": medians["routing"],
        "latency": medians["p50_us"] / 1e3,
    }
    made = pd.DataFrame(columns)
    _require_distinct(medians, made.drop(columns="latency"))
    with replacing(path) as file:
        made.to_parquet(file, engine="pyarrow", index=False)
    return [path]


def _even(table: pd.DataFrame) -> pd.DataFrame:
    """Samples of batches that one token count describes."""
    return table[(table["token_counts"] == "equal") & (table["padding_rows"] == 0) & (table["replicas"] == 1)]


def _require_distinct(points: pd.DataFrame, load: pd.DataFrame) -> None:
    """Refuse points, a row each of `load`, that a reader of the file could not tell apart."""
    for _, same in points.groupby(list(load.T.to_numpy()), sort=False, dropna=False):
        varying = [name for name in POINT_COLUMNS if name in same.columns and same[name].nunique() > 1]
        if varying:
            values = "; ".join(f"{name} {', '.join(map(str, same[name].unique()))}" for name in varying)
            raise RecordError(
                f"one load was measured in several ways ({values}), which the schema does not tell apart: export them "
                "to files of their own"
            )


def _collectivex(table: pd.DataFrame, path: Path, machine: Mapping[str, object]) -> list[Path]:
    """`case-attempt` documents, one per mode, load and phase of serving."""
    eager = table[(table["clock"] == "eager") & table["phase"].isin(COMPONENTS) & (table["tokens"] > 0)]
    drawn = eager["routing"].map(lambda routing: routing.partition(":")[0] in {kind.label for kind in ROUTINGS})
    eager = _even(eager[drawn])
    if eager.empty:
        raise RecordError(
            "no eager samples of dispatch, combine or round: CollectiveX' components are fresh-entry latencies; record "
            "with --clock eager"
        )
    varying = [name for name in CASE if name not in NAMED and eager[name].nunique() > 1]
    files = []
    for serving, part in eager.groupby(np.where(eager["tokens"] <= DECODE_TOKENS, "decode", "prefill"), sort=False):
        for _, case in part.groupby(list(CASE), sort=False):
            points = case.drop_duplicates(["tokens", *SIZES])
            _require_distinct(points[["tokens", *SIZES]], points[["tokens"]])
            document = _case(case, serving, machine, [f"{name}-{case[name].iloc[0]}" for name in varying])
            file = path / f"{document['identity']['case_id']}.json"
            with replacing(file, text=True) as out:
                json.dump(document, out, indent=1, allow_nan=False)
            files.append(file)
    return files


def _case(case: pd.DataFrame, serving: str, machine: Mapping[str, object], ways: Sequence[str]) -> dict[str, object]:
    first = case.iloc[0]
    sku = re.sub(r"\W+", "-", re.sub(r"^\d+ x ", "", str(machine.get("device", "")))).lower()
    factors = {
        "backend": "mnnvl-lab-flashinfer",
        "ep": int(first["ep_size"]),
        "experts": int(first["experts"]),
        "hidden": int(first["hidden"]),
        "ladder": " ".join(str(tokens) for tokens in sorted(case["tokens"].unique())),
        "mode": str(first["mode"]),
        "nodes": 1,
        "phase": serving,
        "precision": str(first["format"]),
        "routing": str(first["routing"]),
        "scale_up_transport": str(first["fabric"]),
        "topk": int(first["top_k"]),
    }
    words = [sku, factors["backend"], factors["scale_up_transport"], factors["mode"], serving, f"ep{factors['ep']}"]
    shape = [f"hidden{factors['hidden']}", f"experts{factors['experts']}", f"topk{factors['topk']}"]
    drawn = [factors["routing"], f"seed{first['seed']}", factors["precision"]]
    name = re.sub(r"[^\w.-]+", "-", "-".join([*words, *shape, *drawn, *ways]))
    return {
        "version": 1,
        "record_type": "case-attempt",
        "generated_at": str(machine.get("created_at", "")),
        "identity": {"attempt_ordinal": 1, "case_factors": {"case": factors, "sku": sku}, "case_id": name},
        "measurement": {
            "dispatch_dtype": str(first["format"]),
            "combine_dtype": str(first["combine_dtype"]),
            "payload_unit": "token-rank",
            "rows": list(_rows(case)),
        },
        "implementation": {"name": "mnnvl_lab", "library_version": str(machine.get("flashinfer", ""))},
        "topology": {"device_product": str(machine.get("device", "")), "nodes": 1, "world_size": int(first["ep_size"])},
        "provenance": {"image": None, "source_sha": str(machine.get("commit", "")) or None},
        "outcome": {"reasons": [], "status": "success"},
    }


def _rows(case: pd.DataFrame) -> Iterator[dict[str, object]]:
    for tokens, samples in slowest_rank(case).groupby("tokens"):
        point, ranks = samples.iloc[0], int(samples["ep_size"].iloc[0])
        moved = _moved_bytes(point)
        yield {
            "tokens_per_rank": int(tokens),
            "global_tokens": int(tokens) * ranks,
            "components": {COMPONENTS[phase]: _component(own["latency_us"]) for phase, own in samples.groupby("phase")},
            "byte_provenance": moved,
            "correctness": {"passed": True, "max_relative_error": None},
        }


def _component(latency_us: pd.Series) -> dict[str, object]:
    """Nearest-rank percentiles of the slowest rank, as CollectiveX reduces."""
    values = np.percentile(latency_us.to_numpy(), PERCENTILES, method="inverted_cdf")
    percentiles = {f"p{which}": float(value) for which, value in zip(PERCENTILES, values, strict=True)}
    measured = {"availability": "measured", "origin": "measured"}
    return measured | {"percentiles_us": percentiles, "sample_count": len(latency_us)}


def _moved_bytes(point: pd.Series) -> dict[str, dict[str, int]]:
    """Logical bytes of all ranks together: one row per token and target rank, its own included."""
    load = Load(routing=parse(str(point["routing"])), tokens=int(point["tokens"]), seed=int(point["seed"]))
    rows = int(traffic.rows_RR(load, **{name: int(point[name]) for name in ("experts", "top_k", "ep_size")}).sum())
    hidden, form = int(point["hidden"]), require_format(str(point["format"]))
    back = hidden if point["low_precision_combine"] else 2 * hidden
    sizes = {"dispatch": rows * form.bytes_per_token(hidden), "combine": rows * back}
    sizes["roundtrip"] = sizes["dispatch"] + sizes["combine"]
    return {name: {"total_logical_bytes": size} for name, size in sizes.items()}


WRITERS: Mapping[str, Callable[..., list[Path]]] = MappingProxyType(
    {"aiconfigurator": _aiconfigurator, "collectivex": _collectivex}
)

"""From records to observations, and from predictions to a table that no one takes for a record."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, fields
from types import MappingProxyType

import pandas as pd

from mnnvl_lab.analysis.latency_model.fit import CONFIDENCE, Observation, Prediction
from mnnvl_lab.analysis.latency_model.terms import TERMS
from mnnvl_lab.analysis.latency_model.work import Point
from mnnvl_lab.errors import Refused
from mnnvl_lab.records import provenance_of, summary

KIND = "prediction"
PLAIN = MappingProxyType(
    {"token_counts": "equal", "padding_rows": 0, "replicas": 1, "combine_dtype": "bf16", "extra_payload_bytes": ""}
)
"""What the model's points do not tell apart: other values are left out."""


def observations(table: pd.DataFrame, *, gpus: int | None = None) -> list[Observation]:
    """The medians that the model is fitted to: rounds on the `graph` clock, undelayed, of modes that it knows.

    Args:
        table: samples, as `records.load` gives them; one device.
        gpus: how many GPUs carried the ranks; if left out, read from the provenance: its `ranks_per_gpu`, or its
            device, such as `2 x H100`.

    Raises:
        Refused: no such samples, or ranks share GPUs of unknown number.
    """
    graph_rounds = (table["clock"] == "graph") & (table["phase"] == "round") & (table["fabric"] != "host")
    undisturbed = (table["delay_us"] == 0) & (table["l2"] == "warm") & (table["tokens"] > 0)
    for name, value in PLAIN.items():
        undisturbed &= table[name] == value if name in table.columns else True
    chosen = table[graph_rounds & undisturbed & table["mode"].isin(list(TERMS))]
    if chosen.empty:
        raise Refused("no rounds on the graph clock of a GPU: the model is fitted to these; sweep with clock graph")
    sharing = _sharing(provenance_of(table), gpus)
    medians = summary(chosen).to_dict("records")
    return [Observation.of(_point(row, sharing), row["p50_us"]) for row in medians]


def gpu_count(device: str) -> int | None:
    """`2 x NVIDIA H100 80GB HBM3` to 2; None where the label does not say."""
    found = re.match(r"(\d+)\s*x\s", device)
    return int(found[1]) if found else None


def frame(predictions: Iterable[Prediction]) -> pd.DataFrame:
    """Predictions as a table with columns of its own: `kind` is `prediction`, and `records.join` refuses it."""
    return pd.DataFrame(
        {"kind": KIND, **asdict(p.point)}
        | {
            "predicted_us": round(p.latency_us, 2),
            "low_us": round(p.low_us, 2),
            "high_us": round(p.high_us, 2),
            "confidence": CONFIDENCE,
        }
        for p in predictions
    )


def _sharing(provenance: Mapping[str, object], gpus: int | None) -> Callable[[dict], int]:
    """How many ranks shared a GPU at a row's point."""
    named = provenance.get("ranks_per_gpu")
    gpus = gpus if gpus is not None else gpu_count(str(provenance.get("device", "")))

    def ranks_per_gpu(row: dict) -> int:
        if row["fabric"] == "nvlink":
            return 1
        if named is None and gpus is None:
            raise Refused("ranks share GPUs, but the record does not say how many GPUs there were; pass gpus=")
        return named if named is not None else -(-row["ep_size"] * row["pp"] // gpus)

    return ranks_per_gpu


def _point(row: dict, sharing: Callable[[dict], int]) -> Point:
    names = {f.name for f in fields(Point)} & set(row)
    return Point(**{name: row[name] for name in names}, ranks_per_gpu=sharing(row))


GROUP = ["mode", "fabric", "ep_size", "format", "routing"]


def evaluated(predictions: pd.DataFrame, observations: Iterable[Observation]) -> pd.DataFrame:
    """Every recorded point that was predicted.

    Args:
        predictions: as `frame` makes it and a CSV file keeps it.
        observations: of any points.

    Returns:
        A row per point: `mode, fabric, ep_size, tokens, format, routing, latency_us, predicted_us, low_us, high_us`,
        `error_percent` (of the prediction, over the record), `inside` (the record lies in the interval).

    Raises:
        Refused: the table holds no predictions, or none of the points recorded.
    """
    if "kind" not in predictions.columns or set(predictions["kind"]) != {"prediction"}:
        raise Refused("a table without kind 'prediction': only what was predicted can be judged; read data/predictions")
    names = [field.name for field in fields(Point)]
    by_point = {Point(**{name: row[name] for name in names}): row for row in predictions.to_dict("records")}
    rows = [_row(by_point[o.point], o.latency_us) for o in observations if o.point in by_point]
    if not rows:
        raise Refused("none of the points recorded was predicted: fabric, EP size, shape and mode must be the same")
    return pd.DataFrame(rows)


def score(table: pd.DataFrame) -> pd.DataFrame:
    """Errors by mode, format and routing.

    Args:
        table: as `evaluated` returns it.

    Returns:
        `GROUP`, then `points`, `median_percent` and `worst_percent` (of the sizes of the errors), `bias_percent` (the
        median with its sign: above 0 where the model says too much), `inside_percent` (points in their interval).
    """
    sized = table.assign(size_percent=table["error_percent"].abs(), inside_percent=100.0 * table["inside"])
    return (
        sized.groupby(GROUP, sort=False)
        .agg(
            points=("size_percent", "size"),
            median_percent=("size_percent", "median"),
            worst_percent=("size_percent", "max"),
            bias_percent=("error_percent", "median"),
            inside_percent=("inside_percent", "mean"),
        )
        .reset_index()
    )


def _row(prediction: dict[str, object], latency_us: float) -> dict[str, object]:
    low_us, high_us = prediction["low_us"], prediction["high_us"]
    return {name: prediction[name] for name in ("mode", "fabric", "ep_size", "tokens", "format", "routing")} | {
        "latency_us": latency_us,
        "predicted_us": prediction["predicted_us"],
        "low_us": low_us,
        "high_us": high_us,
        "error_percent": 100 * (prediction["predicted_us"] / latency_us - 1),
        "inside": low_us <= latency_us <= high_us,
    }

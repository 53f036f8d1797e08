"""Predictions written down ahead against what was recorded later: the errors as they are."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import fields

import pandas as pd

from mnnvl_lab.errors import Refused
from mnnvl_lab.latency_model.fit import Observation
from mnnvl_lab.latency_model.work import Point

GROUP = ["mode", "fabric", "ep_size", "format", "routing"]


def judged(predictions: pd.DataFrame, observations: Iterable[Observation]) -> pd.DataFrame:
    """Every recorded point that was predicted.

    Args:
        predictions: as `frame` makes it and a CSV file keeps it.
        observations: of any points.

    Returns:
        A row a point: `mode, fabric, ep_size, tokens, format, routing, latency_us, predicted_us, low_us, high_us`,
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
        table: as `judged` returns it.

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

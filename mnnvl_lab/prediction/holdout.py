"""Predictions held against published figures that no fit has seen."""

from __future__ import annotations

import pandas as pd

from mnnvl_lab.errors import Refused
from mnnvl_lab.layout import Layout
from mnnvl_lab.prediction.predict import predict

PHASES = ("dispatch", "combine")
SHAPE = ("hidden", "experts", "top_k")


def against_published(table: pd.DataFrame, *, mode: str, gpu: str, routing: str = "balanced") -> pd.DataFrame:
    """Each round of a published table, its phases summed, beside its prediction.

    Args:
        table: latencies of one mode in the columns of `data/published/`, one format.
        mode: one_sided or two_sided.
        gpu: whose model predicts.
        routing: as the table's source used it.

    Returns:
        One row per EP size and token count that has both phases: `ep_size, tokens, published_us, predicted_us, low_us,
        high_us, error_percent, inside`.

    Raises:
        Refused: the table has no complete round, or several formats.
    """
    latencies = table[(table["quantity"] == "latency") & table["phase"].isin(PHASES) & (table["mode"] == mode)]
    formats = latencies.loc[latencies["phase"] == "dispatch", "format"].unique()
    keys = ["ep_size", "tokens", *SHAPE]
    rounds = latencies.groupby(keys)["value"].agg(["sum", "size"])
    rounds = rounds[rounds["size"] == len(PHASES)]["sum"]
    if rounds.empty or len(formats) != 1:
        found = ", ".join(formats) or "none"
        raise Refused(f"a table of {len(rounds)} complete rounds in format {found}: pass rounds of one format")
    rows = []
    for (ep_size, tokens, *shape), published_us in rounds.items():
        layout = Layout(dp=int(ep_size), gpus_per_node=4)
        numbers = dict(zip(SHAPE, map(int, shape), strict=True))
        load = {"tokens": int(tokens), "format": formats[0], "routing": routing}
        one = predict(layout, **numbers, **load, mode=mode, gpu=gpu)[mode]
        rows.append(_row(int(ep_size), int(tokens), float(published_us), one))
    return pd.DataFrame(rows)


def _row(ep_size: int, tokens: int, published_us: float, one) -> dict[str, object]:
    if one.latency_us is None:
        raise Refused(f"EP{ep_size} cannot be predicted: {one.refusal or one.basis}")
    numbers = {
        "published_us": published_us,
        "predicted_us": one.latency_us,
        "low_us": one.low_us,
        "high_us": one.high_us,
    }
    error = 100 * (one.latency_us / published_us - 1)
    inside = one.low_us <= published_us <= one.high_us
    return {"ep_size": ep_size, "tokens": tokens} | numbers | {"error_percent": error, "inside": inside}

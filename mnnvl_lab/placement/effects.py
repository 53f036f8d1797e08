"""What placements do to the same load: busiest rank, rows, fullest link, memory of the replicas, predicted latency."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import numpy as np
import pandas as pd

from mnnvl_lab.bounds import fullest_bytes
from mnnvl_lab.errors import require_count
from mnnvl_lab.exchange import ExchangeShape
from mnnvl_lab.hardware import Gpu
from mnnvl_lab.layout import Layout, require_layout
from mnnvl_lab.model import Model, require_model
from mnnvl_lab.placement.maps import Placement
from mnnvl_lab.placement.placed import Placed
from mnnvl_lab.planner.weights import expert_bytes
from mnnvl_lab.prediction import predict
from mnnvl_lab.routing import Load, Routing, parse, traffic


def effects(
    placements: Iterable[Placement],
    *,
    routing: Routing | str,
    tokens: int,
    layout: Layout,
    model: Model | str,
    format: str = "bf16",
    weights: str = "fp8",
    gpu: Gpu | str = "h100",
    pick: str = "by_token",
    seed: int = 0,
) -> pd.DataFrame:
    """One row per placement, all under the same choices of logical experts.

    Args:
        placements: to compare.
        routing: chooses among the model's experts, or its label.
        tokens: T of every rank.
        layout: gives the EP group.
        model: a model or its name.
        format: of dispatch.
        weights: dtype of the experts' weights, for the memory of replicas.
        gpu: for the prediction of a one-sided round; without a fitted model only its bound is known.
        pick: which replica (`Placement.physical_ids`).
        seed: of the routing.

    Returns:
        `placement, redundant, busiest_copies` (copies of the busiest rank over the mean: the experts' work),
        `busiest_rows` (rows of the fullest rank over the mean), `rows` (of all ranks), `fullest_bytes` (of dispatch,
        over the fullest link), `replica_bytes` (of one rank, over all layers; None where the model's expert size is
        not known), `predicted_us, low_us, high_us` (None where only a bound is known), `bound_us`.

    Raises:
        Refused: a value is out of range, or a placement is for another layout or model.
    """
    moe, chosen = require_model(model), parse(routing)
    require_layout(layout)
    require_count("tokens", tokens)
    rows = []
    for placement in placements:
        placed = Placed(routing=chosen, placement=placement, pick=pick)
        shape = {"experts": placement.physical, "top_k": moe.top_k}
        load = Load(routing=placed, tokens=tokens, seed=seed)
        need = ExchangeShape(layout=layout, max_tokens=tokens, hidden=moe.hidden, format=format, **shape)
        about = {"placement": placement.name, "redundant": placement.redundant}
        about |= _traffic(load, need) | {"replica_bytes": _replica_bytes(moe, layout, weights, placement)}
        about |= _latency(load, need, gpu)
        rows.append(about)
    return pd.DataFrame(rows)


def per_rank(
    placements: Iterable[Placement],
    *,
    routing: Routing | str,
    tokens: int,
    top_k: int,
    pick: str = "by_token",
    seed: int = 0,
) -> pd.DataFrame:
    """One row per placement and rank: `placement, rank, copies, rows` that the rank receives, for `plots.per_rank`.

    Args:
        placements: to compare, of one EP group.
        routing, tokens, pick, seed: as in `effects`.
        top_k: K.
    """
    tables = []
    for placement in placements:
        load = Load(routing=Placed(routing=parse(routing), placement=placement, pick=pick), tokens=tokens, seed=seed)
        shape = {"experts": placement.physical, "top_k": top_k, "ep_size": placement.ep_size}
        name = f"{placement.name} + {placement.redundant}" if placement.redundant else placement.name
        counts = {"copies": traffic.copies_RR(load, **shape), "rows": traffic.rows_RR(load, **shape)}
        received = {column: matrix_RR.sum(axis=0) for column, matrix_RR in counts.items()}
        tables.append(pd.DataFrame({"placement": name, "rank": range(placement.ep_size)} | received))
    return pd.concat(tables, ignore_index=True)


def _traffic(load: Load, need: ExchangeShape) -> dict[str, object]:
    shape = {"experts": need.experts, "top_k": need.top_k, "ep_size": need.ep_size}
    rows_RR, copies_RR = traffic.rows_RR(load, **shape), traffic.copies_RR(load, **shape)
    return {
        "busiest_copies": _over_mean(copies_RR),
        "busiest_rows": _over_mean(rows_RR),
        "rows": int(rows_RR.sum()),
        "fullest_bytes": fullest_bytes(traffic.to_bytes(rows_RR, bytes_per_token=need.dispatch_bytes_per_token)),
    }


def _over_mean(matrix_RR: np.ndarray) -> float:
    """What the fullest receiver gets, as a multiple of the mean."""
    received_R = matrix_RR.sum(axis=0)
    return float(received_R.max() / received_R.mean())


def _replica_bytes(model: Model, layout: Layout, weights: str, placement: Placement) -> int | None:
    """What a rank's slots take beyond those without redundancy."""
    more = expert_bytes(model, layout, dtype=weights, redundant=placement.redundant)
    return None if more is None else more - expert_bytes(model, layout, dtype=weights)


def _latency(load: Load, need: ExchangeShape, gpu: Gpu | str) -> Mapping[str, float | None]:
    shape = {"hidden": need.hidden, "experts": need.experts, "top_k": need.top_k}
    about = {"format": need.format, "routing": load.routing, "seed": load.seed, "gpu": gpu}
    round_ = predict(need.layout, tokens=load.max_tokens, mode="one_sided", **about, **shape)["one_sided"]
    names = ("low_us", "high_us", "bound_us")
    return {"predicted_us": round_.latency_us} | {name: getattr(round_, name) for name in names}

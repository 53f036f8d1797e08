"""`lab.predict`: what a round of a layout will take, before anything runs, also on GPUs that nobody here has."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace

import numpy as np

from mnnvl_lab.analysis.latency_model import Point
from mnnvl_lab.arguments import as_axis
from mnnvl_lab.errors import Refused, choose, named_arguments, require_count
from mnnvl_lab.exchange import ExchangeShape
from mnnvl_lab.hardware import Gpu, domain_problems, require_gpu
from mnnvl_lab.layout import Layout, require_layout
from mnnvl_lab.model import Model, require_format, require_model
from mnnvl_lab.prediction.basis import basis_of, calibration_of, is_within
from mnnvl_lab.prediction.calibration import Calibration
from mnnvl_lab.prediction.fitted import Rounds, rounds
from mnnvl_lab.prediction.forecast import Forecast, ModeForecast
from mnnvl_lab.prediction.parts import stacked
from mnnvl_lab.prediction.rows import expected_rows_RR
from mnnvl_lab.routing import Routing, parse
from mnnvl_lab.workspace.kernel_limits import problems
from mnnvl_lab.workspace.two_sided import PACKET_BYTES, PACKET_DATA_BYTES

MODES = ("one_sided", "two_sided", "allgather_reducescatter", "all_to_all")
NVLINK_MODES = MODES[:2]
MOST_TOKENS = 2**22
SHAPE = ("hidden", "experts", "top_k")


@named_arguments
def predict(
    layout: Layout,
    *,
    model: Model | str | None = None,
    tokens: int | Iterable[int] = 128,
    mode: str | Iterable[str] | None = None,
    gpu: Gpu | str = "h100",
    format: str = "bf16",
    routing: Routing | str = "uniform",
    hidden: int | None = None,
    experts: int | None = None,
    top_k: int | None = None,
    seed: int = 0,
) -> Forecast:
    """Predict the rounds of a layout: dispatch, combine and both, with an interval and a lower bound.

    One GPU per rank over NVLink, the graph clock, equal tokens on all ranks, one-sided with its payload in the
    workspace. Nothing is measured, and nothing here is a measurement.

    Args:
        layout: gives the EP group.
        model: a model or its name; or else give `hidden`, `experts` and `top_k`.
        tokens: T of every rank, one count or several.
        mode: one mode or several; None for all that the device has.
        gpu: a GPU or its name. H100, H200 and GB200 have a fitted model, all others bounds alone.
        format: of dispatch.
        routing: a routing or its label, such as `zipf:1.2`.
        hidden, experts, top_k: H, E, K.
        seed: of the routing.

    Returns:
        A `Forecast`: `forecast["one_sided"].latency_us`, `.to_dict()`, `.to_frame()`.

    Raises:
        Refused: a value is none or out of range; an EP group of one rank, which exchanges nothing. A mode that cannot
            serve the layout is predicted as None, with its `refusal`.
    """
    require_layout(layout)
    moe, known = _shape(model, {"hidden": hidden, "experts": experts, "top_k": top_k}), require_gpu(gpu)
    form, drawn = require_format(format), parse(routing)
    form.require_hidden(moe["hidden"])
    if layout.ep_size == 1:
        raise Refused(f"ep_size is 1 = {layout.arithmetic}: one rank exchanges nothing; raise DP, TP or PCP")
    counts = tuple(require_count("tokens", n, most=MOST_TOKENS) for n in as_axis("tokens", tokens))
    point = Point(
        mode="one_sided",
        ep_size=layout.ep_size,
        tokens=counts[0],
        format=form.name,
        routing=str(drawn),
        seed=require_count("seed", seed, least=0),
        payload_in_workspace=True,
        multiprocessors=known.multiprocessors,
        **moe,
    )
    found = calibration_of(known)
    chosen = _modes(mode, found)
    made = {name: _of_mode(name, counts, point, drawn, layout, known, found) for name in chosen}
    return Forecast(
        layout=layout,
        gpu=known,
        model=None if model is None else require_model(model),
        format=form.name,
        routing=str(drawn),
        rounds=tuple(made[name][i] for i in range(len(counts)) for name in chosen),
        **moe,
    )


def _of_mode(
    mode: str,
    counts: Sequence[int],
    point: Point,
    routing: Routing,
    layout: Layout,
    gpu: Gpu,
    found: Calibration | None,
) -> list[ModeForecast]:
    """A mode at every token count."""
    refusal = "; ".join(_problems(mode, point, max(counts), layout, gpu)) or None
    points = [replace(point, mode=mode, tokens=n) for n in counts]
    said = [basis_of(found, gpu, one) for one in points]
    if refusal:
        return [
            ModeForecast(mode=mode, tokens=n, basis=basis, refusal=refusal)
            for n, basis in zip(counts, said, strict=True)
        ]
    rows = [_rows(one, routing) for one in points]
    bounds = [bound_us(one, rows_RR, gpu) for one, rows_RR in zip(points, rows, strict=True)]
    fitted = _rounds(points, rows, found)
    return [
        ModeForecast(mode=mode, tokens=n, bound_us=bounds[i], basis=said[i], **_numbers(fitted, i, bounds[i]))
        for i, n in enumerate(counts)
    ]


def bound_us(point: Point, rows_RR: np.ndarray, gpu: Gpu) -> float:
    """Least time of a round's bytes over the fullest link at its rate on paper.

    Two-sided's packets carry 1,920 bytes in 2,048; all-gather and reduce-scatter move every row to or from every peer.
    """
    wire_RR = rows_RR - np.diag(np.diag(rows_RR))
    rows = max(wire_RR.sum(axis=0).max(), wire_RR.sum(axis=1).max())
    if point.mode == "allgather_reducescatter":
        rows = (point.ep_size - 1) * point.tokens
    moved = rows * (point.dispatch_bytes_per_token + point.combine_bytes_per_token)
    packing = PACKET_BYTES / PACKET_DATA_BYTES if point.mode == "two_sided" else 1
    return float(moved * packing / gpu.nvlink_gigabytes_per_s / 1e3)


def _rounds(points: Sequence[Point], rows: Sequence[np.ndarray], found: Calibration | None) -> Rounds | None:
    parts = found.parts.get(points[0].mode) if found else None
    if not parts:
        return None
    counted = {}
    for part in (fitted.part for fitted in parts):  # phases of one device count the same
        if part.count not in counted:
            counted[part.count] = stacked([part.count(one, rows_RR) for one, rows_RR in zip(points, rows, strict=True)])
    within = np.array([is_within(found, one) for one in points])
    return rounds(parts, [counted[fitted.part.count] for fitted in parts], within=within)


def _numbers(fitted: Rounds | None, index: int, bound: float) -> dict[str, object]:
    """Of one point; a link allows nothing below the bound."""
    if fitted is None:
        return {}
    names = ("latency_us", "dispatch_us", "combine_us", "low_us", "high_us")
    numbers = {name: float(getattr(fitted, name)[index]) for name in names}
    least = {name: max(numbers[name], bound) for name in ("latency_us", "low_us", "high_us")}
    return numbers | least | {"dominated_by": fitted.dominated_by(index)}


def _rows(point: Point, routing: Routing) -> np.ndarray:
    shape = {name: getattr(point, name) for name in ("experts", "top_k", "ep_size", "tokens", "seed")}
    return expected_rows_RR(routing, **shape)


def _problems(mode: str, point: Point, most: int, layout: Layout, gpu: Gpu) -> Iterable[str]:
    """Why the mode cannot serve this."""
    shape = {name: getattr(point, name) for name in SHAPE}
    need = ExchangeShape(layout=layout, max_tokens=most, format=point.format, **shape)
    found = [*problems(need, mode), *domain_problems(layout, gpu)]
    return found if mode in NVLINK_MODES else [_over_the_network(text) for text in found]


def _over_the_network(problem: str) -> str:
    return problem.replace(
        ", or mode allgather_reducescatter, which NCCL carries over the network",
        "; NCCL would carry it over the network, which this model does not know",
    )


def _modes(mode: str | Iterable[str] | None, found: Calibration | None) -> list[str]:
    if mode is None:
        return [name for name in MODES if name in NVLINK_MODES or (found and name in found.parts)]
    return list(dict.fromkeys(choose(name, MODES, "mode") for name in as_axis("mode", mode)))


def _shape(model: Model | str | None, numbers: dict[str, int | None]) -> dict[str, int]:
    given = [name for name, value in numbers.items() if value is not None]
    if model is not None:
        if given:
            raise Refused(
                f"model and {', '.join(given)} given: a model brings these numbers; leave one or the other out"
            )
        return {name: getattr(require_model(model), name) for name in SHAPE}
    if missing := [name for name in SHAPE if name not in given]:
        raise Refused(
            f"no model, and {', '.join(missing)} missing: a prediction needs hidden, experts and top_k; name a model "
            "or give them"
        )
    return {name: require_count(name, value) for name, value in numbers.items()}

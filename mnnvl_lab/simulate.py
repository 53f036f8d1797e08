"""One round of many ranks, rank by rank: which link is the slowest, and who waits for it.

A fluid model: rows flow from source to target at rates that share each GPU's way out and way in fairly (max-min), as
through a switch that never blocks. Experts then take their time by rows received, and combine pulls the rows back. The
rates and fixed costs are those of a fitted model (`prediction`), so the result is a simulation, no measurement. 72
ranks need seconds on a laptop.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import pandas as pd

from mnnvl_lab.analysis.latency_model import Point
from mnnvl_lab.arguments import require_real
from mnnvl_lab.errors import Refused, named_arguments, require_count, shown
from mnnvl_lab.hardware import Gpu, require_gpu
from mnnvl_lab.model import Model, require_format, require_model
from mnnvl_lab.notebook import html_block, text_block
from mnnvl_lab.prediction.calibration import load_calibration
from mnnvl_lab.prediction.phase_costs import row_bytes
from mnnvl_lab.routing import Load, Routing, parse, traffic

KIND = "simulation"
PHASES = ("dispatch", "experts", "combine")
BYTES_PER_US = 1e3  # of 1 GB/s
SHARE_PER_STEP = 0.02
"""Flows that may end between two recomputations of the rates: their number decides how long a simulation takes."""
CALIBRATED = "gb200"
"""The device whose model tells phases apart, and of which NVLink domains of 72 GPUs exist."""


@dataclass(frozen=True, kw_only=True, eq=False)
class SimulatedRound:
    """One round, simulated.

    Attributes:
        table: one row per rank and phase: `kind` (always `simulation`), `rank`, `phase`, `begin_us`, `end_us`, `rows`
            (that the rank handles in it), `idle_us` (that it then waits for others).
        rows_RR: `[source, target]`.
        title: what was simulated.
    """

    table: pd.DataFrame
    rows_RR: np.ndarray
    title: str

    @property
    def latency_us(self) -> float:
        """When the last rank has its tokens back."""
        return float(self.table["end_us"].max())

    @property
    def phases_us(self) -> dict[str, float]:
        """Duration of each phase, from its first beginning to its last end."""
        by_phase = self.table.groupby("phase", sort=False)
        return (by_phase["end_us"].max() - by_phase["begin_us"].min()).to_dict()

    @property
    def fullest_rank(self) -> int:
        """The rank that receives most rows."""
        return int(self.rows_RR.sum(axis=0).argmax())

    def __str__(self) -> str:
        return text_block(self.title, self._summary, [self._note])

    def _repr_html_(self) -> str:
        return html_block(self.title, self._summary, [self._note])

    @property
    def _summary(self) -> pd.DataFrame:
        grouped = self.table.groupby("phase", sort=False)
        idle = grouped["idle_us"].agg(["median", "max"])
        return pd.DataFrame(
            {
                "phase": list(self.phases_us),
                "simulated_us": np.round(list(self.phases_us.values()), 1),
                "median rank idle (us)": idle["median"].round(1).to_list(),
                "longest idle (us)": idle["max"].round(1).to_list(),
            }
        )

    @property
    def _note(self) -> str:
        received = self.rows_RR.sum(axis=0)
        return (
            f"simulated, not measured: {self.latency_us:.1f} us; rank {self.fullest_rank} receives "
            f"{received.max() / received.mean():.2f} times the mean"
        )


@named_arguments
def simulate_round(
    ep_size: int,
    *,
    model: Model | str,
    tokens: int,
    routing: Routing | str = "uniform",
    format: str = "bf16",
    gpu: Gpu | str = CALIBRATED,
    expert_us_per_row: float = 0.0,
    slow_links: Mapping[int, float] | None = None,
    seed: int = 0,
) -> SimulatedRound:
    """Simulate one one-sided round of an EP group in one NVLink domain.

    Args:
        ep_size: R, at most the domain of the GPU.
        model: a model or its name.
        tokens: T of every rank.
        routing: a routing or its label.
        format: of dispatch; combine carries bf16.
        gpu: whose domain and link count; a GB200's fitted costs scale with the link on paper.
        expert_us_per_row: that a rank's experts take per row received; 0 leaves them out.
        slow_links: links that run at a fraction of their rate, by rank, such as `{3: 0.5}`.
        seed: of the routing.

    Raises:
        Refused: a value is out of range, more ranks than the domain has, or more ranks than experts.
    """
    known, moe, drawn = require_gpu(gpu), require_model(model), parse(routing)
    ranks = require_count("ep_size", ep_size, most=known.nvlink_domain, least=2, remedy="use 2 or more")
    count = require_count("tokens", tokens, most=2**16)
    slow = _slowness(slow_links or {}, ranks)
    form = require_format(format)
    form.require_hidden(moe.hidden)
    load = Load(routing=drawn, tokens=count, seed=seed)
    rows_RR = traffic.rows_RR(load, experts=moe.experts, top_k=moe.top_k, ep_size=ranks)
    shape = {"hidden": moe.hidden, "experts": moe.experts, "top_k": moe.top_k}
    point = Point(mode="one_sided", ep_size=ranks, tokens=count, format=form.name, routing=str(drawn), **shape)
    per_row_us = require_real("expert_us_per_row", expert_us_per_row, least=0, most=1e6)
    costs = _costs(known, ranks, min(ranks, moe.top_k))
    table = _timeline(rows_RR, point, costs, slow, per_row_us)
    title = f"Simulated: EP{ranks} on {known.name}, {moe.name}, {count} tokens per rank, {form.name}, {drawn}"
    return SimulatedRound(table=table, rows_RR=rows_RR, title=title)


def finish_times(bytes_RR: np.ndarray, *, out_R: np.ndarray, in_R: np.ndarray) -> np.ndarray:
    """When each flow ends, in microseconds, if all begin together and share the links max-min fairly.

    Args:
        bytes_RR: `[source, target]`; the diagonal costs nothing.
        out_R, in_R: rates of each rank's way out and way in, in GB/s.
    """
    left = bytes_RR.astype(float).copy()
    np.fill_diagonal(left, 0)
    ends, now = np.zeros_like(left), 0.0
    while (active := left > 0).any():
        rates = fair_rates(active, out_R * BYTES_PER_US, in_R * BYTES_PER_US)
        needed = np.where(active, left / np.where(active, rates, 1.0), np.inf)
        flows = np.sort(needed[active])
        step = flows[min(len(flows) - 1, int(SHARE_PER_STEP * len(flows)))]
        ended = active & (needed <= step * (1 + 1e-12))
        ends[ended] = now + needed[ended]
        left = np.where(ended, 0.0, np.maximum(left - rates * step, 0.0))
        now += step
    return ends


def fair_rates(active_RR: np.ndarray, out_R: np.ndarray, in_R: np.ndarray) -> np.ndarray:
    """Max-min fair rates of the active flows: all grow together until a link is full, its flows stop, and so on."""
    rates, open_RR = np.zeros(active_RR.shape), active_RR.copy()
    out_left, in_left = out_R.astype(float).copy(), in_R.astype(float).copy()
    while open_RR.any():
        out_flows, in_flows = open_RR.sum(axis=1), open_RR.sum(axis=0)
        out_share = np.where(out_flows > 0, out_left / np.maximum(out_flows, 1), np.inf)
        in_share = np.where(in_flows > 0, in_left / np.maximum(in_flows, 1), np.inf)
        growth = min(out_share.min(), in_share.min())
        rates[open_RR] += growth
        out_left, in_left = out_left - growth * out_flows, in_left - growth * in_flows
        full_out, full_in = out_share <= growth * (1 + 1e-12), in_share <= growth * (1 + 1e-12)
        open_RR = open_RR & ~full_out[:, None] & ~full_in[None, :]
    return rates


def _timeline(
    rows_RR: np.ndarray, point: Point, costs: Mapping[str, float], slow_R: np.ndarray, per_row_us: float
) -> pd.DataFrame:
    """Begin and end of each phase on each rank; combine begins when the last rank's experts are done."""
    ranks, rate_R = len(rows_RR), costs["link_gigabytes_per_s"] * slow_R
    sent = finish_times(rows_RR * row_bytes(point), out_R=rate_R, in_R=rate_R)
    arrived_R = costs["dispatch_us"] + np.maximum(sent.max(axis=0), sent.max(axis=1))
    dispatched_R = np.full(ranks, arrived_R.max())  # each rank waits for every peer's flag
    received_R = rows_RR.sum(axis=0)
    computed_R = dispatched_R + per_row_us * received_R
    begin = computed_R.max()
    pulled = finish_times(rows_RR.T * point.combine_bytes_per_token, out_R=rate_R, in_R=rate_R)
    combined_R = begin + costs["combine_us"] + pulled.max(axis=0)
    spans = {
        "dispatch": (np.zeros(ranks), arrived_R, dispatched_R - arrived_R, rows_RR.sum(axis=1)),
        "experts": (dispatched_R, computed_R, begin - computed_R, received_R),
        "combine": (np.full(ranks, begin), combined_R, combined_R.max() - combined_R, rows_RR.sum(axis=1)),
    }
    frames = [
        pd.DataFrame(
            {"kind": KIND, "rank": range(ranks), "phase": phase, "begin_us": b, "end_us": e, "rows": n, "idle_us": i}
        )
        for phase, (b, e, i, n) in spans.items()
    ]
    return pd.concat(frames, ignore_index=True)


def _costs(gpu: Gpu, ranks: int, targets: int) -> dict[str, float]:
    """Fixed costs of dispatch and combine, and the link's rate, of the GB200's model; the rate scales with the link."""
    known = load_calibration(CALIBRATED)
    fixed, rates = {}, []
    for fitted in known.parts["one_sided"]:
        p = fitted.part.values(fitted.optima[0])
        doublings = max(np.log2(ranks) - 1, 0)
        fixed[f"{fitted.part.name}_us"] = p["fixed_us"] + doublings * p["fan_us"] + targets * p["row_us"]
        rates.append(p["link_gigabytes_per_s"])
    scale = gpu.nvlink_gigabytes_per_s / require_gpu(CALIBRATED).nvlink_gigabytes_per_s
    return fixed | {"link_gigabytes_per_s": float(np.mean(rates)) * scale}


def _slowness(slow_links: Mapping[int, float], ranks: int) -> np.ndarray:
    if not isinstance(slow_links, Mapping):
        raise Refused(f"slow_links is {shown(slow_links)}: pass fractions by rank, such as {{3: 0.5}}")
    slow_R = np.ones(ranks)
    for rank, fraction in slow_links.items():
        place = require_count("a rank of slow_links", rank, least=0, most=ranks - 1, remedy="name an ep_rank")
        slow_R[place] = require_real("a fraction of slow_links", fraction, least=0.001, most=1)
    return slow_R

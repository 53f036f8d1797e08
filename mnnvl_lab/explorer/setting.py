"""A setting of the explorer's controls, and everything that follows from it: plan, prediction, traffic, problems."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, fields, replace
from functools import cached_property, lru_cache

import numpy as np
import pandas as pd

from mnnvl_lab import datasets
from mnnvl_lab.analysis import latency_model as lm
from mnnvl_lab.errors import Refused
from mnnvl_lab.explorer.memory import verdict
from mnnvl_lab.hardware import GPUS, require_gpu
from mnnvl_lab.layout import Layout
from mnnvl_lab.model import require_format, require_model
from mnnvl_lab.planner import Plan, plan
from mnnvl_lab.planner.weights import weight_bytes
from mnnvl_lab.prediction import Forecast, predict
from mnnvl_lab.prediction.rows import DRAWN_TOKENS, expected_rows_RR
from mnnvl_lab.routing import parse

TOKEN_STEPS = tuple(2**n for n in range(15))
CAPACITY_STEPS = tuple(2**n for n in range(17))
TP_STEPS = (1, 2, 4, 8, 16)
MODES = ("one_sided", "two_sided")
SKEWED = {"zipf": 1.0, "log_normal": 1.0, "hot_rank": 0.3, "hot_expert": 0.5}
"""Routings that take a number, with its default."""


@dataclass(frozen=True, kw_only=True)
class Setting:
    """What the controls say.

    Attributes:
        tp, dp, pcp, pp, gpus_per_node: of the layout.
        gpu, model, format, weights: names.
        capacity: tokens per rank for which a workspace is sized.
        tokens: of each rank in a round, at most the capacity.
        routing: name of a routing; `skew` is its number, where it takes one.
        modes: which modes are asked for.
    """

    tp: int = 2
    dp: int = 4
    pcp: int = 1
    pp: int = 1
    gpus_per_node: int = 8
    gpu: str = "h100"
    model: str = "deepseek-v3"
    format: str = "bf16"
    weights: str = "fp4"
    capacity: int = 2048
    tokens: int = 128
    routing: str = "uniform"
    skew: float = 1.0
    modes: tuple[str, ...] = MODES

    @property
    def label(self) -> str:
        """The routing's label."""
        return f"{self.routing}:{self.skew:g}" if self.routing in SKEWED else self.routing

    @property
    def layout(self) -> Layout:
        return Layout(tp=self.tp, dp=self.dp, pcp=self.pcp, pp=self.pp, gpus_per_node=self.gpus_per_node)

    @cached_property
    def plan(self) -> Plan:
        return plan(
            self.layout, max_tokens=self.capacity, model=self.model, format=self.format, gpu=require_gpu(self.gpu)
        )

    @cached_property
    def weights_bytes(self) -> int | None:
        return weight_bytes(require_model(self.model), self.layout, dtype=self.weights)

    @cached_property
    def forecast(self) -> Forecast:
        """Predictions at powers of two and at the tokens that are set."""
        counts = sorted({*TOKEN_STEPS, self.tokens})
        load = {"tokens": counts, "format": self.format, "routing": self.label}
        return predict(self.layout, model=self.model, mode=self.modes, gpu=self.gpu, **load)

    @cached_property
    def rows_RR(self) -> np.ndarray:
        moe = require_model(self.model)
        shape = {"experts": moe.experts, "top_k": moe.top_k, "ep_size": self.layout.ep_size}
        return expected_rows_RR(parse(self.label), tokens=self.tokens, **shape)

    @property
    def rows_are_expected(self) -> bool:
        return self.tokens * self.layout.ep_size > DRAWN_TOKENS

    @property
    def row_bytes(self) -> int:
        moe = require_model(self.model)
        return require_format(self.format).bytes_per_token(moe.hidden) + 8 * moe.top_k

    def problems(self) -> tuple[str, ...]:
        """Why this cannot be served, each reason once, as sentences."""
        return tuple(dict.fromkeys(self._reasons()))

    def _reasons(self) -> Iterator[str]:
        if not self.modes:
            yield "no mode is chosen: choose one_sided or two_sided"
        try:
            made = self.plan
        except Refused as reason:
            yield str(reason)
            return
        if self.layout.ep_size == 1:
            yield "one rank exchanges nothing: raise DP, TP or PCP"
        if self.tokens > self.capacity:
            yield f"tokens is {self.tokens}, more than the capacity of {self.capacity}: lower it, or raise the capacity"
        experts = require_model(self.model).experts
        if self.layout.ep_size > experts:
            yield f"EP {self.layout.ep_size} has more ranks than the model's {experts} experts: use fewer ranks"
        for mode in made.modes:
            if mode.mode in self.modes:
                yield from (f"{mode.mode}: {problem}" for problem in mode.problems)
                if mode.parts and "does not fit" in (said := verdict(made, mode.mode, self.weights_bytes)):
                    yield said
        if others := [mode for mode in self.modes if mode not in MODES]:
            refused = predict(self.layout, model=self.model, tokens=self.tokens, mode=others, gpu=self.gpu).refusals
            yield from refused


def nearest(setting: Setting) -> Setting | None:
    """The possible setting with the least change, or None: one control at first, then two.

    Steps along a control count as changes; controls that a reader can turn without another machine come first.
    """
    singles = list(_changes(setting))
    for candidate in singles:
        if not candidate.problems():
            return candidate
    for first in singles:
        if first.gpu == setting.gpu and (first.dp < setting.dp or first.tp < setting.tp):
            for second in _changes(first):
                if second.gpu == setting.gpu and second.capacity < setting.capacity and not second.problems():
                    return second
    return None


def difference(setting: Setting, other: Setting) -> str:
    """What changes from one to the other, such as `dp 8, gpu gb200`."""
    names = [f.name for f in fields(Setting) if getattr(setting, f.name) != getattr(other, f.name)]
    return ", ".join(f"{name} {_shown(getattr(other, name))}" for name in names)


def _changes(setting: Setting) -> Iterator[Setting]:
    """Settings with one control changed, the nearest first."""
    if setting.tokens > setting.capacity:
        yield replace(setting, tokens=max(n for n in TOKEN_STEPS if n <= setting.capacity))
    if not setting.modes:
        yield replace(setting, modes=MODES)
    if setting.tp * setting.dp * setting.pcp == 1:
        yield replace(setting, dp=2)
    yield from (replace(setting, modes=(mode,)) for mode in setting.modes if len(setting.modes) > 1)
    yield from (replace(setting, dp=dp) for dp in range(setting.dp - 1, 0, -1))
    yield from (replace(setting, tp=tp) for tp in reversed(TP_STEPS) if tp < setting.tp)
    lower = [n for n in reversed(CAPACITY_STEPS) if n < setting.capacity]
    yield from (replace(setting, capacity=n, tokens=min(setting.tokens, n)) for n in lower)
    yield from (replace(setting, dp=dp) for dp in (2 * setting.dp, 4 * setting.dp, 8 * setting.dp) if dp <= 72)
    yield from (replace(setting, pp=pp) for pp in range(setting.pp - 1, 0, -1))
    for name, gpu in GPUS.items():
        if name != setting.gpu:
            yield replace(setting, gpu=name, gpus_per_node=4 if gpu.multi_node else 8)


def _shown(value: object) -> str:
    return " and ".join(value) if isinstance(value, tuple) else str(value)


RECORDED = {"h100": "h100x2_nvlink_ep2", "h200": "h200x2_nvlink_ep2"}
RECORDED_FORMATS = {"bf16": "bf16", "fp8_block": "fp8"}


def recorded_points(setting: Setting) -> pd.DataFrame | None:
    """Medians of rounds that were recorded with this layout's EP size, shape, format and routing; None if none were."""
    if setting.gpu not in RECORDED or setting.format not in RECORDED_FORMATS:
        return None
    medians = _medians(f"{RECORDED[setting.gpu]}_{RECORDED_FORMATS[setting.format]}")
    moe = require_model(setting.model)
    same = (medians["ep_size"] == setting.layout.ep_size) & (medians["hidden"] == moe.hidden)
    same &= (medians["experts"] == moe.experts) & (medians["top_k"] == moe.top_k)
    same &= (medians["routing"] == setting.label) & (medians["format"] == setting.format)
    found = medians[same & medians["mode"].isin(setting.modes)]
    return found if len(found) else None


@lru_cache(maxsize=8)
def _medians(name: str) -> pd.DataFrame:
    """Rounds on the graph clock of a record: `mode, ep_size, tokens, hidden, ..., latency_us`."""
    observed = lm.observations(datasets.load_recorded(name)) if name in datasets.recorded_names() else []
    rows = [vars(o.point) | {"latency_us": o.latency_us} for o in observed]
    names = ("mode", "ep_size", "tokens", "hidden", "experts", "top_k", "format", "routing", "latency_us")
    return pd.DataFrame(rows, columns=list(names))

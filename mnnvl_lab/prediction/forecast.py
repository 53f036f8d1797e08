"""A forecast: predicted rounds of a layout, marked as predictions wherever they are shown."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import pandas as pd

from mnnvl_lab.hardware import Gpu
from mnnvl_lab.layout import Layout
from mnnvl_lab.model import Model
from mnnvl_lab.notebook import html_block, text_block
from mnnvl_lab.prediction.calibration import CONFIDENCE

KIND = "prediction"
NUMBERS = ("latency_us", "dispatch_us", "combine_us", "low_us", "high_us", "bound_us")
SAID = ("dominated_by", "basis", "refusal")


@dataclass(frozen=True, kw_only=True)
class ModeForecast:
    """A round of one mode at one token count. Not a measurement.

    Attributes:
        mode, tokens: of the round.
        latency_us, dispatch_us, combine_us: of a round and of its phases (two-sided's prepare counts towards dispatch);
            None where only a bound is known, or where the mode cannot serve the layout.
        low_us, high_us: the interval that holds a round's latency with probability 95 %.
        bound_us: least time that the bytes of a round take over the fullest link, at its rate on paper.
        dominated_by: `launches and flags`, `link`, `packets` or `memory`, whichever takes most of a round.
        basis: where the numbers come from.
        refusal: why the mode cannot serve the layout, or None.
    """

    mode: str
    tokens: int
    latency_us: float | None = None
    dispatch_us: float | None = None
    combine_us: float | None = None
    low_us: float | None = None
    high_us: float | None = None
    bound_us: float | None = None
    dominated_by: str | None = None
    basis: str
    refusal: str | None = None

    def to_dict(self) -> dict[str, object]:
        """Plain values; times rounded to 0.01 microseconds."""
        numbers = {name: getattr(self, name) for name in NUMBERS}
        rounded = {name: None if us is None else round(us, 2) for name, us in numbers.items()}
        return rounded | {name: getattr(self, name) for name in SAID}


@dataclass(frozen=True, kw_only=True)
class Forecast:
    """Predicted rounds of one layout.

    Attributes:
        layout, gpu, model, hidden, experts, top_k, format, routing: what is predicted.
        rounds: every mode at every token count.
    """

    layout: Layout
    gpu: Gpu
    model: Model | None
    hidden: int
    experts: int
    top_k: int
    format: str
    routing: str
    rounds: tuple[ModeForecast, ...]

    def __getitem__(self, mode: str) -> ModeForecast:
        """The round of a mode, where one token count was asked for."""
        return self.modes[mode]

    @property
    def tokens(self) -> tuple[int, ...]:
        """Tokens per rank that were asked for."""
        return tuple(dict.fromkeys(one.tokens for one in self.rounds))

    @property
    def modes(self) -> Mapping[str, ModeForecast]:
        """Each mode's round at the first token count, by name."""
        return {one.mode: one for one in self.rounds if one.tokens == self.tokens[0]}

    @property
    def refusals(self) -> tuple[str, ...]:
        """Why modes cannot serve the layout."""
        return tuple(f"{name} cannot serve this: {one.refusal}" for name, one in self.modes.items() if one.refusal)

    def to_dict(self) -> dict[str, object]:
        """Plain values for JSON: what is predicted, then each mode by name; `points` where there are several counts."""
        sizes = ("tp", "dp", "pcp", "pp", "gpus_per_node", "world_size", "ep_size")
        shape = ("hidden", "experts", "top_k", "format", "routing")
        about = {
            "kind": KIND,
            "confidence": CONFIDENCE,
            "layout": {name: getattr(self.layout, name) for name in sizes},
            "gpu": self.gpu.name,
            "model": self.model.name if self.model else None,
            **{name: getattr(self, name) for name in shape},
        }
        points = [
            {"tokens": count} | {one.mode: one.to_dict() for one in self.rounds if one.tokens == count}
            for count in self.tokens
        ]
        return about | (points[0] if len(points) == 1 else {"points": points})

    def to_frame(self) -> pd.DataFrame:
        """One row per mode and token count: `kind` (always `prediction`), `mode`, `tokens`, then the numbers."""
        return pd.DataFrame(
            {"kind": KIND, "mode": one.mode, "tokens": one.tokens} | one.to_dict() for one in self.rounds
        )

    def __str__(self) -> str:
        return text_block(self._title, self._shown(), self._notes)

    def _repr_html_(self) -> str:
        return html_block(self._title, self._shown(), self._notes)

    def _shown(self) -> pd.DataFrame:
        table = self.to_frame()[["mode", "tokens", *NUMBERS, "dominated_by"]]
        shown = {name: table[name].map(_microseconds) for name in NUMBERS}
        names = {name: f"predicted {name}" for name in ("latency_us", "dispatch_us", "combine_us")}
        return table.assign(**shown).fillna({"dominated_by": "-"}).rename(columns=names)

    @property
    def _title(self) -> str:
        name = self.model.name if self.model else "MoE"
        return (
            f"Predicted, not measured: a round on {self.gpu.name}, {self.layout.arithmetic} = {self.layout.ep_size} EP "
            f"ranks, {name} (hidden {self.hidden}, {self.experts} experts, top-{self.top_k}), {self.format}, "
            f"{self.routing}"
        )

    @property
    def _notes(self) -> list[str]:
        bases = dict.fromkeys(f"basis of {one.mode}: {one.basis}" for one in self.rounds if not one.refusal)
        meaning = f"low_us to high_us holds a round with probability {CONFIDENCE:.0%}; bound_us is what the link allows"
        return [meaning, *bases, *self.refusals]


def _microseconds(value: float | None) -> str:
    return "-" if value is None or pd.isna(value) else f"{value:.1f}"

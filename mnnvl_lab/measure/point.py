"""A sweep as data: which points, timed by which clock, with how many samples."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from itertools import product

from mnnvl_lab.errors import Refused
from mnnvl_lab.layout import Layout
from mnnvl_lab.model import Model
from mnnvl_lab.routing import Load, Routing, Uniform
from mnnvl_lab.transport.exchange import FABRICS, MODES, Exchange

CLOCKS = ("eager", "graph", "kernel")


@dataclass(frozen=True, kw_only=True)
class Sampling:
    """When a clock has sampled enough: the median is known to `target`, or the budget is spent.

    Attributes:
        warmup: rounds before the first sample.
        min_samples, max_samples: bounds on the iterations kept.
        target: half width of the median's 95 % confidence interval, as a share of the median, that ends sampling.
        budget_s: seconds of sampling after which it ends anyway; the record says which of the two ended it.
        graph_rounds: rounds in one CUDA graph; a sample of clock `graph` is one replay divided by it.
    """

    warmup: int = 3
    min_samples: int = 10
    max_samples: int = 200
    target: float = 0.01
    budget_s: float = 0.5
    graph_rounds: int = 10

    def __post_init__(self):
        if not 1 <= self.min_samples <= self.max_samples:
            raise Refused(
                f"min_samples is {self.min_samples} and max_samples {self.max_samples}: "
                "they must satisfy 1 <= min <= max; swap or raise them"
            )


@dataclass(frozen=True, kw_only=True)
class Delay:
    """A straggler made on purpose: this ep_rank enters dispatch so many microseconds late."""

    ep_rank: int = 0
    delay_us: float = 0.0


@dataclass(frozen=True, kw_only=True)
class Point:
    """One measured configuration: an exchange, a load, a clock."""

    exchange: Exchange
    load: Load
    clock: str = "eager"
    sampling: Sampling = field(default_factory=Sampling)
    delay: Delay = field(default_factory=Delay)
    cold_l2: bool = False

    def __post_init__(self):
        if self.clock not in CLOCKS:
            raise Refused(f"clock is {self.clock!r}: it must be one of {', '.join(CLOCKS)}")
        if self.clock != "eager" and self.delay.delay_us:
            raise Refused(
                f"a delay of {self.delay.delay_us} us with clock {self.clock}: rounds inside a graph cannot be "
                "delayed one by one; use clock eager"
            )
        if self.clock != "eager" and self.cold_l2:
            raise Refused(
                f"cold_l2 is True with clock {self.clock}: a round that is not timed runs just before and warms the "
                "cache again; use clock eager, or leave the cache warm"
            )

    @property
    def columns(self) -> dict[str, object]:
        """What a record says of this point, but for the samples."""
        x, layout = self.exchange, self.exchange.layout
        return {
            "mode": x.mode,
            "clock": self.clock,
            "tp": layout.tp,
            "dp": layout.dp,
            "pcp": layout.pcp,
            "pp": layout.pp,
            "ep_size": x.ep_size,
            "tokens": self.load.max_tokens,
            "hidden": x.hidden,
            "experts": x.experts,
            "top_k": x.top_k,
            "format": x.format,
            "routing": str(self.load.routing),
            "seed": self.load.seed,
            "payload_in_workspace": x.payload_in_workspace,
            "low_precision_combine": x.low_precision_combine,
            "delayed_rank": self.delay.ep_rank,
            "delay_us": self.delay.delay_us,
            "l2": "cold" if self.cold_l2 else "warm",
        }


@dataclass(frozen=True, kw_only=True)
class Sweep:
    """Points as a product of axes; every point is opened, checked, timed, checked and closed by itself.

    Attributes:
        layouts, modes, tokens, routings, formats, clocks: the axes. `tokens` holds a count for all ranks, or a tuple
            with one a rank.
        hidden, experts, top_k: the MoE shape; `of_model` takes it from a named model.
        seed: of routing and payloads.
        options: further fields of `Exchange` by mode, such as `{"one_sided": {"payload_in_workspace": True}}`.
    """

    layouts: tuple[Layout, ...]
    tokens: tuple[int | tuple[int, ...], ...]
    hidden: int
    experts: int
    top_k: int
    modes: tuple[str, ...] = MODES[:2]
    routings: tuple[Routing, ...] = (Uniform(),)
    formats: tuple[str, ...] = ("bf16",)
    clocks: tuple[str, ...] = ("eager",)
    fabric: str = "host"
    seed: int = 0
    sampling: Sampling = field(default_factory=Sampling)
    delay: Delay = field(default_factory=Delay)
    cold_l2: bool = False
    options: Mapping[str, Mapping[str, object]] = field(default_factory=dict)

    def __post_init__(self):
        if self.fabric not in FABRICS:
            raise Refused(f"fabric is {self.fabric!r}: it must be one of {', '.join(FABRICS)}")
        for name in ("layouts", "tokens", "modes", "routings", "formats", "clocks"):
            if not getattr(self, name):
                raise Refused(f"{name} is empty: a sweep needs at least one value on every axis")

    @classmethod
    def of_model(cls, model: Model, **axes) -> Sweep:
        """A sweep with the MoE shape of `model`."""
        return cls(hidden=model.hidden, experts=model.experts, top_k=model.top_k, **axes)

    def points(self) -> Iterator[Point]:
        """Layout by layout, so that ranks join a new group as rarely as possible."""
        axes = (self.layouts, self.modes, self.formats, self.routings, self.tokens, self.clocks)
        for layout, mode, form, routing, tokens, clock in product(*axes):
            yield self._point(layout, mode, form, Load(routing=routing, tokens=tokens, seed=self.seed), clock)

    def _point(self, layout: Layout, mode: str, form: str, load: Load, clock: str) -> Point:
        exchange = Exchange(
            mode=mode,
            layout=layout,
            max_tokens=max(1, load.max_tokens),
            hidden=self.hidden,
            experts=self.experts,
            top_k=self.top_k,
            format=form,
            **self.options.get(mode, {}),
        )
        return Point(
            exchange=exchange,
            load=load,
            clock=clock,
            sampling=self.sampling,
            delay=self.delay,
            cold_l2=self.cold_l2,
        )

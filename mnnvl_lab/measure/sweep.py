"""A sweep as data: the product of its axes, checked before any process starts."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from itertools import product
from math import prod
from types import MappingProxyType

from mnnvl_lab.arguments import MOST_SEED, as_axis, require_flag, require_type
from mnnvl_lab.errors import Refused, choose, is_whole, named_fields, require_count, shown
from mnnvl_lab.exchange import COMBINE_BYTES, FABRICS, MODES, Exchange
from mnnvl_lab.layout import Layout
from mnnvl_lab.measure.point import CLOCKS, Delay, Point, Sampling
from mnnvl_lab.model import Model, require_format, require_model
from mnnvl_lab.routing import Load, Padding, Routing, Uniform, parse
from mnnvl_lab.transport.validation import check_exchange, ids_problem, invalid_ids_problem

SHAPE = MappingProxyType({"hidden": 2**20, "experts": 2**14, "top_k": 2**14})
"""Fields of the MoE shape, each with a bound far above every model: beyond, it is a typing error."""
MOST_TOKENS = 2**22
MOST_RANKS = 1024  # a process each
MOST_POINTS = 10**5
GROUPS = ("ep", "dp", "tp", "pcp", "pp", "world")


@named_fields
@dataclass(frozen=True, kw_only=True)
class Sweep:
    """Points as a product of axes; every point is opened, checked, timed, checked and closed by itself.

    An axis is a list of values, or one value alone. Names are in any case, with hyphens or underscores; a value that
    comes twice is measured twice, told apart by the column `repeat`.

    Attributes:
        layouts, modes, tokens, routings, formats, clocks: the axes. `tokens` holds a count for all ranks, or a tuple
            with one per rank; `routings` a routing or its label, such as `zipf:1.2`. `clocks` is `eager` on `host`, and
            on GPUs `graph`, unless it is given; with a delay or a cold cache `eager` everywhere.
        max_tokens: axis of capacities, tokens per rank for which the workspace is sized; None for `runtime_max_tokens`.
        runtime_max_tokens: axis of the tokens per rank on which all ranks agree; None for the fullest rank's rows.
        padding: axis of `Padding`, rows without a token behind each rank's; None for none.
        replicas: axis of the ranks in a row that send the same tokens (`Load.replicas`).
        hidden, experts, top_k: the MoE shape, or `model`, a `Model` or its name.
        seed: of routing and payloads.
        options: further fields of `Exchange` by mode, such as `{"one_sided": {"payload_in_workspace": True}}`.

    Raises:
        Refused: a value is out of range, or a point breaks a limit of the kernels.
    """

    layouts: Layout | Iterable[Layout] = ()
    tokens: int | Iterable[int | tuple[int, ...]] = ()
    hidden: int | None = None
    experts: int | None = None
    top_k: int | None = None
    model: Model | str | None = None
    modes: str | Iterable[str] = MODES[:2]
    routings: Routing | str | Iterable[Routing | str] = (Uniform(),)
    formats: str | Iterable[str] = ("bf16",)
    clocks: str | Iterable[str] | None = None
    max_tokens: int | Iterable[int | None] | None = None
    runtime_max_tokens: int | Iterable[int | None] | None = None
    padding: Padding | Iterable[Padding | None] | None = None
    replicas: int | Iterable[int] = 1
    fabric: str = "host"
    seed: int = 0
    sampling: Sampling = field(default_factory=Sampling)
    delay: Delay = field(default_factory=Delay)
    cold_l2: bool = False
    options: Mapping[str, Mapping[str, object]] = field(default_factory=dict)

    def __post_init__(self):
        for name, coerce in FIELDS.items():
            object.__setattr__(self, name, coerce(name, getattr(self, name)))
        if self.clocks is None:
            object.__setattr__(self, "clocks", (self._usual_clock,))
        self._take_shape()
        self._require_size()
        for point in self.points():
            _require_possible(point, self.fabric)

    @classmethod
    def of_model(cls, model: Model | str, **axes) -> Sweep:
        """A sweep with the MoE shape of `model`."""
        return cls(model=model, **axes)

    def points(self) -> Iterator[Point]:
        """Layout by layout, so that ranks join a new group as rarely as possible."""
        seen = Counter()
        for layout, mode, form, routing, *counts, capacity, clock in product(*self._axes):
            names = ("tokens", "runtime_max_tokens", "padding", "replicas")
            load = Load(routing=routing, seed=self.seed, **dict(zip(names, counts, strict=True)))
            point = self._point(self._exchange(layout, mode, form, load, capacity), load, clock)
            key = tuple(point.columns.values())
            yield replace(point, repeat=seen[key]) if seen[key] else point
            seen[key] += 1

    @property
    def _axes(self) -> tuple[tuple, ...]:
        counts = self.tokens, self.runtime_max_tokens, self.padding, self.replicas, self.max_tokens
        return self.layouts, self.modes, self.formats, self.routings, *counts, self.clocks

    @property
    def _usual_clock(self) -> str:
        """On GPUs `eager` holds Python's launches, so figures are drawn of `graph` unless it cannot time the sweep."""
        return "eager" if self.fabric == "host" or self.delay.delay_us or self.cold_l2 else "graph"

    def _exchange(self, layout: Layout, mode: str, form: str, load: Load, capacity: int | None) -> Exchange:
        sizes = {"max_tokens": load.runtime_max if capacity is None else capacity}
        sizes["invalid_ids"] = "refuse" if load.padding is None else load.padding.handling
        shape = {name: getattr(self, name) for name in SHAPE}
        return Exchange(mode=mode, layout=layout, format=form, **shape, **sizes | self.options.get(mode, {}))

    def _point(self, exchange: Exchange, load: Load, clock: str) -> Point:
        own = {name: getattr(self, name) for name in ("sampling", "delay", "cold_l2")}
        return Point(exchange=exchange, load=load, clock=clock, **own)

    def _take_shape(self) -> None:
        """Fill the shape from the model; a number beside it may only say the same."""
        for name in SHAPE:
            given, named = getattr(self, name), getattr(self.model, name, None)
            if given is None and named is None:
                raise Refused(f"{name} is not given: a sweep takes hidden, experts and top_k, or a model; add it")
            if None not in (given, named) and given != named:
                raise Refused(f"{name} is {given} but {self.model.name} has {named}: pass the model or the numbers")
            object.__setattr__(self, name, named if given is None else given)

    def _require_size(self) -> None:
        if (count := prod(map(len, self._axes))) > MOST_POINTS:
            raise Refused(f"the axes make {shown(count)} points: a sweep has at most {MOST_POINTS}; shorten an axis")
        twice = [mode for mode, options in self.options.items() if "max_tokens" in options]
        if twice and self.max_tokens != (None,):
            raise Refused(f"max_tokens is given for the sweep and in options of {twice[0]}: pass one of the two")


def _require_possible(point: Point, fabric: str) -> None:
    """What the ranks would refuse only after they have started."""
    x, load = point.exchange, point.load
    check_exchange(x, runtime_max_tokens=load.runtime_max)
    if point.clock != "eager" and fabric == "host":
        raise Refused(f"clock {point.clock} on device cpu: it needs a CUDA device; use clock eager")
    shape = {"experts": x.experts, "top_k": x.top_k, "ep_size": x.ep_size}
    load.routing.experts(seed=load.seed, rank=0, tokens=min(1, load.max_tokens), **shape)
    if load.padding is not None:
        ids = load.padding.ids_PK(1, experts=x.experts, top_k=x.top_k)
        if problem := invalid_ids_problem(x, fabric) or ids_problem(x, int(ids.min()), int(ids.max())):
            raise Refused(problem)


def _layouts(name: str, value: object) -> tuple[Layout, ...]:
    layouts = as_axis(name, value)
    for layout in layouts:
        if require_type(name, layout, Layout).world_size > MOST_RANKS:
            raise Refused(f"a layout of {layout.world_size} ranks: a sweep starts a process each, at most {MOST_RANKS}")
    return layouts


def _axis(coerce: Callable[[str, object], object]) -> Callable[[str, object], tuple]:
    return lambda name, value: tuple(coerce(name, one) for one in as_axis(name, value))


def _optional(coerce: Callable[[str, object], object]) -> Callable[[str, object], object]:
    return lambda name, value: None if value is None else coerce(name, value)


def _count(most: int, least: int = 1) -> Callable[[str, object], int]:
    return lambda name, value: require_count(name, value, least=least, most=most)


def _tokens(name: str, value: object) -> int | tuple[int, ...]:
    count = _count(MOST_TOKENS, least=0)
    return count(name, value) if is_whole(value) else tuple(count(name, one) for one in as_axis(name, value))


def _known(names: Iterable[str], what: str) -> Callable[[str, object], str]:
    return lambda name, value: choose(value, names, what)


def _options(name: str, value: object) -> dict[str, dict[str, object]]:
    if not isinstance(value, Mapping) or not all(isinstance(options, Mapping) for options in value.values()):
        raise Refused(f'{name} is {shown(value)}: pass fields by mode, as {{"one_sided": {{"max_tokens": 1024}}}}')
    return {choose(mode, MODES, "mode"): _fields(options) for mode, options in value.items()}


def _fields(options: Mapping[object, object]) -> dict[str, object]:
    known = {choose(name, OPTIONS, "option of a mode"): value for name, value in options.items()}
    return {name: OPTIONS[name](name, value) for name, value in known.items()}


OPTIONS: Mapping[str, Callable[[str, object], object]] = MappingProxyType(
    {
        "max_tokens": _count(MOST_TOKENS),
        "combine_dtype": _known(COMBINE_BYTES, "combine_dtype"),
        "extra_payload_bytes": lambda name, value: tuple(_axis(_count(SHAPE["hidden"]))(name, value) if value else ()),
        "eplb_stats_experts": _count(SHAPE["experts"], least=0),
        "sm_limit": _optional(_count(MOST_RANKS)),
        "workspace_group": _known(GROUPS, "group"),
    }
    | dict.fromkeys(("low_precision_combine", "payload_in_workspace", "enable_rank_mask", "without_pdl"), require_flag)
)
"""Fields of `Exchange` that are no axis of a sweep."""

FIELDS: Mapping[str, Callable[[str, object], object]] = MappingProxyType(
    {
        "layouts": _layouts,
        "tokens": _axis(_tokens),
        "model": _optional(lambda name, value: require_model(value)),
        "modes": _axis(_known(MODES, "mode")),
        "routings": _axis(lambda name, value: parse(value)),
        "formats": _axis(lambda name, value: require_format(value).name),
        "clocks": lambda name, value: None if value is None else _axis(_known(CLOCKS, "clock"))(name, value),
        "max_tokens": _axis(_optional(_count(MOST_TOKENS))),
        "runtime_max_tokens": _axis(_optional(_count(MOST_TOKENS))),
        "padding": _axis(_optional(lambda name, value: require_type(name, value, Padding))),
        "replicas": _axis(_count(MOST_RANKS)),
        "fabric": _known(FABRICS, "fabric"),
        "seed": _count(MOST_SEED, least=0),
        "sampling": lambda name, value: require_type(name, value, Sampling),
        "delay": lambda name, value: require_type(name, value, Delay),
        "cold_l2": require_flag,
        "options": _options,
    }
    | {name: _optional(_count(most)) for name, most in SHAPE.items()}
)
"""How each field of a sweep is read."""

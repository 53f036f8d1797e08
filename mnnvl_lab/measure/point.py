"""One measured point as data: what is moved, timed by which clock, with how many samples."""

from __future__ import annotations

from dataclasses import dataclass, field

from mnnvl_lab.arguments import require_flag, require_real, require_type
from mnnvl_lab.errors import Refused, choose, named_fields, require_count
from mnnvl_lab.exchange import Exchange
from mnnvl_lab.routing import Load

CLOCKS = ("eager", "graph", "kernel")
MOST_SAMPLES = 10**6
MOST_SECONDS = 10.0**9


@named_fields
@dataclass(frozen=True, kw_only=True)
class Sampling:
    """When a clock has sampled enough: the median is known to `target`, or the budget is spent.

    Attributes:
        warmup: rounds before the first sample.
        min_samples, max_samples: bounds on the iterations kept.
        target: half width of the median's 95 % confidence interval, as a share of the median, that ends sampling.
        budget_s: seconds of sampling after which it ends anyway; the record says which of the two ended it.
        graph_rounds: rounds in one CUDA graph; a sample of clock `graph` is one replay divided by it.

    Raises:
        Refused: a number is out of range.
    """

    warmup: int = 3
    min_samples: int = 10
    max_samples: int = 200
    target: float = 0.01
    budget_s: float = 0.5
    graph_rounds: int = 10

    def __post_init__(self):
        for name, least in {"warmup": 0, "min_samples": 1, "max_samples": 1, "graph_rounds": 1}.items():
            count = require_count(name, getattr(self, name), least=least, most=MOST_SAMPLES)
            object.__setattr__(self, name, count)
        for name in ("target", "budget_s"):
            require_real(name, getattr(self, name), least=0, most=MOST_SECONDS)
        if not 1 <= self.min_samples <= self.max_samples:
            raise Refused(
                f"min_samples is {self.min_samples} and max_samples {self.max_samples}: "
                "they must satisfy 1 <= min <= max; swap or raise them"
            )


@named_fields
@dataclass(frozen=True, kw_only=True)
class Delay:
    """A straggler made on purpose: this ep_rank enters dispatch so many microseconds late."""

    ep_rank: int = 0
    delay_us: float = 0.0

    def __post_init__(self):
        remedy = "name the ep_rank that is late"
        object.__setattr__(self, "ep_rank", require_count("delayed ep_rank", self.ep_rank, least=0, remedy=remedy))
        require_real("delay_us", self.delay_us, least=0, most=MOST_SECONDS)


@named_fields
@dataclass(frozen=True, kw_only=True)
class Point:
    """One measured configuration: an exchange, a load, a clock.

    Three numbers of tokens per rank are apart: `load.tokens`, what each rank sends; `load.runtime_max`, on which all
    ranks agree for the round; `exchange.max_tokens`, the capacity of the workspace.

    Attributes:
        repeat: number of this measurement among equal ones of the same sweep.

    Raises:
        Refused: parts that do not fit each other.
    """

    exchange: Exchange
    load: Load
    clock: str = "eager"
    sampling: Sampling = field(default_factory=Sampling)
    delay: Delay = field(default_factory=Delay)
    cold_l2: bool = False
    repeat: int = 0

    def __post_init__(self):
        for name, kind in {"exchange": Exchange, "load": Load, "sampling": Sampling, "delay": Delay}.items():
            require_type(name, getattr(self, name), kind)
        object.__setattr__(self, "clock", choose(self.clock, CLOCKS, "clock"))
        object.__setattr__(self, "cold_l2", require_flag("cold_l2", self.cold_l2))
        require_count("repeat", self.repeat, least=0)
        self._require_counts()
        self._require_eager()

    def _require_counts(self) -> None:
        ep_size, capacity = self.exchange.ep_size, self.exchange.max_tokens
        self.load.rows_R(ep_size)
        if self.load.runtime_max > capacity:
            rows = "tokens" if self.load.padding is None else "rows with padding"
            name = rows if self.load.runtime_max_tokens is None else "runtime_max_tokens"
            raise Refused(
                f"{name} is {self.load.runtime_max} but the capacity max_tokens is {capacity}: a round must fit the "
                "workspace; raise max_tokens, or leave it out"
            )
        self._require_padding()
        if self.delay.delay_us and self.delay.ep_rank >= ep_size:
            raise Refused(
                f"delayed ep_rank is {self.delay.ep_rank}: it must lie in [0, ep_size = {ep_size}); "
                "name one that exists"
            )

    def _require_padding(self) -> None:
        padding, x = self.load.padding, self.exchange
        if padding is None or padding.handling == x.invalid_ids:
            return
        raise Refused(
            f"padding of id {padding.expert_id} is to be handled by {padding.handling!r} but invalid_ids of the "
            f"exchange is {x.invalid_ids!r}: both must agree; open it with invalid_ids={padding.handling!r}"
        )

    def _require_eager(self) -> None:
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
        """What a record says of this point, but for the samples: all that makes it another point than its neighbour."""
        x, layout = self.exchange, self.exchange.layout
        return {
            "mode": x.mode,
            "clock": self.clock,
            "tp": layout.tp,
            "dp": layout.dp,
            "pcp": layout.pcp,
            "pp": layout.pp,
            "ep_size": x.ep_size,
            **self.load.columns,
            "invalid_ids": x.invalid_ids,
            "max_tokens": x.max_tokens,
            "hidden": x.hidden,
            "experts": x.experts,
            "top_k": x.top_k,
            "format": x.format,
            "routing": str(self.load.routing),
            "seed": self.load.seed,
            "payload_in_workspace": x.payload_in_workspace,
            "low_precision_combine": x.low_precision_combine,
            "combine_dtype": x.combine_dtype,
            "extra_payload_bytes": ",".join(map(str, x.extra_payload_bytes)),
            "enable_rank_mask": x.enable_rank_mask,
            "without_pdl": x.without_pdl,
            "eplb_stats_experts": x.eplb_stats_experts,
            "sm_limit": x.sm_limit or 0,
            "workspace_group": x.workspace_group,
            "mended_prepare": x.mended_prepare,
            "delayed_rank": self.delay.ep_rank,
            "delay_us": self.delay.delay_us,
            "l2": "cold" if self.cold_l2 else "warm",
            "repeat": self.repeat,
        }


@dataclass(frozen=True, kw_only=True)
class Sample:
    """One phase of one iteration on one rank. `start_us` is the host's monotonic clock, shared by its processes."""

    phase: str
    iteration: int
    start_us: float
    latency_us: float

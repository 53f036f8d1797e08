"""What a routing is: seeded choices of experts, equal on whichever rank computes them."""

from __future__ import annotations

import hashlib
import math
from abc import ABC, abstractmethod
from dataclasses import astuple, dataclass, field, fields
from typing import ClassVar

import numpy as np

from mnnvl_lab.arguments import is_real
from mnnvl_lab.errors import Refused, choose, is_whole, shown
from mnnvl_lab.layout import expert_range
from mnnvl_lab.routing.random_bits import Purpose, bits, uniform

BLOCK_TOKENS = 512  # tokens drawn at a time: their E keys each stay in a core's cache


@dataclass(frozen=True, kw_only=True)
class Router:
    """The numbers that a routing is asked with.

    Raises:
        Refused: a number is out of range.
    """

    seed: int
    rank: int
    experts: int
    top_k: int
    ep_size: int

    def __post_init__(self):
        if not 1 <= self.top_k <= self.experts:
            raise Refused(f"top_k is {self.top_k}: it must lie in [1, experts = {self.experts}]; choose fewer experts")
        if not 1 <= self.ep_size <= self.experts:
            raise Refused(f"ep_size is {self.ep_size}: it must lie in [1, experts = {self.experts}]; use fewer ranks")
        if not 0 <= self.rank < self.ep_size:
            raise Refused(f"rank is {self.rank}: it must lie in [0, ep_size = {self.ep_size}); give an ep_rank")

    def draw(self, tokens: slice, width: int) -> np.ndarray:
        """uint64 `[T, width]` of one block of tokens: `width` words a token, the same however many tokens follow."""
        count = (tokens.stop - tokens.start) * width
        words = bits(count, seed=self.seed, purpose=Purpose.CHOICES, rank=self.rank, block=tokens.start // BLOCK_TOKENS)
        return words.reshape(-1, width)


@dataclass(frozen=True, kw_only=True)
class Routing(ABC):
    """How tokens choose their experts. `str(routing)` is its label in records, `parse` the inverse."""

    label: ClassVar[str]

    def experts(self, *, seed: int, rank: int, tokens: int, experts: int, top_k: int, ep_size: int) -> np.ndarray:
        """int32 `[T, K]`: the experts of each token of `rank` (an ep_rank), distinct within a token.

        The first n tokens do not depend on how many follow.

        Raises:
            Refused: a number is out of range.
        """
        if tokens < 0:
            raise Refused(f"tokens is {tokens}: a rank has none or more; give 0 for an idle rank")
        router = Router(seed=seed, rank=rank, experts=experts, top_k=top_k, ep_size=ep_size)
        starts = range(0, tokens, BLOCK_TOKENS)
        blocks = [self._choose(router, slice(start, min(start + BLOCK_TOKENS, tokens))) for start in starts]
        return np.concatenate([np.empty((0, top_k)), *blocks]).astype(np.int32)

    @abstractmethod
    def _choose(self, router: Router, tokens: slice) -> np.ndarray:
        """`[T, K]` for one block of tokens."""

    def __str__(self):
        return ":".join([self.label, *(repr(value).removesuffix(".0") for value in astuple(self))])


def first_k(keys_TE: np.ndarray, k: int) -> np.ndarray:
    """Indices `[T, k]` of each row's k smallest uint64 keys, smallest first.

    The index takes the place of a key's lowest bits, so that a partition of values finds it (several times faster than
    of indices) and equal keys are ordered the same on every machine.
    """
    width = keys_TE.shape[1]
    mask = np.uint64((1 << (width - 1).bit_length()) - 1)
    packed = (keys_TE & ~mask) | np.arange(width, dtype=np.uint64)
    chosen = np.partition(packed, k - 1, axis=1)[:, :k] if k < width else packed
    return (np.sort(chosen, axis=1) & mask).astype(np.int64)


@dataclass(frozen=True, kw_only=True)
class Balanced(Routing):
    """Every rank receives the same number of rows, and every expert the same load up to rounding.

    With equal token counts rows are exactly equal: each token goes to min(K, R) ranks, and these take turns. Experts'
    loads differ by at most 1. Where E does not divide by R they are equal after every E tokens, and differ by at most 2
    in between, rarely by 3 (in 10 of 22,594 cases tried, such as 11 tokens with E = 12, K = 9, R = 5). Equal rows come
    first, though: with such an E and K < R, or a K so small that one copy per token is already more than a small rank's
    fair share, loads are equal only within a rank.
    """

    label: ClassVar[str] = "balanced"

    def _choose(self, router: Router, tokens: slice) -> np.ndarray:
        token_T = np.arange(tokens.start, tokens.stop)
        # All ranks' tokens share one numbering, in which a rank's place shifts from step to step.
        number_T = token_T * router.ep_size + (token_T + router.rank) % router.ep_size
        cycle_DR = _copies_in_cycle(router)
        cycles_T, phase_T = np.divmod(number_T, len(cycle_DR))
        copies_TR = cycle_DR[phase_T]
        earlier_TR = (np.cumsum(cycle_DR, axis=0) - cycle_DR)[phase_T] + cycles_T[:, None] * cycle_DR.sum(axis=0)
        experts_TK = _experts_in_turn(router, copies_TR, earlier_TR)
        slot_TK = (number_T[:, None] + np.arange(router.top_k)) % router.top_k  # no rank is always the first choice
        return np.take_along_axis(experts_TK, slot_TK, axis=1)


def _copies_in_cycle(router: Router) -> np.ndarray:
    """int64 `[D, R]`: how many experts of each rank a token chooses, over a cycle of D tokens.

    Systematic sampling: each rank's mean is met exactly over the cycle, each row sums to K, and a count is its mean
    rounded down or up. Phases advance by nearly the golden ratio, so parts of a cycle are even too.
    """
    length, total_R = _shares(router)
    floor_R, extra_R = np.divmod(total_R, length)
    upper_R = np.cumsum(extra_R)
    phase_D = np.arange(length)[:, None] * _golden_step(length) % length
    return floor_R + (phase_D + upper_R) // length - (phase_D + upper_R - extra_R) // length


def _shares(router: Router) -> tuple[int, np.ndarray]:
    """A number of tokens, and the copies that each rank should get from them."""
    count_R = np.array([len(owned) for owned in _ranges(router)])
    base, larger = divmod(router.experts, router.ep_size)
    if larger == 0 or router.top_k < router.ep_size:
        return router.ep_size, np.full(router.ep_size, router.top_k)
    if base * router.top_k >= router.experts:  # a fair share is at least one copy per token on every rank
        return router.experts, router.top_k * count_R
    return larger, np.where(count_R > base, router.top_k - (router.ep_size - larger), larger)


def _experts_in_turn(router: Router, copies_TR: np.ndarray, earlier_TR: np.ndarray) -> np.ndarray:
    """`[T, K]`: the next experts of each rank in turn, after `earlier_TR` copies that it has had."""
    owner_TK = np.repeat(np.tile(np.arange(router.ep_size), len(copies_TR)), copies_TR.ravel())
    owner_TK = owner_TK.reshape(-1, router.top_k)
    before_TR = np.cumsum(copies_TR, axis=1) - copies_TR
    turn_TK = np.arange(router.top_k) + np.take_along_axis(earlier_TR - before_TR, owner_TK, axis=1)
    ranges = _ranges(router)
    first_R, count_R = np.array([owned.start for owned in ranges]), np.array([len(owned) for owned in ranges])
    return first_R[owner_TK] + turn_TK % count_R[owner_TK]


def _golden_step(length: int) -> int:
    """The number from 0.618 `length` on that has no divisor in common with it."""
    return next(step for step in range(math.ceil(0.618 * length), 2 * length + 2) if math.gcd(step, length) == 1)


def _ranges(router: Router) -> list[range]:
    return [expert_range(experts=router.experts, ep_size=router.ep_size, ep_rank=r) for r in range(router.ep_size)]


@dataclass(frozen=True, kw_only=True)
class Uniform(Routing):
    """Every set of K experts is equally likely."""

    label: ClassVar[str] = "uniform"

    def _choose(self, router: Router, tokens: slice) -> np.ndarray:
        return first_k(router.draw(tokens, router.experts), router.top_k)


@dataclass(frozen=True, kw_only=True)
class Weighted(Routing):
    """K experts one after the other without replacement, each with a probability proportional to its popularity.

    An exponential race: expert e arrives at time Exp(1) / popularity, and the first K win. With times on a log scale
    it is Gumbel top-k (Kool et al. 2019, arXiv:1903.06059), the same law.
    """

    def _choose(self, router: Router, tokens: slice) -> np.ndarray:
        popularity_E = self.popularity(seed=router.seed, experts=router.experts)
        arrivals = -np.log(uniform(router.draw(tokens, router.experts))) / popularity_E
        return first_k(arrivals.view(np.uint64), router.top_k)  # positive floats sort as their bits do

    @abstractmethod
    def popularity(self, *, seed: int, experts: int) -> np.ndarray:
        """float64 `[E]`, positive, sums to 1, the same for all ranks."""


@dataclass(frozen=True, kw_only=True)
class Zipf(Weighted):
    """The n-th most popular expert has popularity n^-exponent; which expert is n-th is drawn once a seed."""

    exponent: float = 1.0
    label: ClassVar[str] = "zipf"

    def __post_init__(self):
        _require_at_least_zero("zipf exponent", self.exponent)

    def popularity(self, *, seed: int, experts: int) -> np.ndarray:
        place_E = np.argsort(bits(experts, seed=seed, purpose=Purpose.POPULARITY), kind="stable")
        return _normalised(-self.exponent * np.log1p(place_E))


@dataclass(frozen=True, kw_only=True)
class LogNormal(Weighted):
    """Popularities drawn once a seed from a log-normal law, which fits DeepSeek-V3's experts best (DeepEP #393)."""

    sigma: float = 1.0
    label: ClassVar[str] = "log_normal"

    def __post_init__(self):
        _require_at_least_zero("log_normal sigma", self.sigma)

    def popularity(self, *, seed: int, experts: int) -> np.ndarray:
        radius_E, angle_E = uniform(bits(2 * experts, seed=seed, purpose=Purpose.POPULARITY)).reshape(-1, 2).T
        normal_E = np.sqrt(-2 * np.log(radius_E)) * np.cos(2 * np.pi * angle_E)  # Box and Muller
        return _normalised(self.sigma * normal_E)


def _normalised(log_popularity_E: np.ndarray) -> np.ndarray:
    popularity_E = np.exp(log_popularity_E - log_popularity_E.max())
    return popularity_E / popularity_E.sum()


def _require_at_least_zero(name: str, value: float) -> None:
    # Beyond 10, popularities of a few hundred experts leave float64's exact range.
    if not is_real(value) or not 0 <= value <= 10:
        raise Refused(f"{name} is {shown(value)}: it must lie in [0, 10], 0 being uniform; choose a milder skew")


@dataclass(frozen=True, kw_only=True)
class HotExpert(Routing):
    """A `share` of the tokens has `expert` as first choice; all other choices are uniform over the other experts."""

    share: float
    expert: int = 0
    label: ClassVar[str] = "hot_expert"

    def __post_init__(self):
        _require_share(self.label, self.share)

    def _choose(self, router: Router, tokens: slice) -> np.ndarray:
        _require_below("hot expert", self.expert, "experts", router.experts)
        words = router.draw(tokens, router.experts + 1)
        hot_TK = np.zeros((len(words), router.top_k), dtype=bool)
        hot_TK[:, 0] = uniform(words[:, 0]) < self.share
        return _from_two_pools(words[:, 1:], hot_TK, range(self.expert, self.expert + 1))


@dataclass(frozen=True, kw_only=True)
class HotRank(Routing):
    """Each choice falls, with probability `share`, on the experts of `rank` (an ep_rank), else on the others.

    Within either pool choices are uniform. A pool that runs out of experts leaves the rest to the other one.
    """

    share: float
    rank: int = 0
    label: ClassVar[str] = "hot_rank"

    def __post_init__(self):
        _require_share(self.label, self.share)

    def _choose(self, router: Router, tokens: slice) -> np.ndarray:
        _require_below("hot rank", self.rank, "ep_size", router.ep_size)
        words = router.draw(tokens, router.experts + router.top_k)
        hot_TK = uniform(words[:, : router.top_k]) < self.share
        pool = expert_range(experts=router.experts, ep_size=router.ep_size, ep_rank=self.rank)
        return _from_two_pools(words[:, router.top_k :], hot_TK, pool)


def _from_two_pools(keys_TE: np.ndarray, hot_TK: np.ndarray, pool: range) -> np.ndarray:
    """`[T, K]` distinct experts: those of `pool` where `hot_TK`, the others elsewhere, as far as either pool lasts."""
    experts, top_k = keys_TE.shape[1], hot_TK.shape[1]
    others = np.delete(np.arange(experts), pool)
    hot_TK = hot_TK & (np.cumsum(hot_TK, axis=1) <= len(pool))
    hot_TK = hot_TK | (np.cumsum(~hot_TK, axis=1) > len(others))
    chosen_TK = np.empty(hot_TK.shape, dtype=np.int64)
    for members, mine_TK in ((np.asarray(pool), hot_TK), (others, ~hot_TK)):
        if len(members):
            order_TK = members[first_k(keys_TE[:, members], min(top_k, len(members)))]
            nth_TK = np.cumsum(mine_TK, axis=1) - 1
            chosen_TK[mine_TK] = np.take_along_axis(order_TK, nth_TK.clip(0, order_TK.shape[1] - 1), axis=1)[mine_TK]
    return chosen_TK


def _require_share(name: str, share: float) -> None:
    if not is_real(share) or not 0 <= share <= 1:
        raise Refused(f"{name} share is {shown(share)}: it must lie in [0, 1], such as 0.5 for one half")


def _require_below(name: str, value: int, of: str, limit: int) -> None:
    if not is_whole(value) or not 0 <= value < limit:
        raise Refused(f"{name} is {shown(value)}: it must lie in [0, {of} = {limit}); name one that exists")


@dataclass(frozen=True, eq=False)
class Replay(Routing):
    """Choices that were recorded: token t of rank r is row t R + r of the table, which repeats.

    Args:
        table_TK: integers `[tokens, K]`, one row per token, distinct within a row.

    Raises:
        Refused: the table is not of that form, or is asked for another K or fewer experts.
    """

    table_TK: np.ndarray = field(repr=False)
    label: ClassVar[str] = "replay"

    def __post_init__(self):
        table_TK = np.array(self.table_TK)
        if table_TK.ndim != 2 or not table_TK.size or table_TK.dtype.kind not in "iu":
            raise Refused(f"replay table is {table_TK.dtype} {list(table_TK.shape)}: give integers [tokens, top_k]")
        ordered = np.sort(table_TK, axis=1)
        if (ordered[:, 1:] == ordered[:, :-1]).any() or ordered.min() < 0:
            raise Refused("replay table names an expert twice in a row, or below 0: a token's experts are distinct ids")
        table_TK = table_TK.astype(np.int32)
        table_TK.flags.writeable = False
        object.__setattr__(self, "table_TK", table_TK)

    @property
    def digest(self) -> str:
        """Eight hexadecimal digits that stand for the table in labels."""
        shape = str(self.table_TK.shape).encode()
        return hashlib.sha256(shape + self.table_TK.tobytes()).hexdigest()[:8]

    def _choose(self, router: Router, tokens: slice) -> np.ndarray:
        if self.table_TK.shape[1] != router.top_k or self.table_TK.max() >= router.experts:
            raise Refused(
                f"replay table has top_k {self.table_TK.shape[1]} and experts up to {self.table_TK.max()}, "
                f"asked for top_k {router.top_k} of {router.experts} experts: ask for the recorded shape"
            )
        rows = np.arange(tokens.start, tokens.stop) * router.ep_size + router.rank
        return self.table_TK[rows % len(self.table_TK)]

    def __str__(self):
        return f"{self.label}:{self.digest}"

    def __eq__(self, other):
        return isinstance(other, Replay) and np.array_equal(self.table_TK, other.table_TK)

    def __hash__(self):
        return hash(self.digest)


ROUTINGS: tuple[type[Routing], ...] = (Uniform, Zipf, LogNormal, HotExpert, HotRank, Balanced)


def parse(text: Routing | str) -> Routing:
    """`zipf:1.2` to `Zipf(exponent=1.2)`, in any case; a missing number takes its default.

    The underscore of a label may be left out (`lognormal:1`). A `Routing` is returned as it is.

    Raises:
        Refused: no such routing, or not its numbers. A replay is more than its label: pass `Replay(table_TK)`.
    """
    if isinstance(text, Routing):
        return text
    name, *values = text.split(":") if isinstance(text, str) else [text]
    if isinstance(name, str) and name in ("replay", "placed"):
        itself = {"replay": "Replay(table_TK)", "placed": "Placed(routing=..., placement=...)"}[name]
        raise Refused(f"routing {shown(text)}: a {name} routing is more than its label; pass {itself} itself")
    labels = {cls.label: cls for cls in ROUTINGS}
    joined = {label.replace("_", ""): label for label in labels}
    spelled = joined.get(name.strip().casefold(), name) if isinstance(name, str) else name
    cls = labels[choose(spelled, labels, "routing")]
    try:
        routing = cls(**{f.name: _number(f.type, value) for f, value in zip(fields(cls), values, strict=False)})
    except (TypeError, OverflowError, ValueError) as error:
        raise error if isinstance(error, Refused) else Refused(f"routing {shown(text)}: {_rule(cls)}") from error
    if len(values) > len(fields(cls)):
        raise Refused(f"routing {shown(text)}: {_rule(cls)}")
    return routing


def _number(kind: str, value: str) -> float:
    return int(value) if kind == "int" else float(value)


def _rule(cls: type[Routing]) -> str:
    return f"write {':'.join([cls.label, *(f.name.upper() for f in fields(cls))])} with a number for each name"

"""Endurance: very many rounds with fresh routing, token counts, delays and masks, each compared on the device.

Rounds come in blocks. A block draws one runtime max, and for each of its rounds the tokens of every rank, a hot rank or
none, and delays; on GPUs it is captured once and replayed, with fresh routing at every replay.
"""

from __future__ import annotations

import random
import time
from dataclasses import dataclass, replace

from mnnvl_lab.errors import Refused
from mnnvl_lab.exchange import Exchange

SMALL, MIDDLE = 64, 512
LONGEST_DELAY_US = 30.0
CYCLES_PER_US = 1_700
DELAYED = 0.1  # share of the places where a rank may be delayed


@dataclass(frozen=True, kw_only=True)
class Endurance:
    """A campaign on one transport.

    Attributes:
        exchange: with a power of two of experts for each rank, and at most 4096 tokens.
        rounds: to run; the block in which the number is reached is finished.
        graph_rounds: different rounds in a block. replays: how often a block is run.
        masked: blocks may leave ranks out (one-sided with `enable_rank_mask`).
        seconds: after which no further block is begun.
    """

    exchange: Exchange
    rounds: int
    graph_rounds: int = 16
    replays: int = 64
    masked: bool = False
    seed: int = 0
    seconds: float = 600.0

    def __post_init__(self):
        x = self.exchange
        per_rank = x.experts // x.ep_size
        if x.experts & (x.experts - 1) or per_rank < x.top_k or x.experts != per_rank * x.ep_size:
            raise Refused(
                f"{x.experts} experts on {x.ep_size} ranks with top_k {x.top_k}: endurance draws distinct experts from "
                "a power of two, at least top_k for each rank; take 2, 4 or 8 ranks and 64 experts per rank"
            )
        if x.max_tokens > 4096 or (self.masked and not x.enable_rank_mask):
            raise Refused(
                f"max_tokens is {x.max_tokens}, masked {self.masked}: rows name at most 4096 tokens, and masks need "
                "enable_rank_mask; lower max_tokens or set it"
            )


@dataclass(frozen=True, kw_only=True)
class Block:
    """What a block draws on the host, the same on every rank.

    Attributes:
        limit: runtime max. tokens_GR: of each round and rank. hot_G: a hot rank, or -1.
        active: ranks that take part. delays: (round, place, rank) to microseconds; places are 0 and 1, before dispatch
            and before combine.
    """

    limit: int
    tokens_GR: tuple[tuple[int, ...], ...]
    hot_G: tuple[int, ...]
    active: tuple[int, ...]
    delays: dict[tuple[int, int, int], float]


@dataclass(frozen=True, kw_only=True)
class Endured:
    """What one rank has to say.

    Attributes:
        rounds: that it took part in. tokens: that it sent in them.
        wrong: rounds that were wrong, by kind of `endurance_load.KINDS`.
        first_wrong_block: the number of the first block with a wrong round, -1 if none.
        largest: the largest runtime max.
        note: the transport's.
    """

    rounds: int
    tokens: int
    wrong: dict[str, int]
    first_wrong_block: int
    blocks: int
    largest: int
    seconds: float
    note: str


def draw_block(plan: Endurance, number: int) -> Block:
    """Sizes lean to small rounds and reach the capacity. All ranks take part in the first block."""
    chance, x = random.Random(f"{plan.seed} {number}"), plan.exchange
    most = min(x.max_tokens, chance.choices((SMALL, MIDDLE, x.max_tokens), weights=(12, 5, 1))[0])
    limit = chance.randint(1, most)
    ranks, rounds = range(x.ep_size), range(plan.graph_rounds)
    active = tuple(ranks)
    if plan.masked and number and chance.random() < 0.3:
        active = tuple(sorted(chance.sample(ranks, chance.randint(1, x.ep_size))))
    places = [(index, place, rank) for index in rounds for place in (0, 1) for rank in ranks]
    return Block(
        limit=limit,
        tokens_GR=tuple(tuple(chance.choice((0, limit, chance.randint(0, limit))) for _ in ranks) for _ in rounds),
        hot_G=tuple(chance.choice(active) if chance.random() < 0.15 else -1 for _ in rounds),
        active=active,
        delays={p: chance.uniform(1, LONGEST_DELAY_US) for p in places if chance.random() < DELAYED / x.ep_size},
    )


def endure(rank, plan: Endurance) -> Endured:
    """Rank function. Collective over the EP group."""
    from mnnvl_lab.faults.endurance_run import Runner

    group, began_s = rank.group("ep"), time.monotonic()
    runner = Runner(rank, plan)
    with runner:
        while group.broadcast(runner.block < _blocks(plan) and time.monotonic() - began_s < plan.seconds):
            rank.phase = f"endurance block {runner.block}"
            runner.run(draw_block(plan, runner.block))
        return runner.result(time.monotonic() - began_s)


def _blocks(plan: Endurance) -> int:
    return -(-plan.rounds // (plan.graph_rounds * plan.replays))


def variants(exchange: Exchange) -> dict[str, Exchange]:
    """The transports to try: one-sided in bf16, fp8 and with rank masks; two-sided."""
    one_sided = replace(exchange, mode="one_sided", payload_in_workspace=True, sm_limit=None)
    return {
        "one_sided bf16": one_sided,
        "one_sided fp8_block": replace(one_sided, format="fp8_block"),
        "one_sided masks": replace(one_sided, enable_rank_mask=True),
        "two_sided bf16": replace(exchange, mode="two_sided"),
    }

"""What processes of one machine can do through shared memory, in the way that the `host` transports do it."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import closing
from functools import partial
from itertools import count

import numpy as np
import torch

from mnnvl_lab.errors import RankTimeout
from mnnvl_lab.measure.links import LinkSample, take_samples
from mnnvl_lab.ranks.group import Group
from mnnvl_lab.ranks.rank import Rank
from mnnvl_lab.ranks.sync import wait_until
from mnnvl_lab.transport.host.shared_memory import SharedMemory

PING_PONGS = 200  # round trips of one sample
ANSWER_LIMIT_S = 10.0
FLAG_BYTES = 8


def host_samples(rank: Rank, *, size_bytes: int, samples: int) -> Iterator[LinkSample]:
    """Copies into the next rank's segment, one rank at a time and all at once; a flag to and fro. Collective.

    All ranks take part in every sample; rank 0 yields them.
    """
    group = rank.group("world")
    with closing(SharedMemory(group, size_bytes=size_bytes, directory=rank.segment_dir)) as memory:
        copy = _copier(group, memory, size_bytes)
        found = [
            *take_samples("memory_copy", "one_rank", size_bytes, partial(_one_rank_us, group, copy), samples),
            *take_samples("memory_copy", "all_ranks", group.size * size_bytes, partial(_all_us, group, copy), samples),
        ]
    if group.size > 1:
        found += _flag_samples(rank, group, samples)
    yield from found if group.rank == 0 else ()


def _copier(group: Group, memory: SharedMemory, size_bytes: int) -> Callable[[], tuple[float, float]]:
    """A call that puts this rank's bytes into the next rank's row and returns when it began and ended."""
    bytes_here = np.random.default_rng(group.rank).integers(0, 256, size_bytes, dtype=np.uint8)
    source, target = torch.from_numpy(bytes_here), memory.row((group.rank + 1) % group.size)

    def copy() -> tuple[float, float]:
        begin_ns = time.perf_counter_ns()
        target.copy_(source)
        return begin_ns / 1e3, time.perf_counter_ns() / 1e3

    return copy


def _one_rank_us(group: Group, copy) -> float:
    """Each rank copies in its turn while the others sleep; the mean, since any core may be a slow one."""
    spans = []
    for turn in range(group.size):
        group.barrier()
        if turn == group.rank:
            spans.append(copy())
    return float(np.mean([end - begin for [(begin, end)] in group.allgather(spans)]))


def _all_us(group: Group, copy) -> float:
    """From the first that begins to the last that ends, on the clock that all processes of a machine share."""
    group.barrier()
    begins, ends = zip(*group.allgather(copy()), strict=True)
    return max(ends) - min(begins)


def _flag_samples(rank: Rank, group: Group, samples: int) -> list[LinkSample]:
    with closing(SharedMemory(group, size_bytes=FLAG_BYTES, directory=rank.segment_dir)) as memory:
        flags = [memory.row(peer).view(torch.int64).numpy() for peer in (0, 1)]
        once = partial(_ping_pongs_us, rank, group, flags, count(1))
        return list(take_samples("flag_round_trip", "there_and_back", 0, once, samples))


def _ping_pongs_us(rank: Rank, group: Group, flags: list[np.ndarray], turns: Iterator[int]) -> float:
    """Mean of `PING_PONGS` round trips between ranks 0 and 1, polled as the transports poll; other ranks sleep."""
    group.barrier()
    begin_ns = time.perf_counter_ns()
    if group.rank < 2:
        for _ in range(PING_PONGS):
            _ping_pong(rank, group, flags[group.rank], flags[1 - group.rank], next(turns))
    elapsed_us = (time.perf_counter_ns() - begin_ns) / 1e3
    group.barrier()
    return elapsed_us / PING_PONGS


def _ping_pong(rank: Rank, group: Group, mine: np.ndarray, theirs: np.ndarray, turn: int) -> None:
    serves, peer = group.rank == 0, group.ranks[1 - group.rank]
    if serves:
        theirs[0] = turn
    wait_until(
        lambda: mine[0] == turn,
        limit_s=ANSWER_LIMIT_S,
        on_timeout=lambda: RankTimeout(
            rank=peer, phase="flag round trip", cause=f"flag {turn} did not come within {ANSWER_LIMIT_S:g} s"
        ),
        check=partial(rank.require_alive, [peer]),
    )
    if not serves:
        theirs[0] = turn

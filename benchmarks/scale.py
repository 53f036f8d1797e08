"""What many ranks cost on a small machine: start, groups, one checked round, close; seconds and memory per rank.

    python -m benchmarks.scale --ranks 64 128
    python -m benchmarks.scale --ranks 64 128 --launcher slurm --nodes 2
    python -m tools.clusters slurm --cpus 64    for the latter, where there is no cluster

An EP group has at most 64 ranks, as the kernels allow: 128 ranks are two pipeline stages.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Iterator

import psutil

from benchmarks.on_ranks import meet, memory_mb, one_round
from mnnvl_lab.exchange import Exchange
from mnnvl_lab.layout import Layout
from mnnvl_lab.ranks import Ranks

LIMIT_S = 400
GROUP = 64


def layout_of(ranks: int, nodes: int) -> Layout:
    """TP 8 x DP within groups of at most 64 ranks, in as many pipeline stages as that takes."""
    stages = -(-ranks // GROUP)
    return Layout(tp=8, dp=ranks // stages // 8, pp=stages, gpus_per_node=-(-ranks // nodes))


def costs(layout: Layout, *, launcher: str) -> Iterator[tuple[str, float, str]]:
    """What, how much, and its unit."""
    began_s = time.perf_counter()
    ranks = Ranks(layout, launcher=launcher, start_timeout_s=LIMIT_S, progress=False)
    yield "start", time.perf_counter() - began_s, "s"
    try:
        exchange = Exchange(mode="one_sided", layout=layout, max_tokens=4, hidden=64, experts=256, top_k=8)
        yield "groups: every rank meets its EP group", _seconds(lambda: ranks.run(meet, timeout_s=LIMIT_S)), "s"
        for name in ("first checked round", "another checked round"):
            yield name, _seconds(lambda: ranks.run(one_round, exchange, timeout_s=LIMIT_S)), "s"
        memory = ranks.run(memory_mb)
        yield "memory of a rank's own (unique set size), mean", sum(memory) / len(memory), "MB"
        yield "open files of the notebook's process", psutil.Process().num_fds(), ""
    finally:
        yield "close", _seconds(ranks.close), "s"


def _seconds(call: Callable[[], object]) -> float:
    began_s = time.perf_counter()
    call()
    return time.perf_counter() - began_s


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.scale", description=__doc__.splitlines()[0])
    parser.add_argument("--ranks", type=int, nargs="+", default=[64, 128], help="multiples of 8")
    parser.add_argument("--launcher", default="local")
    parser.add_argument("--nodes", type=int, default=1, help="over which a launcher spreads them")
    options = parser.parse_args(arguments)
    for ranks in options.ranks:
        layout = layout_of(ranks, options.nodes)
        print(f"{layout.world_size} ranks, EP groups of {layout.ep_size}, launcher {options.launcher}", flush=True)
        for name, value, unit in costs(layout, launcher=options.launcher):
            print(f"  {name:50} {value:8.1f} {unit}", flush=True)


if __name__ == "__main__":
    main()

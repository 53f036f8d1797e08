"""Many rounds of pico on GPUs with random delays and loads, checked on the device; and what broken variants do.

    python -m tools.pico_stress --rounds 1000000 --broken 20000 --out data/pico/stress.json

Rows are small integers that depend on round, rank, token and column, so a stale row shows. Experts return the rows as
they came. Each rank waits a random time before each phase. A broken variant is the same source with one ordering or one
epoch taken out. Exit status 1 if the sound kernels gave a wrong row.
"""

from __future__ import annotations

import importlib.util
import inspect
import json
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from types import MappingProxyType

from mnnvl_lab.cli.arguments import whole_in
from mnnvl_lab.exchange import Batch, Exchange
from mnnvl_lab.layout import Layout
from mnnvl_lab.ranks import Ranks
from mnnvl_lab.records.provenance import provenance
from tools.arguments import file_path, run_tool, tool_parser

HIDDEN, EXPERTS, TOP_K = 2048, 256, 8
GRAPH_ROUNDS = 32
SIZES = MappingProxyType({16: 1, 128: 4, 256: 10, 3200: 40})
"""Runtime max: a round that counts its slots, one that takes them from atomics, one with one flag for all, one that
pushes; and by how much fewer rounds each gets, since they take longer."""
BARRIER = '    tl.debug_barrier()\n    tl.atomic_xchg(flags, epoch, mask=valid, sem="release", scope="sys")\n'
FLAG = 'mask=valid, sem="release"'
BROKEN = MappingProxyType(
    {
        "no barrier before the flag": {BARRIER: BARRIER.split("\n", 1)[1]},
        "relaxed flag": {FLAG: FLAG.replace("release", "relaxed")},
        "missing epoch": {")) + 1\n": ")) * 0 + 1\n"},
    }
)
"""By name: what is taken out of the source, and what stands in its place."""


def variant(name: str | None):
    """The kernels' module, or a copy of it with one thing taken out."""
    from mnnvl_lab.transport.pico import kernels

    if name is None:
        return kernels
    source = inspect.getsource(kernels)
    for old, new in BROKEN[name].items():
        if old not in source:
            raise AssertionError(f"the kernels no longer contain {old!r}: say anew what {name!r} takes out")
        source = source.replace(old, new)
    path = Path(tempfile.mkdtemp()) / f"pico_{name.replace(' ', '_')}.py"
    path.write_text(source)
    spec = importlib.util.spec_from_file_location(path.stem, path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def stress(rank, name: str | None, size: int, rounds: int, seed: int) -> dict:
    """Rank function: `rounds` rounds of up to `size` tokens; how many rows were wrong, in how many rounds."""
    import torch

    from mnnvl_lab.transport import open_transport
    from tools import pico_stress_kernels as stress_kernels

    shape = {"layout": rank.layout, "max_tokens": size, "hidden": HIDDEN, "experts": EXPERTS, "top_k": TOP_K}
    with open_transport(rank, Exchange(mode="pico", **shape)) as transport:
        transport._kernels = variant(name)
        cases = [case(rank, transport, size, seed, i) for i in range(GRAPH_ROUNDS)]
        number = torch.zeros(1, dtype=torch.int64, device=rank.device)
        wrong = torch.zeros(3, dtype=torch.int64, device=rank.device)

        def once() -> None:
            for x, batch, targets in cases:
                stress_kernels.begin[(max(1, batch.tokens),)](x, number, seed, rank.index, batch.tokens, H=HIDDEN)
                stress_kernels.pause[(1,)](number, seed, rank.index, 0)
                handle = transport.enqueue_dispatch(batch)
                stress_kernels.pause[(1,)](number, seed, rank.index, 1)
                y = transport.enqueue_combine(transport.received_views(handle)[0][0], handle)
                stress_kernels.check[(max(1, batch.tokens),)](
                    y, targets, number, wrong, seed, rank.index, batch.tokens, H=HIDDEN
                )
                number.add_(1)

        return repeat(rank, transport, once, number, wrong, rounds)


def case(rank, transport, size: int, seed: int, index: int):
    """Random routing of a random number of tokens; and how many ranks each token goes to."""
    import torch

    draw = torch.Generator(device=rank.device).manual_seed(seed + 1000 * index + rank.index)
    tokens = int(torch.randint(0, size + 1, (1,), generator=draw, device=rank.device)) if index % 4 else size
    scores = torch.rand(size, EXPERTS, device=rank.device, generator=draw)
    experts = scores.topk(TOP_K, -1).indices.int().contiguous()
    if index % 3 == 0:  # to few ranks: some tokens stay here, some go elsewhere only
        experts = (
            experts % (EXPERTS // transport.ep_size)
            + (EXPERTS // transport.ep_size) * (experts[:, :1] % transport.ep_size)
        ).contiguous()
    owner = (experts // (EXPERTS // transport.ep_size)).long()
    named = torch.zeros(size, transport.ep_size, device=rank.device).scatter_(1, owner, 1.0)
    x = torch.empty(size, HIDDEN, dtype=torch.bfloat16, device=rank.device)
    weights = torch.rand(size, TOP_K, device=rank.device, generator=draw)
    batch = Batch(
        payloads=(x[:tokens],), experts_TK=experts[:tokens], weights_TK=weights[:tokens], runtime_max_tokens=size
    )
    if index == 0:
        transport.validate(batch)
    return x, batch, named.sum(1).int()


def repeat(rank, transport, once, number, wrong, rounds: int) -> dict:
    """Capture the rounds and replay them, beside a copy that loads the memory in every other replay."""
    import torch

    once()
    torch.cuda.synchronize()
    transport.group.barrier()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph, capture_error_mode="thread_local"):
        once()
    load = torch.empty(2, 32 << 20, dtype=torch.uint8, device=rank.device)
    side, begun = torch.cuda.Stream(), time.perf_counter()
    for replay in range(-(-rounds // GRAPH_ROUNDS)):
        if replay % 2 and replay % 16 < 8:
            with torch.cuda.stream(side):
                load[0].copy_(load[1])
        graph.replay()
        if replay % 64 == 63:
            torch.cuda.synchronize()
    torch.cuda.synchronize()
    elapsed_s = time.perf_counter() - begun
    rows, wrong_rounds, _ = wrong.tolist()
    return {"rounds": int(number), "wrong_rows": rows, "wrong_rounds": wrong_rounds, "seconds": round(elapsed_s, 2)}


def main(arguments: Sequence[str] | None = None) -> int:
    parser = tool_parser("tools.pico_stress", __doc__)
    parser.add_argument("--ranks", type=whole_in(2, 64), default=2, metavar="N", help="GPUs (default %(default)s)")
    parser.add_argument("--rounds", type=whole_in(1, 10**9), default=100_000, metavar="N", help="of the sound kernels")
    parser.add_argument("--broken", type=whole_in(0, 10**9), default=20_000, metavar="N", help="of each broken variant")
    parser.add_argument("--seed", type=whole_in(0, 10**6), default=1)
    parser.add_argument("--out", type=file_path, required=True, metavar="FILE", help="counts as JSON")
    options = parser.parse_args(arguments)
    results = []
    with Ranks(Layout(dp=options.ranks), fabric="nvlink") as ranks:
        for name in (None, *BROKEN):
            for size in SIZES:
                share = options.rounds if name is None else options.broken
                rounds = max(1, share // SIZES[size])
                if not share:
                    continue
                per_rank = ranks.run(stress, name, size, rounds, options.seed, timeout_s=500)
                results.append({"variant": name or "sound", "runtime_max_tokens": size, "per_rank": per_rank})
                print(results[-1], flush=True)
                report = {
                    "provenance": provenance(fabric="nvlink"),
                    "hidden": HIDDEN,
                    "top_k": TOP_K,
                    "results": results,
                }
                options.out.parent.mkdir(parents=True, exist_ok=True)
                options.out.write_text(json.dumps(report, indent=1, default=str) + "\n")
    sound = [one for each in results if each["variant"] == "sound" for one in each["per_rank"]]
    return int(any(one["wrong_rows"] for one in sound))


if __name__ == "__main__":
    from tools.pico_stress import main as importable  # ranks import what they run

    sys.exit(run_tool(importable))

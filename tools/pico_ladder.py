"""The ladder of pico: what each step gained, beside FlashInfer in the same run, on ranks with a GPU each.

    python -m tools.pico_ladder --out data/pico/ladder.csv
    python -m tools.pico_ladder --tokens 1 128 4096 --steps push counted --out ladder.csv

Each step is checked bit for bit before and after it is timed. Times are microseconds per pair of dispatch and combine
from replays of a CUDA graph; each replay is one row, the slowest rank's. DeepSeek-V3's shape, bf16, uniform routing.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from types import MappingProxyType, SimpleNamespace

import pandas as pd

from mnnvl_lab.cli.arguments import whole_in
from mnnvl_lab.exchange import Batch, Exchange, Handle
from mnnvl_lab.layout import Layout
from mnnvl_lab.ranks import Ranks
from mnnvl_lab.records.provenance import provenance
from tools.arguments import file_path, run_tool, tool_parser

HIDDEN, EXPERTS, TOP_K = 7168, 256, 8
TOKENS = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024, 2048, 4096)
ROUNDS, REPLAYS = 20, 21
LEAST_CAPACITY = 2048  # so that each program of the smaller rounds has a flag
COUNTED_MOST = 128


@dataclass(frozen=True, kw_only=True)
class Step:
    """One rung: how the kernels are launched; `settings` are those of `pico.Tuning`."""

    name: str
    settings: dict
    fused: bool = False
    pdl: bool = True
    least: int = 1
    most: int = 4096

    def serves(self, tokens: int) -> bool:
        return self.least <= tokens <= self.most


def ladder() -> tuple[Step, ...]:
    """The rungs in the order in which they were climbed."""
    return (
        Step(name="put and pull", settings=dict(ONE_FLAG), pdl=False),
        Step(name="launched early", settings=dict(ONE_FLAG)),
        Step(name="counted slots", settings={}, most=COUNTED_MOST),
        *(_split(n, warps) for n, warps in ((2, 8), (4, 4), (7, 4))),
        Step(name="fused push", settings={"pushers": 1}, fused=True, most=COUNTED_MOST),
        Step(name="fused push in 7 parts", fused=True, most=16, settings=_parts(7, 4) | {"pushers": 1}),
        *(_flagged(*numbers) for numbers in FLAGGED),
        Step(name="pull in 2 parts", settings=ONE_FLAG | {"combine_split": 2}, least=32, most=2048),
        Step(name="pull with 4 warps", settings=ONE_FLAG | {"combine_warps": 4}, least=32),
        Step(name="put with 16 warps", settings=ONE_FLAG | {"dispatch_warps": 16}, least=128),
        *(_pulled(parts, warps, put) for parts, warps, put in PULLED),
        *(_pushers(*numbers) for numbers in PUSHERS),
    )


ONE_FLAG = MappingProxyType({"atomics": True, "one_flag": True})
FLAGGED = ((8, 1, 8), (8, 2, 8), (8, 4, 4), (4, 4, 4), (4, 7, 2), (2, 7, 1))
PULLED = ((1, 4, 16), (2, 4, 8), (2, 8, 16), (4, 4, 8), (4, 4, 16))
PUSHERS = (
    *((264, 8, 16), (528, 8, 8), (528, 8, 16), (792, 8, 16), (1056, 8, 16), (1056, 4, 16), (2112, 4, 16)),
    *((396, 8, 16), (512, 8, 16), (256, 16, 16), (264, 16, 16), (528, 8, 16, 2), (264, 8, 16, 2), (264, 8, 16, 4)),
)
"""Programs that push, warps of combine and of dispatch, rows per flag."""


def _parts(count: int, warps: int) -> dict:
    split = {"dispatch_split": count, "combine_split": count}
    return split | {"dispatch_warps": warps, "combine_warps": warps}


def _split(count: int, warps: int) -> Step:
    return Step(name=f"counted, in {count} parts", settings=_parts(count, warps), most=64)


def _flagged(put: int, parts: int, warps: int) -> Step:
    settings = {"atomics": True, "combine_split": parts, "combine_warps": warps, "dispatch_warps": put}
    name = f"atomics, flag per program of {put} warps, pull in {parts} parts of {warps} warps"
    return Step(name=name, settings=settings, most=256)


def _pulled(parts: int, warps: int, put: int) -> Step:
    settings = ONE_FLAG | {"combine_split": parts, "combine_warps": warps, "dispatch_warps": put}
    return Step(name=f"pull in {parts} parts of {warps} warps, {put} put", settings=settings, least=64)


def _pushers(count: int, warps: int, put: int, chunk: int = 1) -> Step:
    settings = ONE_FLAG | {"pushers": count, "combine_warps": warps, "dispatch_warps": put, "chunk": chunk}
    more = f", {chunk} rows per flag" if chunk > 1 else ""
    return Step(name=f"{count} pushers of {warps} warps, {put} put{more}", settings=settings, least=1024)


def measure(rank, tokens: tuple[int, ...], steps: tuple[Step, ...]) -> list[dict]:
    """Rank function: every step at every number of tokens, beside FlashInfer before and after."""
    bench = Bench(rank, max(LEAST_CAPACITY, *tokens))
    rows = []
    for count in tokens:
        rows += bench.flashinfer(count, "before")
        for step in steps:
            if step.serves(count):
                rows += bench.pico(count, step)
        rows += bench.flashinfer(count, "after")
    bench.close()
    return rows


class Bench:
    """One rank: both transports open, and the rows of one round."""

    def __init__(self, rank, capacity: int, **options):
        import torch

        from mnnvl_lab.transport import open_transport

        self.rank, self.torch = rank, torch
        shape = {"layout": rank.layout, "max_tokens": capacity, "hidden": HIDDEN, "experts": EXPERTS, "top_k": TOP_K}
        self.theirs = open_transport(rank, Exchange(mode="one_sided", payload_in_workspace=True, **shape, **options))
        self.ours = open_transport(rank, Exchange(mode="pico", **shape))
        self.ours.pdl = not options.get("without_pdl", False)
        self.group = self.ours.group
        draw = torch.Generator(device=rank.device).manual_seed(1 + self.group.rank)
        self.x = torch.randn(capacity, HIDDEN, device=rank.device, generator=draw).bfloat16()
        scores = torch.rand(capacity, EXPERTS, device=rank.device, generator=draw)
        self.experts = scores.topk(TOP_K, -1).indices.int().contiguous()
        self.weights = torch.rand(capacity, TOP_K, device=rank.device, generator=draw)
        self.y = torch.empty(capacity, HIDDEN, dtype=torch.bfloat16, device=rank.device)

    def batch(self, count: int) -> Batch:
        rows = (self.x[:count], self.experts[:count], self.weights[:count])
        return Batch(payloads=rows[:1], experts_TK=rows[1], weights_TK=rows[2], runtime_max_tokens=count)

    def expected(self, count: int):
        """Rank r's experts multiply by 1 - 3 r, which is exact, so a missing or doubled row shows."""
        R = self.group.size
        owner = (self.experts[:count] // (EXPERTS // R)).long()
        named = self.torch.zeros(count, R, device=owner.device).scatter_(1, owner, 1.0)
        gains = 1.0 - 3.0 * self.torch.arange(R, device=owner.device)
        return (self.x[:count].float() * (named * gains).sum(1, keepdim=True)).bfloat16()

    def flashinfer(self, count: int, when: str) -> list[dict]:
        batch, transport = self.batch(count), self.theirs
        transport.meet(batch)

        self.handle = transport.enqueue_dispatch(batch)
        self.partials = transport.partials_buffer(self.handle)
        return self._rows(count, f"FlashInfer {when}", transport, batch)

    def pico(self, count: int, step: Step) -> list[dict]:
        from mnnvl_lab.transport.pico.launch import Tuning

        batch, transport = self.batch(count), self.ours
        self.torch.cuda.synchronize()
        transport.meet(batch)
        transport.tuning, transport.pdl = (lambda _: Tuning(**step.settings)), step.pdl
        transport._kernels = kernels_of(step)
        self.partials = self.partials_of(transport, Handle(batch=batch, rows=self.group.size * count))
        return self._rows(count, step.name, transport, batch)

    def partials_of(self, transport, handle: Handle):
        """Where the experts write: into the workspace, unless combine pushes."""
        if transport is self.theirs or not transport.tuning(handle.batch.runtime_max_tokens).pushers:
            return transport.partials_buffer(handle)
        return self.torch.empty(handle.rows, HIDDEN, dtype=self.torch.bfloat16, device=self.rank.device)

    def _rows(self, count, name, transport, batch: Batch) -> list[dict]:
        def dispatch():
            self.handle = transport.enqueue_dispatch(batch)

        def combine():
            transport.enqueue_combine(self.partials, self.handle, self.y[:count])

        calls = dispatch, combine, lambda: transport.received_views(self.handle)[0][0]
        before = self._right(count, *calls)
        samples = self._timed(lambda: (dispatch(), combine()))
        after = self._right(count, *calls)
        right = before and after
        common = {"step": name, "tokens": count, "rank": self.group.rank, "checked": right}
        return [common | {"sample": i, "latency_us": us} for i, us in enumerate(samples)]

    def _right(self, count, dispatch, combine, landed) -> bool:
        """One round with experts that multiply, compared on the device, to the last bit; on all ranks."""
        self.y.fill_(float("nan"))
        self.torch.cuda.synchronize()
        self.group.barrier()
        dispatch()
        self.torch.cuda.synchronize()
        self.partials.copy_(landed().view(-1, HIDDEN)).mul_(1.0 - 3.0 * self.group.rank)
        combine()
        self.torch.cuda.synchronize()
        right = bool(self.torch.equal(self.y[:count], self.expected(count)))
        return all(self.group.allgather(right))

    def _timed(self, call: Callable) -> list[float]:
        torch = self.torch
        side = torch.cuda.Stream()
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):
            call()
        torch.cuda.synchronize()
        self.group.barrier()
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, stream=side, capture_error_mode="thread_local"):
            for _ in range(ROUNDS):
                call()
        return [self._replay(graph) for _ in range(REPLAYS)]

    def _replay(self, graph) -> float:
        """A replay that is not timed brings the ranks together."""
        begin, end = (self.torch.cuda.Event(enable_timing=True) for _ in range(2))
        self.torch.cuda.synchronize()
        self.group.barrier()
        graph.replay()
        begin.record()
        graph.replay()
        end.record()
        end.synchronize()
        return begin.elapsed_time(end) * 1e3 / ROUNDS

    def close(self) -> None:
        self.ours.close()
        self.theirs.close()


def kernels_of(step: Step):
    """The kernels' module, or the same with the combine of an earlier rung."""
    from mnnvl_lab.transport.pico import kernels
    from tools.pico_rungs import combine_fused

    if not step.fused:
        return kernels
    return SimpleNamespace(tl=kernels.tl, dispatch=kernels.dispatch, combine=combine_fused)


def profile(rank, tokens: tuple[int, ...], rounds: int = 30) -> list[dict]:
    """Rank function: median time of each kernel on the device, each launched when the one before has ended."""
    import torch

    bench = Bench(rank, max(LEAST_CAPACITY, *tokens), without_pdl=True)
    rows = []
    for count in tokens:
        for name, transport in (("FlashInfer", bench.theirs), ("pico", bench.ours)):
            transport.meet(bench.batch(count))
            with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA], acc_events=True) as traced:
                for _ in range(rounds):
                    bench.group.barrier()
                    torch.cuda._sleep(100_000)
                    handle = transport.enqueue_dispatch(bench.batch(count))
                    transport.enqueue_combine(bench.partials_of(transport, handle), handle, bench.y[:count])
                    torch.cuda.synchronize()
            rows += kernel_times(traced, rank.index, name, count)
    bench.close()
    return rows


def kernel_times(traced, rank: int, name: str, count: int) -> list[dict]:
    """One row per kernel and launch; how long the device worked on it."""
    spans = [event for event in traced.events() if event.device_type.name == "CUDA"]
    return [
        {"rank": rank, "of": name, "tokens": count, "kernel": e.name[:60], "us": e.time_range.elapsed_us()}
        for e in spans
    ]


def precompile(layout: Layout, capacity: int, tokens: Sequence[int], steps: Sequence[Step]) -> None:
    """Compile all variants into Triton's cache, many at a time; ranks would compile them one after the other."""
    from concurrent.futures import ProcessPoolExecutor
    from multiprocessing import get_context
    from os import cpu_count

    jobs = [(layout, capacity, count, step) for step in steps for count in tokens if step.serves(count)]
    unique = {(repr(step), 0 if step.settings.get("one_flag") else max(16, count - 1).bit_length()): job
              for job in jobs for (_, _, count, step) in [job]}  # fmt: skip
    with ProcessPoolExecutor(min(16, cpu_count()), mp_context=get_context("spawn")) as pool:
        list(pool.map(compile_only, unique.values()))


def compile_only(job: tuple) -> None:
    """One step's kernels, with arguments of the right types in place of memory."""
    import torch

    from mnnvl_lab.transport.pico import launch as pico

    layout, capacity, count, step = job
    torch.cuda.set_device(0)
    shape = {"layout": layout, "max_tokens": capacity, "hidden": HIDDEN, "experts": EXPERTS, "top_k": TOP_K}
    launch = pico.PicoLaunch()
    launch._combine_region = lambda handle: x
    launch.exchange = Exchange(mode="pico", **shape)
    launch.workspace, launch.ep_rank, launch.ep_size = pico.PicoWorkspace.of(launch.exchange), 0, layout.ep_size
    launch._base, launch._stride, launch.pdl = 1 << 40, 512 << 20, step.pdl
    launch.tuning = lambda _: pico.Tuning(**step.settings)
    memory = torch.empty(capacity, HIDDEN, dtype=torch.bfloat16)  # large, so that its address has 64 bits, as a GPU's
    x, chosen = memory[:count], memory.view(torch.int32).view(-1, TOP_K)[:count]
    weights = chosen.view(torch.float32)
    batch = Batch(payloads=(x,), experts_TK=chosen, weights_TK=weights, runtime_max_tokens=count)
    handle = launch.launch_dispatch(Unlaunched(kernels_of(step)), batch)
    launch.launch_combine(Unlaunched(kernels_of(step)), x, handle, x)


class Unlaunched:
    """The kernels' module, whose launches only compile."""

    def __init__(self, kernels):
        self.tl, self.dispatch, self.combine = kernels.tl, *map(Warmup, (kernels.dispatch, kernels.combine))


class Warmup:
    def __init__(self, kernel):
        self._kernel = kernel

    def __getitem__(self, grid):
        return lambda *args, **kwargs: self._kernel.warmup(*args, grid=grid, **kwargs)


def slowest(per_rank: list[list[dict]]) -> pd.DataFrame:
    """One row per replay: the slowest rank's time."""
    rows = pd.DataFrame([row for rows in per_rank for row in rows])
    keys = ["tokens", "step", "sample"]
    return (
        rows.groupby(keys, sort=False).agg(latency_us=("latency_us", "max"), checked=("checked", "all")).reset_index()
    )


def table(samples: pd.DataFrame) -> pd.DataFrame:
    """Median of every step at every number of tokens; wrong steps are left empty."""
    right = samples[samples.checked]
    return right.pivot_table(index="step", columns="tokens", values="latency_us", aggfunc="median", sort=False).round(1)


def write(path: Path, samples: pd.DataFrame, steps: Sequence[Step]) -> None:
    """The samples as CSV, and beside it who measured them, with what."""
    path.parent.mkdir(parents=True, exist_ok=True)
    samples.round({"latency_us": 3}).to_csv(path, index=False)
    about = {
        "provenance": provenance(fabric="nvlink", clocks=("graph",)),
        "rounds_per_replay": ROUNDS,
        "steps": [asdict(step) for step in steps],
    }
    path.with_suffix(".json").write_text(json.dumps(about, indent=1, default=str) + "\n")


def chosen(names: Sequence[str] | None) -> tuple[Step, ...]:
    from mnnvl_lab.errors import choose

    steps = ladder()
    for name in names or ():
        choose(name, [step.name for step in steps], "step")
    return tuple(step for step in steps if not names or step.name in names)


def best(samples: pd.DataFrame) -> Iterator[str]:
    """The fastest step per number of tokens beside FlashInfer, as lines."""
    medians = samples[samples.checked].groupby(["tokens", "step"], sort=False).latency_us.median()
    for tokens, column in medians.groupby(level="tokens", sort=False):
        column = column.droplevel("tokens")
        theirs = column[column.index.str.startswith("FlashInfer")].mean()
        ours = column[~column.index.str.startswith("FlashInfer")].sort_values()
        yield f"{tokens}: FlashInfer {theirs:.1f}; " + "; ".join(
            f"{name} {us:.1f}" for name, us in ours.head(4).items()
        )


def main(arguments: Sequence[str] | None = None) -> int:
    parser = tool_parser("tools.pico_ladder", __doc__)
    parser.add_argument("--ranks", type=whole_in(2, 64), default=2, metavar="N", help="GPUs (default %(default)s)")
    parser.add_argument("--tokens", type=whole_in(1, 16384), nargs="+", default=TOKENS, metavar="T", help="per rank")
    parser.add_argument("--steps", nargs="+", metavar="NAME", help="only these rungs (default: all)")
    parser.add_argument("--out", type=file_path, required=True, metavar="FILE", help="samples as CSV")
    parser.add_argument("--profile", type=file_path, metavar="FILE", help="also the time of each kernel, as CSV")
    options = parser.parse_args(arguments)
    steps = chosen(options.steps)
    precompile(Layout(dp=options.ranks), max(LEAST_CAPACITY, *options.tokens), options.tokens, steps)
    with Ranks(Layout(dp=options.ranks), fabric="nvlink") as ranks:
        samples = slowest(ranks.run(measure, tuple(options.tokens), steps, timeout_s=500))
        write(options.out, samples, steps)
        if options.profile:
            spans = pd.DataFrame(
                [row for rows in ranks.run(profile, (1, 128, 1024, 4096), timeout_s=200) for row in rows]
            )
            spans.round({"us": 3}).to_csv(options.profile, index=False)
            print(spans.groupby(["tokens", "of", "kernel"], sort=False).us.median().round(2).to_string())
    print(table(samples).to_string())
    print("\n".join(best(samples)))
    return 0


if __name__ == "__main__":
    from tools.pico_ladder import main as importable  # ranks import what they run

    sys.exit(run_tool(importable))

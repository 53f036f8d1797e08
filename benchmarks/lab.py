"""What the lab itself costs: importing it, starting ranks, going on to another layout.

    python -m benchmarks.lab --fabric host --ranks 4

Warm and fresh ranks stand side by side in one run, since that is what keeping ranks warm is for.
"""

from __future__ import annotations

import argparse
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence

from benchmarks.on_ranks import resident_mb, time_open, time_opening, time_point
from mnnvl_lab.exchange import Exchange
from mnnvl_lab.layout import Layout
from mnnvl_lab.measure import Sampling, Sweep
from mnnvl_lab.measure.run import run
from mnnvl_lab.ranks import Ranks

REPEATS = 5
SHAPE = {"hidden": 1024, "experts": 32, "top_k": 8}
QUICK = Sampling(warmup=0, min_samples=1, max_samples=1, budget_s=0.0)
IMPORTED = """
import sys, time
begin = time.perf_counter()
import mnnvl_lab
took_ms = (time.perf_counter() - begin) * 1e3
assert not {"torch", "flashinfer", "ipyparallel"} & set(sys.modules)
print(took_ms)
"""


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.lab", description=__doc__.splitlines()[0])
    parser.add_argument("--fabric", default="host", help="host, shared_gpu or nvlink")
    parser.add_argument("--ranks", type=int, default=4)
    options = parser.parse_args(arguments)
    print(f"{options.ranks} ranks on {options.fabric}")
    for name, milliseconds in _costs(options.fabric, options.ranks):
        print(f"{name:70} {milliseconds:10.1f} ms", flush=True)
    left_mb = memory_after_sweep_mb(options.fabric, options.ranks)
    print(f"{'memory of a rank after a sweep of 100 points':70} {left_mb:10.0f} MB beyond a fresh one")


def _costs(fabric: str, size: int) -> Iterator[tuple[str, float]]:
    yield "import mnnvl_lab, neither torch nor flashinfer", statistics.median(_import_ms() for _ in range(REPEATS))
    yield "start", _ms(lambda: Ranks(Layout(dp=size), fabric=fabric).close())
    layouts = [Layout(tp=2, dp=size // 2), Layout(tp=size), Layout(dp=size)] * 2
    with Ranks(Layout(dp=size), fabric=fabric) as ranks:
        for mode in ("one_sided", "two_sided"):
            _go_on(ranks, Layout(dp=size), mode)
            yield (
                f"another point on warm ranks, {mode}: opened, checked twice, closed",
                _median_ms([Layout(dp=size)] * 10, lambda layout, mode=mode: _go_on(ranks, layout, mode, time_point)),
            )
            yield (
                f"another layout on warm ranks, {mode}: opened, checked, closed",
                _median_ms(layouts, lambda layout, mode=mode: _go_on(ranks, layout, mode)),
            )
            yield (
                f"  the same without the checked round, {mode}",
                _median_ms(layouts, lambda layout, mode=mode: _go_on(ranks, layout, mode, time_open)),
            )
            for name, per_rank in _opening(ranks, mode).items():
                yield f"  {name} alone, {mode}", per_rank
        yield "another layout on warm ranks, its groups alone", _median_ms(layouts, ranks.use)
    yield "the same on fresh processes", _ms(lambda: _afresh(fabric, size))


def _opening(ranks: Ranks, mode: str) -> dict[str, float]:
    """Median over repetitions of the slowest rank."""
    per_rank = ranks.run(time_open, _exchange(ranks.layout, mode), REPEATS)
    names = ("open", "close")
    return {n: statistics.median(map(max, zip(*(times[n] for times in per_rank), strict=True))) for n in names}


def _import_ms() -> float:
    done = subprocess.run([sys.executable, "-c", IMPORTED], capture_output=True, text=True, check=True)
    return float(done.stdout)


def _ms(call: Callable[[], object]) -> float:
    begin = time.perf_counter()
    call()
    return (time.perf_counter() - begin) * 1e3


def _median_ms(layouts: Sequence[Layout], call: Callable[[Layout], object]) -> float:
    return statistics.median(_ms(lambda layout=layout: call(layout)) for layout in layouts)


def _sweep(layout: Layout, mode: str, fabric: str, tokens: tuple[int, ...] = (128,)) -> Sweep:
    return Sweep(layouts=(layout,), modes=(mode,), tokens=tokens, fabric=fabric, sampling=QUICK, **SHAPE)


def _exchange(layout: Layout, mode: str) -> Exchange:
    return Exchange(mode=mode, layout=layout, max_tokens=128, **SHAPE)


def _go_on(ranks: Ranks, layout: Layout, mode: str, function: Callable = time_opening) -> None:
    """Take a layout and do once what `function` repeats."""
    ranks.use(layout)
    ranks.run(function, _exchange(layout, mode), 1)


def _afresh(fabric: str, size: int) -> None:
    with Ranks(Layout(dp=size), fabric=fabric) as ranks:
        _go_on(ranks, ranks.layout, "one_sided")


def _point(ranks: Ranks, mode: str) -> None:
    run(_sweep(ranks.layout, mode, ranks.fabric), ranks=ranks, progress=False)


def memory_after_sweep_mb(fabric: str, size: int) -> float:
    """Resident memory that 100 points leave in the fullest rank, beyond what one point leaves."""
    with Ranks(Layout(dp=size), fabric=fabric) as ranks:
        _point(ranks, "one_sided")
        before = ranks.run(resident_mb)
        run(_sweep(ranks.layout, "one_sided", fabric, tuple(range(1, 401, 4))), ranks=ranks, progress=False)
        return max(after - was for after, was in zip(ranks.run(resident_mb), before, strict=True))


if __name__ == "__main__":
    main()

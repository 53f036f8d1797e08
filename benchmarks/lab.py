"""What the lab itself costs: importing it, starting ranks, going on to another layout.

    python -m benchmarks

Warm and fresh ranks stand side by side in one run, since that is what keeping ranks warm is for.
"""

from __future__ import annotations

import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator

from benchmarks.on_ranks import open_check_close, resident_mb
from mnnvl_lab.layout import Layout
from mnnvl_lab.measure import Sampling, Sweep
from mnnvl_lab.ranks import Ranks
from mnnvl_lab.sweep import run
from mnnvl_lab.transport.exchange import Exchange

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


def main() -> None:
    for name, milliseconds in _costs():
        print(f"{name:58} {milliseconds:10.1f} ms", flush=True)
    print(f"{'memory of a rank after a sweep of 100 points':58} {memory_after_sweep_mb():10.0f} MB beyond a fresh one")


def _costs() -> Iterator[tuple[str, float]]:
    yield "import mnnvl_lab, neither torch nor flashinfer", statistics.median(_import_ms() for _ in range(REPEATS))
    yield "start 4 ranks", _ms(lambda: Ranks(Layout(dp=4)).close())
    with Ranks(Layout(dp=4)) as ranks:
        for mode in ("one_sided", "two_sided"):
            _go_on(ranks, Layout(dp=4), mode)
            layouts = [Layout(tp=2, dp=2), Layout(tp=4), Layout(dp=4)] * 2
            times_ms = [_ms(lambda layout=layout, mode=mode: _go_on(ranks, layout, mode)) for layout in layouts]
            yield f"another layout on warm ranks, {mode}: opened, checked, closed", statistics.median(times_ms)
    yield "the same on fresh processes", _ms(_afresh)


def _import_ms() -> float:
    done = subprocess.run([sys.executable, "-c", IMPORTED], capture_output=True, text=True, check=True)
    return float(done.stdout)


def _ms(call: Callable[[], object]) -> float:
    begin = time.perf_counter()
    call()
    return (time.perf_counter() - begin) * 1e3


def _sweep(layout: Layout, mode: str, tokens: tuple[int, ...] = (128,)) -> Sweep:
    return Sweep(layouts=(layout,), modes=(mode,), tokens=tokens, sampling=QUICK, **SHAPE)


def _go_on(ranks: Ranks, layout: Layout, mode: str) -> None:
    ranks.use(layout)
    ranks.run(open_check_close, Exchange(mode=mode, layout=layout, max_tokens=128, **SHAPE))


def _afresh() -> None:
    with Ranks(Layout(tp=2, dp=2)) as ranks:
        _go_on(ranks, ranks.layout, "one_sided")


def _point(ranks: Ranks, layout: Layout, mode: str) -> None:
    run(_sweep(layout, mode), ranks=ranks, progress=False)


def memory_after_sweep_mb() -> float:
    """Resident memory that 100 points leave in the fullest of 4 ranks, beyond what one point leaves."""
    with Ranks(Layout(dp=4)) as ranks:
        _point(ranks, Layout(dp=4), "one_sided")
        before = ranks.run(resident_mb)
        run(_sweep(Layout(dp=4), "one_sided", tuple(range(1, 401, 4))), ranks=ranks, progress=False)
        return max(after - was for after, was in zip(ranks.run(resident_mb), before, strict=True))

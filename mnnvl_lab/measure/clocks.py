"""The three clocks. They answer different questions and are never mixed.

`eager`
    One operation after a barrier: what a caller waits who enters with the others. Launch cost and the skew between the
    ranks' entries are inside. On a GPU between two CUDA events, on the CPU by the monotonic clock.
`graph`
    Rounds back to back, replayed from a CUDA graph, a replay divided by its rounds: what a decoding step pays. A replay
    that is not timed runs just before, so that the ranks enter the timed one together.
`kernel`
    The span on the device from the first kernel of a phase to the end of its last, by the profiler: no launch cost.
    Every launch is queued behind a sleeping kernel and a round that is not timed, so that no rank waits for a host.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

import torch

from mnnvl_lab.errors import Refused
from mnnvl_lab.exchange import Batch
from mnnvl_lab.measure.point import Delay, Sample, Sampling
from mnnvl_lab.transport.base import Transport

ANNOTATION = "mnnvl_lab."
L2_FLUSH_BYTES = 256 << 20  # several times the L2 of any GPU
SLEEP_CYCLES = 4_000_000  # about 2 ms, longer than it takes to launch two rounds under the profiler


@dataclass(frozen=True, kw_only=True)
class Round:
    """What a clock times: the phases of one checked round, as calls that only enqueue.

    Attributes:
        transport: open, and checked with this batch.
        batch: what this rank sends.
        partials: what its experts made of the checked round, where combine wants it.
        delay: a straggler made on purpose.
        cold_l2: the L2 cache is overwritten before every operation.
        found: what the last prepare and dispatch returned, by phase: each phase is timed by itself.
    """

    transport: Transport
    batch: Batch
    partials: torch.Tensor
    delay: Delay
    cold_l2: bool = False
    found: dict[str, object] = field(default_factory=dict)

    @property
    def device(self) -> torch.device:
        return self.transport.rank.device

    @property
    def phases(self) -> tuple[str, ...]:
        """What is timed by itself, in turn: the transport's phases, and the fake experts before combine."""
        *before, combine = self.transport.phases
        return (*before, "experts", combine)

    def phase(self, name: str) -> None:
        """Enqueue one phase; or for `round` all of the transport's in turn, without the experts.

        The fake experts read and write every row once, which is the least that experts can do.
        """
        match name:
            case "experts":
                self.partials.mul_(1)
            case "prepare":
                self.found["prepare"] = self.transport.enqueue_prepare(self.batch)
            case "dispatch":
                self.found["dispatch"] = self.transport.enqueue_dispatch(self.batch, self.found.get("prepare"))
            case "combine":
                self.transport.enqueue_combine(self.partials, self.found["dispatch"])
            case "round":
                for part in self.transport.phases:
                    self.phase(part)

    def barrier(self) -> None:
        """All ranks of the EP group, with nothing left in flight on their devices."""
        if self.cold_l2:
            flush_l2(self.device)
        synchronize(self.device)
        self.transport.group.barrier()

    def straggle(self, phase: str) -> None:
        """Enter late, if this is the delayed rank and the phase is the first of a round or the dispatch."""
        late_us = self.delay.delay_us
        if late_us and phase in ("dispatch", "round") and self.transport.ep_rank == self.delay.ep_rank:
            spin_us(late_us)


def spin_us(duration_us: float) -> None:
    """Keep this thread busy: sleeping would wake at the scheduler's pleasure."""
    until = time.perf_counter_ns() + duration_us * 1e3
    while time.perf_counter_ns() < until:
        pass


def synchronize(device: torch.device) -> None:
    """Wait for this thread's stream. Other threads may ask the device meanwhile, for the flags of a hanging round."""
    if device.type == "cuda":
        torch.cuda.current_stream(device).synchronize()


def flush_l2(device: torch.device) -> None:
    """Overwrite a buffer that is larger than the L2 cache."""
    if device.type == "cuda":
        torch.empty(L2_FLUSH_BYTES, dtype=torch.uint8, device=device).zero_()


def timed(device: torch.device, call: Callable[[], None]) -> tuple[float, float]:
    """Start on the host's monotonic clock and duration of a call, both in microseconds."""
    if device.type != "cuda":
        start_ns = time.perf_counter_ns()
        call()
        return start_ns / 1e3, (time.perf_counter_ns() - start_ns) / 1e3
    begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    start_ns = time.perf_counter_ns()
    begin.record()
    call()
    end.record()
    end.synchronize()
    return start_ns / 1e3, begin.elapsed_time(end) * 1e3


def eager(work: Round, sampling: Sampling) -> Iterator[list[Sample]]:
    """Endless iterations of every phase and of the whole round, each after a barrier."""
    iteration = -sampling.warmup
    while True:
        samples = [_eager_sample(work, phase, iteration) for phase in (*work.phases, "round")]
        if iteration >= 0:
            yield samples
        iteration += 1


def _eager_sample(work: Round, phase: str, iteration: int) -> Sample:
    work.barrier()
    work.straggle(phase)
    start_us, latency_us = timed(work.device, lambda: work.phase(phase))
    return Sample(phase=phase, iteration=iteration, start_us=start_us, latency_us=latency_us)


def graph(work: Round, sampling: Sampling) -> Iterator[list[Sample]]:
    """Endless replays of a CUDA graph of `graph_rounds` rounds."""
    require_cuda("graph", work.device)
    replay = captured(work, sampling.graph_rounds)
    iteration = -sampling.warmup
    while True:
        work.barrier()
        replay()
        start_us, latency_us = timed(work.device, replay)
        if iteration >= 0:
            per_round_us = latency_us / sampling.graph_rounds
            yield [Sample(phase="round", iteration=iteration, start_us=start_us, latency_us=per_round_us)]
        iteration += 1


def captured(work: Round, rounds: int) -> Callable[[], None]:
    """Capture rounds back to back after one on a side stream, as graphs ask for."""
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        work.phase("round")
    torch.cuda.current_stream().wait_stream(side)
    work.barrier()
    recorded = torch.cuda.CUDAGraph()
    with torch.cuda.graph(recorded, stream=side, capture_error_mode="thread_local"):
        for _ in range(rounds):
            work.phase("round")
    return recorded.replay


def kernel(work: Round, sampling: Sampling) -> Iterator[list[Sample]]:
    """Batches of profiled iterations: the span of every phase's kernels on the device."""
    require_cuda("kernel", work.device)
    for _ in range(sampling.warmup):
        work.barrier()
        work.phase("round")
    first = 0
    while True:
        with _profiler() as profile:
            for _ in range(sampling.min_samples):
                _annotated_round(work)
            synchronize(work.device)
        yield from spans(profile.events(), first)
        first += sampling.min_samples


def _annotated_round(work: Round) -> None:
    work.barrier()
    torch.cuda._sleep(SLEEP_CYCLES)
    work.phase("round")
    for phase in work.phases:
        with torch.profiler.record_function(ANNOTATION + phase):
            work.phase(phase)


@contextmanager
def _profiler():
    activities = [torch.profiler.ProfilerActivity.CPU, torch.profiler.ProfilerActivity.CUDA]
    with torch.profiler.profile(activities=activities, acc_events=True) as profile:
        yield profile


def spans(events, first: int) -> Iterator[list[Sample]]:
    """Iterations out of a profile: the device side of each annotation covers exactly its kernels."""
    device_side = torch.autograd.DeviceType.CUDA
    by_phase: dict[str, list] = {}
    for event in sorted(events, key=lambda e: e.time_range.start):
        if event.device_type == device_side and event.name.startswith(ANNOTATION):
            by_phase.setdefault(event.name.removeprefix(ANNOTATION), []).append(event.time_range)
    for index, ranges in enumerate(zip(*by_phase.values(), strict=True)):
        yield [
            Sample(phase=phase, iteration=first + index, start_us=span.start, latency_us=span.elapsed_us())
            for phase, span in zip(by_phase, ranges, strict=True)
        ]


def require_cuda(clock: str, device: torch.device) -> None:
    if device.type != "cuda":
        raise Refused(f"clock {clock} on device {device.type}: it needs a CUDA device; use clock eager")


CLOCK_FUNCTIONS = {"eager": eager, "graph": graph, "kernel": kernel}

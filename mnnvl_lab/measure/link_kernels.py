"""What one GPU's memory and a link between two GPUs can do: one process that sees both, so that no rank waits.

Copies run back to back, `REPEATS` a sample, between two CUDA events on the GPU that does the work. Where both ways are
busy the slower one counts.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial

import torch
import triton
import triton.language as tl

from mnnvl_lab.errors import LabError
from mnnvl_lab.measure.links import LinkSample, take_samples

REPEATS = 10
LAUNCHES = 200  # nodes of the graph of empty kernels
PING_PONGS = 1000  # round trips of one sample
SPINS = 5_000_000  # polls of one sample altogether, a few seconds: then a kernel that waits in vain ends by itself
BLOCK = 4096  # int32 values of one program of the copy kernel
WORD_BYTES = 4


@triton.jit
def _copy(source, target, BLOCK: tl.constexpr):
    at = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    tl.store(target + at, tl.load(source + at))


@triton.jit
def _nothing(unused):
    pass


@triton.jit(do_not_specialize=["ping_pongs", "spins"])
def _ping_pong(mine, theirs, left_over, ping_pongs, spins, SERVES: tl.constexpr):
    """Raise the peer's flag by one and wait until it has raised mine; the other side answers."""
    left = spins
    for turn in range(1, ping_pongs + 1):
        if SERVES:
            tl.atomic_add(theirs, 1, sem="release", scope="sys")
        while (tl.load(mine, volatile=True) != turn) & (left > 0):
            left -= 1
        if not SERVES:
            tl.atomic_add(theirs, 1, sem="release", scope="sys")
    tl.store(left_over, left)


@dataclass(frozen=True, kw_only=True)
class Way:
    """Copies in one direction on streams of their own: torch ties a copy to the current streams of both GPUs.

    Attributes:
        source, target: int32, of equal length; on two GPUs or on one.
        near, far: streams of the GPU that does the work and of the other; equal within one GPU.
    """

    source: torch.Tensor
    target: torch.Tensor
    near: torch.cuda.Stream
    far: torch.cuda.Stream

    @contextmanager
    def current(self) -> Iterator[None]:
        """Inside, the streams are current on both GPUs, and the GPU that works is the current one."""
        with torch.cuda.stream(self.far), torch.cuda.stream(self.near):
            yield


def gpu_samples(here: torch.device, *, size_bytes: int, samples: int) -> Iterator[LinkSample]:
    """All limits of this GPU, and of its link to the next one where there is one that it can reach."""
    words = size_bytes // WORD_BYTES // BLOCK * BLOCK
    yield from _local(here, words, samples)
    there = torch.device("cuda", (here.index + 1) % torch.cuda.device_count())
    if there != here and torch.cuda.can_device_access_peer(here, there):
        yield from _between(here, there, words, samples)
    torch.cuda.empty_cache()


def _local(here: torch.device, words: int, samples: int) -> Iterator[LinkSample]:
    moved_bytes, way = 2 * words * WORD_BYTES, _way(here, here, words, works_on=here)
    for quantity, copy in (("memory_copy", _by_copy_engine), ("memory_copy_by_kernel", _by_kernel)):
        yield from take_samples(quantity, "local", moved_bytes, partial(_copies_us, [way], copy), samples)
    yield from take_samples("launch", "local", 0, _launches(here), samples)


def _between(here: torch.device, there: torch.device, words: int, samples: int) -> Iterator[LinkSample]:
    """The copy engine goes first: its first copy in each direction lets the kernels reach the peer's memory."""
    works_on = {"copy_engine": 0, "kernel_stores": 0, "kernel_loads": 1}  # source or target of each direction
    for quantity, side in works_on.items():
        copy = _by_copy_engine if quantity == "copy_engine" else _by_kernel
        forth, back = (_way(*ends, words, works_on=ends[side]) for ends in ((here, there), (there, here)))
        for direction, ways in (("both_ways", [forth, back]), ("one_way", [forth])):
            moved_bytes = len(ways) * words * WORD_BYTES
            yield from take_samples(quantity, direction, moved_bytes, partial(_copies_us, ways, copy), samples)
            _require_copied(ways, quantity)
    yield from take_samples("flag_round_trip", "there_and_back", 0, _ping_pongs(here, there), samples)


def _way(source: torch.device, target: torch.device, words: int, *, works_on: torch.device) -> Way:
    other = target if works_on == source else source
    near = torch.cuda.Stream(works_on)
    return Way(
        source=torch.randint(1, 2**31 - 1, (words,), dtype=torch.int32, device=source),
        target=torch.zeros(words, dtype=torch.int32, device=target),
        near=near,
        far=near if other == works_on else torch.cuda.Stream(other),
    )


def _by_copy_engine(way: Way) -> None:
    way.target.copy_(way.source, non_blocking=True)


def _by_kernel(way: Way) -> None:
    _copy[(way.source.numel() // BLOCK,)](way.source, way.target, BLOCK=BLOCK, num_warps=8)


def _copies_us(ways: Sequence[Way], copy: Callable[[Way], None]) -> float:
    """One copy of each way, in microseconds, all ways at once."""
    begins, ends = ([torch.cuda.Event(enable_timing=True) for _ in ways] for _ in range(2))
    _synchronize_all()
    for way, begin in zip(ways, begins, strict=True):
        begin.record(way.near)
    for _ in range(REPEATS):
        for way in ways:
            with way.current():
                copy(way)
    for way, end in zip(ways, ends, strict=True):
        end.record(way.near)
    _synchronize_all()
    return max(begin.elapsed_time(end) for begin, end in zip(begins, ends, strict=True)) * 1e3 / REPEATS


def _require_copied(ways: Sequence[Way], quantity: str) -> None:
    for way in ways:
        if not torch.equal(way.target, way.source.to(way.target.device)):
            raise LabError(f"{quantity} from {way.source.device} to {way.target.device} brought other bytes than sent")
        way.target.zero_()


def _launches(here: torch.device) -> Callable[[], float]:
    """A graph of empty kernels; each call replays it and gives the time of one."""
    with torch.cuda.device(here):
        unused = torch.zeros(1, dtype=torch.int32, device=here)
        _nothing[(1,)](unused, num_warps=1)
        torch.cuda.synchronize(here)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, capture_error_mode="thread_local"):
            for _ in range(LAUNCHES):
                _nothing[(1,)](unused, num_warps=1)

    def once() -> float:
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        with torch.cuda.device(here):
            begin.record()
            graph.replay()
            end.record()
        end.synchronize()
        return begin.elapsed_time(end) * 1e3 / LAUNCHES

    return once


def _ping_pongs(here: torch.device, there: torch.device) -> Callable[[], float]:
    """A flag to and fro between two kernels that are there already; each call gives the time of one round trip."""
    devices = (here, there)
    flags, left_over = ([torch.zeros(1, dtype=torch.int32, device=d) for d in devices] for _ in range(2))

    def play(side: int, spins: int) -> None:
        with torch.cuda.device(devices[side]):
            own, peer = flags[side], flags[1 - side]
            _ping_pong[(1,)](own, peer, left_over[side], PING_PONGS, spins, SERVES=side == 0, num_warps=1)

    def once() -> float:
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        for flag in flags:
            flag.zero_()
        _synchronize_all()
        play(1, SPINS)  # it waits, so that only the side which is timed starts a ping-pong
        with torch.cuda.device(here):
            begin.record()
            play(0, SPINS)
            end.record()
        _synchronize_all()
        if min(int(left) for left in left_over) == 0:
            raise LabError(f"flags between {here} and {there} did not come within {SPINS} polls")
        return begin.elapsed_time(end) * 1e3 / PING_PONGS

    for side in (0, 1):
        play(side, 0)  # compiled and loaded before anything spins
    _synchronize_all()
    return once


def _synchronize_all() -> None:
    for index in range(torch.cuda.device_count()):
        torch.cuda.synchronize(index)

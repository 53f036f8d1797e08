"""Memory in use on a GPU or host after each step of a transport, beside what was predicted."""

from __future__ import annotations

import gc
import mmap
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from types import MappingProxyType
from typing import TYPE_CHECKING

import pandas as pd
import psutil

from mnnvl_lab.measure.point import Point
from mnnvl_lab.ranks import Ranks
from mnnvl_lab.transport.flashinfer.memory import device_memory_bytes
from mnnvl_lab.workspace import Allocation
from mnnvl_lab.workspace.mnnvl import align_up

if TYPE_CHECKING:
    from mnnvl_lab.ranks.rank import Rank

SEGMENT_NAME = "mnnvl_lab"  # in the paths of `transport.segments`
LISTS_MAPPINGS = hasattr(psutil.Process, "memory_maps")  # not on macOS


@dataclass(frozen=True, kw_only=True)
class Reading:
    """Memory at one moment, while no rank allocates or frees.

    Attributes:
        used_bytes: of the GPU, by all processes; on `host` the segments that this process maps.
        torch_bytes: held by torch's allocators, of all ranks on the GPU; 0 on `host`.
        resident_bytes: this process's share of the machine's own memory.
    """

    used_bytes: int
    torch_bytes: int
    resident_bytes: int


def read_memory(rank: Rank) -> Reading:
    """Between two barriers, so that no rank is in the middle of a step."""
    world = rank.group("world")
    if rank.device.type == "cuda":
        reading = _read_device(rank)
    else:
        world.barrier()
        reading = Reading(used_bytes=segment_bytes(), torch_bytes=0, resident_bytes=_resident_bytes())
    world.barrier()
    return reading


def _read_device(rank: Rank) -> Reading:
    import torch

    torch.cuda.synchronize(rank.device)
    held = rank.group("world").allgather((str(rank.device), torch.cuda.memory_reserved(rank.device)))
    return Reading(
        used_bytes=device_memory_bytes(rank.device),
        torch_bytes=sum(reserved for device, reserved in held if device == str(rank.device)),
        resident_bytes=_resident_bytes(),
    )


def segment_bytes() -> int:
    """Bytes of rows of workspaces that this process maps; 0 where the system does not list mappings."""
    maps = psutil.Process().memory_maps(grouped=False) if LISTS_MAPPINGS else ()
    return sum(entry.size for entry in maps if SEGMENT_NAME in _file(entry.path))


def _file(path: str) -> str:
    """Rows are `/memfd:mnnvl_lab-row`, or `segment-row-...` in a directory of the ranks whose name has it too."""
    return path if path.startswith("/memfd:mnnvl_lab-row") or "/segment-row-" in path else ""


def _resident_bytes() -> int:
    return psutil.Process().memory_info().rss


def release(rank: Rank) -> None:
    """Give back what only garbage and torch's cache still hold."""
    gc.collect()
    if rank.device.type == "cuda":
        import torch

        torch.cuda.synchronize(rank.device)
        torch.cuda.empty_cache()


LEDGER_TIMEOUT_S = 300
CAUSES: Mapping[str, str] = MappingProxyType(
    {
        "before": "the CUDA context, the driver's own, and whatever else is on the GPU",
        "first use": "modules, and for NCCL its communicator's buffers",
        "open": "",
        "round": "kernels that load at their first use",
        "graph": "the instantiated graph",
        "release": "the graph, given back",
        "close": "",
    }
)
"""The steps, in order, and what takes the memory that nobody predicts."""


@dataclass(frozen=True, kw_only=True)
class Entry:
    """One step of the ledger. Changes are against the step before; of a GPU, all of its ranks together.

    Attributes:
        step: a name of `CAUSES`.
        used_bytes: after the step.
        change_bytes: what the step took; negative for what it gave back.
        torch_bytes: of it, what torch's allocators took.
        predicted_bytes: of it, what a workspace must take or give back; None where nothing is predicted.
        resident_bytes: change of the resident set.
        cause: what takes the rest, where there may be one.
    """

    step: str
    used_bytes: int
    change_bytes: int
    torch_bytes: int
    predicted_bytes: int | None
    resident_bytes: int
    cause: str

    @property
    def rest_bytes(self) -> int:
        """What neither torch nor the prediction explains."""
        return self.change_bytes - self.torch_bytes - (self.predicted_bytes or 0)


class Ledger:
    """The entries of one rank. Every `note` is collective over all ranks.

    Attributes:
        sharing: ranks on this rank's GPU: one reading sees the memory of them all.
    """

    def __init__(self, rank: Rank):
        self.rank, self.entries = rank, []
        self.sharing = rank.group("world").allgather(str(rank.device)).count(str(rank.device))
        self._last = Reading(used_bytes=0, torch_bytes=0, resident_bytes=0)

    def note(self, step: str, *, predicted_bytes: int | None = None) -> None:
        """Enter what has changed since the last step.

        Args:
            predicted_bytes: of one rank.
        """
        last, self._last = self._last, read_memory(self.rank)
        self.entries.append(
            Entry(
                step=step,
                used_bytes=self._last.used_bytes,
                change_bytes=self._last.used_bytes - last.used_bytes,
                torch_bytes=self._last.torch_bytes - last.torch_bytes,
                predicted_bytes=self._of_reading(predicted_bytes),
                resident_bytes=self._last.resident_bytes - last.resident_bytes,
                cause=CAUSES[step],
            )
        )

    def _of_reading(self, predicted_bytes: int | None) -> int | None:
        """What one rank must take, as a reading sees it."""
        if self.rank.fabric == "host":
            return predicted_bytes if LISTS_MAPPINGS else None
        return predicted_bytes and predicted_bytes * self.sharing


def keep_ledger(rank, point: Point) -> list[Entry]:
    """Rank function: one transport from before its opening to after its end. Collective over all ranks.

    A round of one token goes ahead (`first use`): it loads modules and lets libraries take what they keep for good.
    Graph and tensors go before the workspace does, so that `open` and `close` show it alone.
    """
    from mnnvl_lab.transport import open_transport

    ledger = Ledger(rank)
    ledger.note("before")
    _first_use(rank, point)
    ledger.note("first use")
    transport = open_transport(rank, point.exchange)
    predicted_bytes = workspace_bytes(transport)
    ledger.note("open", predicted_bytes=predicted_bytes)
    with transport:
        _rounds(ledger, transport, point)
        release(rank)
        ledger.note("release")
    del transport
    gc.collect()
    ledger.note("close", predicted_bytes=-predicted_bytes)
    return ledger.entries


def workspace_bytes(transport) -> int:
    """What an open transport must have taken on this rank: its plan's workspaces, each rounded up.

    On GPUs to the driver's granularity, own rows alone; on `host` every rank's row counts, in pages, as each process
    maps them all, and prepare's part shares the row of the FIFOs. The baselines have no workspace.
    """
    plan = transport.workspace
    asked = [] if plan is None else [plan.workspace_bytes, getattr(plan, "prepare_bytes", 0)]
    if transport.rank.fabric == "host":
        return transport.ep_size * align_up(sum(asked), mmap.PAGESIZE)
    allocations = [Allocation(asked_bytes=size, ep_size=transport.ep_size) for size in asked if size]
    return sum(allocation.allocated_bytes for allocation in allocations)


def measure_ledger(
    point: Point, ranks: Ranks, *, provenance: Mapping[str, object] = MappingProxyType({})
) -> pd.DataFrame:
    """The ledger of a point on warm ranks; on fresh ones `before` is little more than the context.

    Args:
        provenance: of the run (`records.provenance`), kept in `attrs`.

    Returns:
        One row per rank and step: the fields of `Entry`, `rest_bytes`, and the point's columns.
    """
    ranks.use(point.exchange.layout)
    table = ledger_table(ranks.run(keep_ledger, point, timeout_s=LEDGER_TIMEOUT_S))
    table = table.assign(fabric=ranks.fabric, **point.columns)
    table.attrs = {"mnnvl_lab": dict(provenance)}
    return table


def ledger_table(per_rank: Sequence[Sequence[Entry]]) -> pd.DataFrame:
    """One row per rank and step; `predicted_bytes` is missing where nothing is predicted."""
    rows = [
        {"rank": rank} | asdict(entry) | {"rest_bytes": entry.rest_bytes}
        for rank, entries in enumerate(per_rank)
        for entry in entries
    ]
    return pd.DataFrame(rows).astype({"predicted_bytes": "Int64"})


def _first_use(rank: Rank, point: Point) -> None:
    """Open, one round of one token per rank, close: everything that happens once in a process."""
    from mnnvl_lab.measure.check import checked_round
    from mnnvl_lab.measure.workload import Work
    from mnnvl_lab.transport import open_transport

    load = replace(point.load, tokens=1)
    small = replace(point, exchange=replace(point.exchange, max_tokens=1), load=load)
    work = Work.of(rank, small)
    with open_transport(rank, small.exchange) as transport:
        checked_round(transport, work, work.batch())
    release(rank)


def _rounds(ledger: Ledger, transport, point: Point) -> None:
    """A round, checked; on GPUs the same captured in a graph and replayed. All tensors are gone afterwards."""
    from mnnvl_lab.measure.check import checked_round
    from mnnvl_lab.measure.clocks import Round, captured, synchronize
    from mnnvl_lab.measure.workload import Work

    rank, work = ledger.rank, Work.of(ledger.rank, point)
    batch = work.batch()
    partials, _ = checked_round(transport, work, batch)
    ledger.note("round", predicted_bytes=0)
    if rank.device.type == "cuda":
        timed = Round(transport=transport, batch=batch, partials=partials, delay=point.delay)
        replay = captured(timed, point.sampling.graph_rounds)
        timed.barrier()
        replay()
        synchronize(rank.device)
        ledger.note("graph")

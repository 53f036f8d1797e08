"""Memory overhead of four habits in practice, each as a number of bytes.

Three are arithmetic on the workspace; the fourth, growth that keeps what it outgrew, is also run on FlashInfer's own
class, beside this package's transport doing the same.
"""

from __future__ import annotations

import gc
import warnings
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import accumulate, pairwise
from typing import TYPE_CHECKING

import pandas as pd

from mnnvl_lab.errors import Refused
from mnnvl_lab.exchange import ExchangeShape
from mnnvl_lab.measure.memory import read_memory
from mnnvl_lab.workspace import Allocation, OneSidedWorkspace

if TYPE_CHECKING:
    from mnnvl_lab.exchange import Exchange
    from mnnvl_lab.ranks.rank import Rank


@dataclass(frozen=True, kw_only=True)
class MemoryOverhead:
    """One habit, and what one rank would do with.

    Attributes:
        name: of the habit.
        what: `memory` of the GPU, or `addresses`, of which there are plenty.
        taken_bytes: with the habit.
        needed_bytes: without it.
        because: how it comes about.
    """

    name: str
    what: str
    taken_bytes: int
    needed_bytes: int
    because: str

    @property
    def overhead_bytes(self) -> int:
        return self.taken_bytes - self.needed_bytes

    @property
    def share(self) -> float:
        """Of what is taken, the part that is not needed."""
        return self.overhead_bytes / self.taken_bytes


def sized_by_whole_batch(need: ExchangeShape) -> MemoryOverhead:
    """The one-sided workspace for all tokens of a batch, where with SP-MoE a rank dispatches a TP-th of them.

    vLLM sizes it by `max_num_batched_tokens` either way (`all2all_utils.py`).

    Args:
        need: its `max_tokens` is that of the batch.
    """
    share = replace(need, max_tokens=-(-need.max_tokens // need.layout.tp))
    return MemoryOverhead(
        name="sized by the whole batch",
        what="memory",
        taken_bytes=_allocated_bytes(need),
        needed_bytes=_allocated_bytes(share),
        because=f"each TP rank reserves {need.max_tokens} tokens and dispatches {share.max_tokens}",
    )


def wide_combine(need: ExchangeShape) -> MemoryOverhead:
    """Combine rows of 16 or 32 bits a value where dispatch sends fewer: what if they came back as they went out."""
    workspace = OneSidedWorkspace.of(need)
    narrow = replace(workspace, combine_bytes_per_token=sum(part.row_bytes for part in need.payload_parts))
    return MemoryOverhead(
        name="wide combine",
        what="memory",
        taken_bytes=workspace.workspace_bytes,
        needed_bytes=min(narrow.workspace_bytes, workspace.workspace_bytes),
        because=f"{need.combine_dtype} combine is {combine_share(need):.0%} of it under {need.format} dispatch",
    )


def combine_share(need: ExchangeShape) -> float:
    """The part of the one-sided workspace that holds the rows of combine."""
    workspace = OneSidedWorkspace.of(need)
    return workspace.combine_bytes / workspace.workspace_bytes


def reserved_addresses(need: ExchangeShape) -> MemoryOverhead:
    """Ranks lie at multiples of 512 MiB in the address space, whatever their rows take (`MnnvlMemory`)."""
    allocation = Allocation(asked_bytes=OneSidedWorkspace.of(need).workspace_bytes, ep_size=need.ep_size)
    return MemoryOverhead(
        name="512 MiB stride",
        what="addresses",
        taken_bytes=allocation.reserved_bytes,
        needed_bytes=allocation.mapped_bytes,
        because=f"{need.ep_size} ranks of {allocation.allocated_bytes} bytes lie {allocation.rank_stride_bytes} apart",
    )


def kept_after_growth(need: ExchangeShape, tokens: Sequence[int]) -> MemoryOverhead:
    """A workspace for each `max_tokens` in turn, none given back: `MoeAlltoAll._WORKSPACE_CACHE` holds them all."""
    sizes = [_allocated_bytes(replace(need, max_tokens=most)) for most in _growing(tokens)]
    return MemoryOverhead(
        name="kept after growth",
        what="memory",
        taken_bytes=sum(sizes),
        needed_bytes=sizes[-1],
        because=f"workspaces of {', '.join(map(str, tokens))} tokens are all cached",
    )


def overhead_table(overheads: Sequence[MemoryOverhead]) -> pd.DataFrame:
    """One row a habit: `name, what, taken_bytes, needed_bytes, overhead_bytes, share, because`."""
    names = ("name", "what", "taken_bytes", "needed_bytes", "overhead_bytes", "share", "because")
    return pd.DataFrame([{name: getattr(overhead, name) for name in names} for overhead in overheads], columns=names)


@dataclass(frozen=True, kw_only=True)
class Growth:
    """Memory of one GPU, all of its ranks together, above what was taken before; an entry for each size.

    Attributes:
        tokens: `max_tokens` in turn.
        predicted_bytes: the workspaces so far, added up, each rounded up to the driver's granularity.
        upstream_bytes: measured with `MoeAlltoAll`, whose older instances are dropped.
        upstream_left_bytes: after its cache was emptied.
        own_bytes: measured with this package's transport, closed and opened anew.
        own_left_bytes: after it was closed for good.
    """

    tokens: tuple[int, ...]
    predicted_bytes: tuple[int, ...]
    upstream_bytes: tuple[int, ...]
    upstream_left_bytes: int
    own_bytes: tuple[int, ...]
    own_left_bytes: int


def grow(rank: Rank, exchange: Exchange, tokens: Sequence[int]) -> Growth:
    """Rank function, on GPUs: let FlashInfer's class and this package's transport grow. Collective over all ranks.

    Args:
        exchange: one-sided, of format bf16, which is all that `MoeAlltoAll` sizes for by itself.
        tokens: `max_tokens` in turn, growing.

    Raises:
        Refused: another mode, format or fabric, or tokens that do not grow.
    """
    from mnnvl_lab.transport import open_transport

    _require_gpu(rank, exchange)
    sizes = [replace(exchange, max_tokens=most) for most in _growing(tokens)]
    with open_transport(rank, sizes[0]):
        pass  # modules load
    sharing = rank.group("world").allgather(str(rank.device)).count(str(rank.device))
    before = _workspaces_bytes(rank)
    upstream = [_workspaces_bytes(rank) - before for _ in _upstream_in_turn(rank, sizes)]
    _forget(rank)
    upstream_left = _workspaces_bytes(rank) - before
    own = []
    for size in sizes:
        with open_transport(rank, size):
            own.append(_workspaces_bytes(rank) - before)
    return Growth(
        tokens=tuple(tokens),
        predicted_bytes=tuple(accumulate(sharing * _allocated_bytes(size) for size in sizes)),
        upstream_bytes=tuple(upstream),
        upstream_left_bytes=upstream_left,
        own_bytes=tuple(own),
        own_left_bytes=_workspaces_bytes(rank) - before,
    )


def _upstream_in_turn(rank: Rank, sizes: Sequence[Exchange]):
    """`MoeAlltoAll` of each size, only the newest alive; what the older ones took is the cache's."""
    from flashinfer.comm.mapping import Mapping
    from flashinfer.comm.mnnvl import MnnvlConfig
    from flashinfer.comm.trtllm_moe_alltoall import MoeAlltoAll

    from mnnvl_lab.transport.flashinfer.memory import GroupBackend

    group = rank.group("ep")
    R = group.size
    for size in sizes:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)  # it is what is looked at
            alltoall = MoeAlltoAll(
                Mapping(world_size=R, rank=group.rank, gpus_per_node=R, tp_size=R, moe_ep_size=R),
                max_num_tokens=size.max_tokens,
                top_k=size.top_k,
                num_experts=size.experts,
                hidden_size=size.hidden,
                mnnvl_config=MnnvlConfig(comm_backend=GroupBackend(group)),
            )
        yield
        del alltoall
        gc.collect()


def _forget(rank: Rank) -> None:
    from mnnvl_lab.transport.flashinfer.small_round import Call
    from mnnvl_lab.transport.flashinfer.upstream import forget

    group = rank.group("ep")
    forget(Call(rank=rank, ep=group, group=group))


def _workspaces_bytes(rank: Rank) -> int:
    """Memory in use on the GPU that torch's allocators do not hold."""
    reading = read_memory(rank)
    return reading.used_bytes - reading.torch_bytes


def _allocated_bytes(need: ExchangeShape) -> int:
    asked_bytes = OneSidedWorkspace.of(need).workspace_bytes
    return Allocation(asked_bytes=asked_bytes, ep_size=need.ep_size).allocated_bytes


def _growing(tokens: Sequence[int]) -> Sequence[int]:
    if not tokens or any(later <= earlier for earlier, later in pairwise(tokens)):
        raise Refused(f"tokens are {list(tokens)}: they must grow from one workspace to the next; sort them")
    return tokens


def _require_gpu(rank: Rank, exchange: Exchange) -> None:
    if rank.fabric == "host":
        raise Refused("fabric host: MoeAlltoAll needs GPUs; use kept_after_growth for the arithmetic")
    if (exchange.mode, exchange.format) != ("one_sided", "bf16"):
        raise Refused(f"{exchange.mode} of {exchange.format}: MoeAlltoAll sizes for one_sided of bf16; use these")

"""Groups: collective operations among some ranks of a layout, over Gloo or NCCL, and through memory that they share."""

from __future__ import annotations

import hashlib
import pickle
from collections.abc import Callable, Sequence
from contextlib import contextmanager
from functools import cached_property
from typing import TYPE_CHECKING, Any
from unittest import mock

from mnnvl_lab.errors import RankError, Refused

if TYPE_CHECKING:
    import torch.distributed as dist

    from mnnvl_lab.ranks.board import Board

SMALL_BYTES = 2048  # of one gathered object: signatures, problems and a few samples fit


class Group:
    """Collective operations among some ranks of the layout. Every member calls the same ones in the same order.

    Connections are made at first use, by the members alone: other ranks need not take part.

    Attributes:
        name: `world`, `ep`, `tp`, `dp`, `pcp` or `pp`.
        ranks: global ranks of the members, in the group's order.
        rank: this process's place among them.
        size: how many they are.
        board: makes the board of a group whose members share memory; without it Gloo carries everything.
        begun, done: collective calls that this member has begun, and finished: who lags behind is whom others await.
    """

    def __init__(
        self,
        *,
        name: str,
        ranks: tuple[int, ...],
        member: int,
        fabric: str,
        board: Callable[[Group], Board] | None = None,
    ):
        self.name, self.ranks, self.fabric, self._make_board = name, tuple(ranks), fabric, board
        self.rank, self.size = self.ranks.index(member), len(self.ranks)
        self.begun = self.done = 0

    def __repr__(self):
        return f"Group({self.name}, ranks {list(self.ranks)}, this is {self.rank})"

    @cached_property
    def process_group(self) -> dist.ProcessGroup:
        """The torch.distributed group over Gloo, for objects and host tensors."""
        return self._new_group("gloo")

    @cached_property
    def device_group(self) -> dist.ProcessGroup:
        """The torch.distributed group for tensors on the ranks' own device: NCCL where each rank has a GPU.

        Raises:
            Refused: several ranks share a GPU, which NCCL does not allow.
        """
        if self.fabric == "host":
            return self.process_group
        if self.fabric == "shared_gpu":
            raise Refused(
                "NCCL on fabric shared_gpu: it refuses two ranks on one GPU (Duplicate GPU detected); "
                "use fabric nvlink for the NCCL baselines, with one GPU per rank"
            )
        return self._new_group("nccl")

    def allgather(self, obj: Any, *, call: str = "all-gather") -> list[Any]:
        """Every member's object, in the group's order.

        Args:
            obj: this member's; can be pickled.
            call: what the members meet for, in words; equal on all of them.

        Raises:
            RankError: members met for different things: they are at different places in the program.
        """
        if self.size == 1:
            return [obj]
        calls, objects = zip(*map(pickle.loads, self._gather(pickle.dumps((call, obj)))), strict=True)
        self._require_one_call(calls)
        return list(objects)

    def _gather(self, data: bytes) -> list[bytes]:
        """Every member's bytes.

        One collective call for what fits `SMALL_BYTES` on every member, two otherwise (torch's `all_gather_object`
        always takes two: sizes, then contents). The first one is through the board, if there is one; what is larger
        takes Gloo.
        """
        with self._counted():
            heads = self._gather_small(len(data).to_bytes(8, "little") + data[: SMALL_BYTES - 8])
            sizes = [int.from_bytes(head[:8], "little") for head in heads]
            if max(sizes) <= SMALL_BYTES - 8:
                return [head[8 : 8 + size] for head, size in zip(heads, sizes, strict=True)]
            whole = self._gather_bytes(data, max(sizes))
        return [part[:size] for part, size in zip(whole, sizes, strict=True)]

    def _require_one_call(self, calls: Sequence[str]) -> None:
        if len(set(calls)) == 1:
            return
        members = {call: [r for r, c in zip(self.ranks, calls, strict=True) if c == call] for call in set(calls)}
        odd = min(members, key=lambda call: (len(members[call]), members[call]))
        said = "; ".join(f"rank {', '.join(map(str, ranks))}: {call}" for call, ranks in sorted(members.items()))
        raise RankError(
            rank=members[odd][0],
            phase="collective",
            cause=f"the ranks of group {self.name} are at different collective calls ({said}): every member makes the "
            "same calls in the same order; look for a rank that leaves a loop or returns early",
        )

    @cached_property
    def _board(self) -> Board | None:
        return self._make_board and self._make_board(self)

    def _gather_small(self, data: bytes) -> list[bytes]:
        return self._board.gather(data) if self._board else self._gather_bytes(data, SMALL_BYTES)

    def _gather_bytes(self, data: bytes, room_bytes: int) -> list[bytes]:
        """Every member's `data`, filled up to `room_bytes`, which is equal on all members."""
        import torch
        import torch.distributed as dist

        mine = torch.frombuffer(bytearray(data.ljust(room_bytes, b"\0")), dtype=torch.uint8)
        parts = [torch.empty_like(mine) for _ in range(self.size)]
        dist.all_gather(parts, mine, group=self.process_group)
        return [part.numpy().tobytes() for part in parts]

    def broadcast(self, obj: Any, root: int = 0) -> Any:
        """The object of the member `root` (its place in the group) on all members."""
        return self.allgather(obj if self.rank == root else None, call="broadcast")[root]

    def barrier(self, call: str = "barrier") -> None:
        """Wait until every member is here; `call` as for `allgather`."""
        self.allgather(None, call=call)

    @contextmanager
    def _counted(self):
        self.begun += 1
        yield
        self.done += 1

    def _new_group(self, backend: str) -> dist.ProcessGroup:
        import torch.distributed as dist

        if backend == "gloo" and self.size == dist.get_world_size() and self.ranks == tuple(range(self.size)):
            return dist.group.WORLD
        with _group_name(f"{self.name} {self.ranks} {backend}"):
            return dist.new_group(list(self.ranks), backend=backend, use_local_synchronization=True)


@contextmanager
def _group_name(words: str):
    """Let the members of the next group meet under these words, which must be new to this world.

    torch names a group after its ranks and after how many groups the process has seen: members with different pasts (a
    rank mask left one out of an earlier group, say) would then wait for one another under different names for ever.
    """
    from torch.distributed import distributed_c10d

    name = hashlib.sha1(words.encode(), usedforsecurity=False).hexdigest()
    with mock.patch.object(distributed_c10d, "_hash_ranks_to_str", return_value=name):
        yield

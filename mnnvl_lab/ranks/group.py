"""A group of ranks, as one of its members sees it."""

from __future__ import annotations

import hashlib
from contextlib import contextmanager
from functools import cached_property
from typing import TYPE_CHECKING, Any
from unittest import mock

from mnnvl_lab.errors import Refused

if TYPE_CHECKING:
    import torch.distributed as dist


class Group:
    """Collective operations among some ranks of the layout. Every member calls the same ones in the same order.

    Connections are made at first use, by the members alone: other ranks need not take part.

    Attributes:
        name: `world`, `ep`, `tp`, `dp`, `pcp` or `pp`.
        ranks: global ranks of the members, in the group's order.
        rank: this process's place among them.
        size: how many they are.
        begun, done: collective calls that this member has begun, and finished: who lags behind is whom others await.
    """

    def __init__(self, *, name: str, ranks: tuple[int, ...], member: int, fabric: str):
        self.name, self.ranks, self.fabric = name, tuple(ranks), fabric
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
                "use fabric nvlink for the NCCL baselines, with a GPU a rank"
            )
        return self._new_group("nccl")

    def allgather(self, obj: Any) -> list[Any]:
        """Every member's object, in the group's order."""
        if self.size == 1:
            return [obj]
        import torch.distributed as dist

        objects = [None] * self.size
        with self._counted():
            dist.all_gather_object(objects, obj, group=self.process_group)
        return objects

    def broadcast(self, obj: Any, root: int = 0) -> Any:
        """The object of the member `root` (its place in the group) on all members."""
        if self.size == 1:
            return obj
        import torch.distributed as dist

        box = [obj]
        with self._counted():
            dist.broadcast_object_list(box, group_src=root, group=self.process_group)
        return box[0]

    def barrier(self) -> None:
        """Wait until every member is here."""
        if self.size > 1:
            import torch.distributed as dist

            with self._counted():
                dist.barrier(group=self.process_group)

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

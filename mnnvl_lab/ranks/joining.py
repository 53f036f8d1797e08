"""Starts the processes of a layout and joins them in its process groups, as far as they are not there already."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress

from mnnvl_lab.errors import RankError
from mnnvl_lab.layout import Layout
from mnnvl_lab.ranks.arguments import require_strings
from mnnvl_lab.ranks.cluster import Cluster
from mnnvl_lab.ranks.gpu_placement import Placement
from mnnvl_lab.ranks.launchers import common_environment
from mnnvl_lab.ranks.mps import GpuSharing
from mnnvl_lab.ranks.pool import RankPool
from mnnvl_lab.ranks.rank import RankAssignment

LEAVE_LIMIT_S = 5.0

Environment = Mapping[str, str] | Callable[[int], Mapping[str, str]]


class Joining:
    """Starts missing processes and joins all ranks of a layout in fresh groups.

    Args:
        cluster, pool, sharing: the processes, by rank, and what shares GPUs among them.
        fabric: `host`, `nvlink` or `shared_gpu`.
        env: as in `Ranks`.
        start_timeout_s: limit of each step.

    Attributes:
        joined: whether the ranks are in the groups of the layout.
        in_step: whether, besides, no failed call may have left a collective half-way.
        interfaces: network interface of each rank's Gloo and NCCL.
        joins: how often they have joined.
    """

    def __init__(
        self,
        cluster: Cluster,
        pool: RankPool,
        sharing: GpuSharing,
        *,
        fabric: str,
        env: Environment,
        start_timeout_s: float,
    ):
        self._cluster, self._pool, self._sharing = cluster, pool, sharing
        self._fabric, self._env, self._start_timeout_s = fabric, env, start_timeout_s
        self._joined_layout: Layout | None = None  # the layout in which the processes last joined
        self.joined = self.in_step = False
        self.joins = 0
        self.interfaces: list[str] = []

    def bring_up(self, layout: Layout, placement: Placement, *, anew: bool = False) -> None:
        """Give every rank of the layout a living process and let all meet.

        Args:
            anew: in fresh groups, also where they are together in this layout.

        Raises:
            RankDied, RankTimeout: a process did not come up. HelperDied: one that serves them ended meanwhile.
            Refused: the layout has no room.
        """
        self._pool.recover()
        if self._fabric == "shared_gpu" and self._needs_daemon(placement):
            self._pool.kill(self._pool.processes)
            self._sharing.change(placement.ranks_per_gpu)
        if not self._cluster.fits(layout):
            self._pool.kill(self._pool.processes)
        missing = self._pool.missing(layout.world_size)
        if not (anew or missing) and self.in_step and self._joined_layout == layout:
            return
        if missing:
            self._leave()
            self._start(self._pool.missing(layout.world_size), layout)
        self._init_groups(layout, placement)

    def _needs_daemon(self, placement: Placement) -> bool:
        """Whether ranks need another MPS daemon, and so other processes: for another share, or after a death.

        A client that ends with work outstanding leaves MPS undefined ("Multi-Process Service", Program Termination):
        its server may take no other clients ("CUDA-capable device(s) is/are busy or unavailable").
        """
        return bool(self._pool.missing(0)) or not self._sharing.suits(placement.ranks_per_gpu)

    def make_ready(self, layout: Layout, placement: Placement, *, renew: bool) -> None:
        """Bring up the ranks for a call, if anything is missing; with `renew` also those that are known to be dead."""
        self._pool.recover()
        if not self.joined or (renew and self._pool.dead):
            self.bring_up(layout, placement, anew=True)

    @contextmanager
    def watched(self) -> Iterator[None]:
        """A call on the ranks: if it fails, a collective may be half-way, and groups must be made anew to be safe."""
        try:
            yield
        except BaseException:
            self.in_step = False
            raise

    def _leave(self) -> None:
        """Let the living leave their groups; one that cannot, because it still waits for a dead peer, is killed."""
        self.joined = self.in_step = False
        if self._joined_layout is None:
            return
        living = sorted(self._pool.processes.keys() - self._pool.dead)
        with suppress(RankError):
            leave = dict.fromkeys(living, ("leave",))
            self._pool.ask(leave, layout=self._joined_layout, phase="leave", timeout_s=LEAVE_LIMIT_S)

    def _start(self, ranks: list[int], layout: Layout) -> None:
        own = {rank: self._own_env(rank) for rank in ranks}
        self._pool.fill(ranks, self._cluster.start(ranks, layout=layout, env=self._common_env()))
        self._ask({rank: ("prepare", sys.path, self._cluster.run_dir, own[rank]) for rank in ranks}, layout)

    def _init_groups(self, layout: Layout, placement: Placement) -> None:
        self.joined = self.in_step = False
        self.joins += 1
        size = layout.world_size
        self._ask(dict.fromkeys(range(size, len(self._pool.processes)), ("leave",)), layout)
        [store] = self._ask({0: ("host_store", self._cluster.address)}, layout)
        assignments = {rank: self._assignment(rank, layout, placement, store) for rank in range(size)}
        self.interfaces = self._ask({rank: ("join", assignment) for rank, assignment in assignments.items()}, layout)
        self._joined_layout, self.joined, self.in_step = layout, True, True

    def _ask(self, calls: Mapping[int, tuple], layout: Layout) -> list:
        return self._pool.ask(calls, layout=layout, phase="start", timeout_s=self._start_timeout_s)

    def _common_env(self) -> dict[str, str]:
        given = {} if callable(self._env) else dict(self._env)
        return common_environment(self._cluster.launcher) | self._sharing.env | given

    def _own_env(self, rank: int) -> dict[str, str]:
        return require_strings(self._env(rank)) if callable(self._env) else {}

    def _assignment(self, rank: int, layout: Layout, placement: Placement, store: tuple[str, int]) -> RankAssignment:
        processes = [self._pool.processes[other] for other in range(layout.world_size)]
        hosts = tuple(process.host for process in processes)
        return RankAssignment(
            index=rank,
            layout=layout,
            fabric=self._fabric,
            gpu=placement.gpu(rank, hosts),
            store=store,
            round=self.joins,
            segment_dir=self._cluster.segment_dir,
            hosts=hosts,
            memories=tuple(process.memory for process in processes),
            processes=tuple((process.pid, process.started) for process in processes),
        )

"""`Ranks`: the rank processes of a layout, as the notebook holds them."""

from __future__ import annotations

import sys
import weakref
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from typing import Any

from mnnvl_lab.errors import RankError, Refused
from mnnvl_lab.layout import Layout
from mnnvl_lab.postmortem import Verdict
from mnnvl_lab.postmortem.stall import ROUND_LIMIT_S
from mnnvl_lab.ranks.cluster import Cluster
from mnnvl_lab.ranks.crew import Crew
from mnnvl_lab.ranks.gpus import count_visible_gpus
from mnnvl_lab.ranks.kernels import compile_missing
from mnnvl_lab.ranks.launchers import LOOPBACK, common_environment, require_launcher
from mnnvl_lab.ranks.mps import GpuSharing
from mnnvl_lab.ranks.placement import Placement, place
from mnnvl_lab.ranks.rank import Seat

LEAVE_LIMIT_S = 5.0

Environment = Mapping[str, str] | Callable[[int], Mapping[str, str]]


class Ranks:
    """One warm process a rank. A context manager; leaving it ends every process and removes every file.

    A death is named once, by the call that meets it; the next call starts new processes for the dead and goes on.

    Args:
        layout: ranks to have.
        fabric: `host`, `nvlink` (a GPU a rank) or `shared_gpu` (several ranks a GPU, under MPS).
        launcher: `local`, `mpi`, `ssh` or `slurm`; see docs/launchers.md.
        start_timeout_s: how long processes may take to start and to join.
        env: environment variables of the processes; or a function of the rank that gives them, which then are set once
            torch is imported, before CUDA is used.
        launcher_options: ipyparallel's configuration, by class name.

    Attributes:
        layout, fabric: what the ranks are now.

    Raises:
        Refused: the fabric cannot carry the layout. RankDied, RankTimeout: a process did not come up.
    """

    def __init__(
        self,
        layout: Layout,
        *,
        fabric: str = "host",
        launcher: str = "local",
        start_timeout_s: float = 60,
        env: Environment | None = None,
        launcher_options: Mapping[str, Any] | None = None,
    ):
        self.layout, self.fabric, self._placement = layout, fabric, Placement()
        self._env, self._start_timeout_s = env or {}, start_timeout_s
        self._met: Layout | None = None  # the layout in which the processes last joined
        self._round = 0
        if fabric != "host" and count_visible_gpus():
            compile_missing()
        self._cluster = Cluster(
            launcher=require_launcher(launcher),
            options=dict(launcher_options or {}),
            start_timeout_s=start_timeout_s,
        )
        self._crew = Crew(self._cluster)
        self._sharing = GpuSharing(self._cluster.guard)
        self._closer = weakref.finalize(self, _close, self._cluster, self._sharing)  # also at the interpreter's exit
        try:
            self.use(layout)
        except BaseException:
            self.close()
            raise

    def __enter__(self):
        return self

    def __exit__(self, *exc):
        self.close()

    def __repr__(self):
        return (
            f"Ranks({self.layout.arithmetic} = {self.size}, {self.fabric}, dead: {sorted(self._crew.dead) or 'none'})"
        )

    @property
    def size(self) -> int:
        return self.layout.world_size

    @property
    def output(self) -> list[str]:
        """What each rank printed in the last call."""
        return self._crew.output

    @property
    def errors(self) -> list[str]:
        """What each rank wrote to stderr in the last call."""
        return self._crew.errors

    def run(
        self,
        fn: Callable,
        *args: Any,
        timeout_s: float = 60,
        round_limit_s: float = ROUND_LIMIT_S,
        only: Iterable[int] | None = None,
        **kwargs: Any,
    ) -> list:
        """Call `fn(rank, *args, **kwargs)` on every rank at once and return their results in rank order.

        Args:
            fn: a function of a module that the ranks can import, not of a notebook.
            timeout_s: limit of the whole call; ranks that have not answered by then are killed.
            round_limit_s: limit of one round inside it, far above what one takes: ranks that stand still so long, while
                one in prepare, dispatch or combine waits for another that does not compute, hang and are killed.
            only: the ranks to call, if not all. Dead ranks are then left dead.

        Raises:
            RankDied: a rank's process ended; Hang: ranks did not answer; RankError: a rank raised. A `LabError`
            that all ranks raise alike is re-raised as it is. Refused: `fn` cannot be found by its name.
        """
        _require_importable(fn)
        if only is None and self._crew.dead:
            self.renew()
        ranks = sorted(range(self.size) if only is None else only)
        calls = dict.fromkeys(ranks, ("run", fn, args, kwargs))
        return self._crew.ask(
            calls, layout=self.layout, phase=fn.__name__, timeout_s=timeout_s, round_limit_s=round_limit_s
        )

    def use(self, layout: Layout) -> None:
        """Take another layout on the same processes. More ranks start more; spare ones stay idle.

        Only where the layout needs another share of a GPU for each rank, which CUDA fixes for a process's life, all are
        started anew.

        Raises:
            Refused: the fabric cannot carry the layout; the ranks stay as they are.
        """
        placement = place(layout, fabric=self.fabric, visible_gpus=0 if self.fabric == "host" else count_visible_gpus())
        self.layout, self._placement = layout, placement
        self._bring_up()

    def renew(self) -> None:
        """Start new processes for dead ranks; all ranks then meet in fresh groups."""
        self._bring_up()

    def kill(self, rank: int) -> None:
        """Kill one rank's process."""
        self._crew.kill([rank])

    def stacks(self) -> list[str]:
        """Each rank's Python stack, also of those that hang, even inside C code; empty for ranks on other machines."""
        return self._crew.stacks(range(self.size))

    def examine(self) -> Verdict:
        """What each rank is doing and whom it waits for, read from outside; also while a call hangs."""
        return self._crew.examine(self.layout)

    def close(self) -> None:
        """End every process, remove every file. Idempotent."""
        self._closer()

    def _bring_up(self) -> None:
        """Fill every place of the layout with a living process and let all meet."""
        if self.fabric == "shared_gpu" and not self._sharing.suits(self._placement.ranks_per_gpu):
            self._crew.kill(self._crew.processes)
            self._sharing.change(self._placement.ranks_per_gpu)
        if self._crew.vacant(self.size):
            self._part()
            vacant = self._crew.vacant(self.size)
            self._crew.fill(vacant, self._cluster.start(len(vacant), env=self._common_env()))
            self._ask({rank: ("prepare", sys.path, self._cluster.run_dir, self._own_env(rank)) for rank in vacant})
        self._join()

    def _part(self) -> None:
        """Let the living leave their groups; one that cannot, because it still waits for a dead peer, is killed."""
        if self._met is None:
            return
        living = sorted(self._crew.processes.keys() - self._crew.dead)
        with suppress(RankError):
            leave = dict.fromkeys(living, ("leave",))
            self._crew.ask(leave, layout=self._met, phase="leave", timeout_s=LEAVE_LIMIT_S)

    def _join(self) -> None:
        self._round += 1
        idle = range(self.size, len(self._crew.processes))
        self._ask(dict.fromkeys(idle, ("leave",)))
        [store] = self._ask({0: ("host_store", self._store_address())})
        self._ask({rank: ("join", self._seat(rank, store)) for rank in range(self.size)})
        self._met = self.layout

    def _ask(self, calls: Mapping[int, tuple]) -> list:
        return self._crew.ask(calls, layout=self.layout, phase="start", timeout_s=self._start_timeout_s)

    def _store_address(self) -> str | None:
        """Loopback where all ranks are on this machine; else whatever rank 0's machine calls itself."""
        processes = [self._crew.processes[rank] for rank in range(self.size)]
        hosts = sorted({process.host for process in processes})
        if self.fabric == "host" and len(hosts) > 1:
            raise Refused(
                f"fabric host with ranks on {', '.join(hosts)}: they share memory, so they must be on one machine; "
                "give the launcher one host, or use a GPU fabric"
            )
        return LOOPBACK if all(process.here for process in processes) else None

    def _common_env(self) -> dict[str, str]:
        return (
            common_environment(self._cluster.launcher)
            | self._sharing.env
            | dict({} if callable(self._env) else self._env)
        )

    def _own_env(self, rank: int) -> dict[str, str]:
        return dict(self._env(rank)) if callable(self._env) else {}

    def _seat(self, rank: int, store: tuple[str, int]) -> Seat:
        return Seat(
            index=rank,
            layout=self.layout,
            fabric=self.fabric,
            gpu=self._placement.gpu(rank),
            store=store,
            round=self._round,
            segment_dir=self._cluster.segment_dir,
        )


def _close(cluster: Cluster, sharing: GpuSharing) -> None:
    try:
        cluster.close()
    finally:
        sharing.close()


def _require_importable(fn: Callable) -> None:
    """Notebooks pass values, never code: a rank imports the function by its name."""
    module, name = getattr(fn, "__module__", None), getattr(fn, "__qualname__", repr(fn))
    if module in (None, "__main__") or getattr(sys.modules.get(module), name, None) is not fn:
        raise Refused(
            f"function {name} of {module}: a rank must be able to import it by its name; "
            "put it at the top level of a module and import it from there"
        )

"""`Ranks`: the rank processes of a layout, as the notebook holds them."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from mnnvl_lab.errors import Refused
from mnnvl_lab.layout import Layout
from mnnvl_lab.postmortem import Verdict
from mnnvl_lab.postmortem.stall import ROUND_LIMIT_S
from mnnvl_lab.ranks.arguments import (
    require_environment,
    require_importable,
    require_layout,
    require_options,
    require_rank,
    require_ranks,
    require_seconds,
)
from mnnvl_lab.ranks.cluster import Cluster
from mnnvl_lab.ranks.crew import Crew
from mnnvl_lab.ranks.gpus import count_visible_gpus
from mnnvl_lab.ranks.joining import Environment, Joining
from mnnvl_lab.ranks.kernels import compile_missing
from mnnvl_lab.ranks.launchers import require_launcher
from mnnvl_lab.ranks.mps import GpuSharing
from mnnvl_lab.ranks.placement import Placement, place, require_fabric


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
        self.layout, self.fabric = require_layout(layout), require_fabric(fabric)
        self._placement, env = _place(layout, self.fabric), require_environment({} if env is None else env)
        chosen, start_timeout_s = require_launcher(launcher), require_seconds("start_timeout_s", start_timeout_s)
        options = require_options(launcher_options)
        if self.fabric != "host" and count_visible_gpus():
            compile_missing()
        self._cluster = Cluster(launcher=chosen, options=options, start_timeout_s=start_timeout_s)
        self._crew = Crew(self._cluster)
        self._sharing = GpuSharing(self._cluster.guard)
        self._joining = Joining(
            self._cluster, self._crew, self._sharing, fabric=self.fabric, env=env, start_timeout_s=start_timeout_s
        )
        self._closer = weakref.finalize(self, _close, self._cluster, self._sharing)  # also at the interpreter's exit
        try:
            self._bring_up()
        except BaseException:
            self.close()
            raise

    def __enter__(self):
        self.require_open()
        return self

    def __exit__(self, *exc):
        self.close()

    def __repr__(self):
        state = "closed" if self.closed else f"dead: {sorted(self._crew.dead) or 'none'}"
        return f"Ranks({self.layout.arithmetic} = {self.size}, {self.fabric}, {state})"

    @property
    def closed(self) -> bool:
        """Whether the processes were ended by `close`; nothing but `layout`, `output` and `errors` is of use then."""
        return not self._closer.alive

    def require_open(self) -> None:
        """Check that the ranks are still there.

        Raises:
            Refused: they were closed.
        """
        if self.closed:
            raise Refused(
                "these ranks are closed: their processes have ended; start new ones with Ranks(layout) "
                "(in a notebook: run the cell that starts them again)"
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
            RankDied: a rank's process ended; Hang: ranks did not answer; RankError: a rank raised. HelperDied: a
            process that serves the ranks ended. A `LabError` that all ranks raise alike is re-raised as it is. Refused:
            `fn` cannot be found by its name, an argument is wrong or cannot be pickled, or the ranks are closed.
        """
        self.require_open()
        fn, ranks = require_importable(fn), require_ranks(only, self.size)
        limits = {
            name: require_seconds(name, value)
            for name, value in (("timeout_s", timeout_s), ("round_limit_s", round_limit_s))
        }
        self._crew.recover()
        if not self._joining.joined or (only is None and self._crew.dead):
            self._bring_up(anew=True)
        calls = dict.fromkeys(ranks, ("run", fn, args, kwargs))
        try:
            return self._crew.ask(calls, layout=self.layout, phase=fn.__name__, **limits)
        except BaseException:
            self._joining.in_step = False
            raise

    def use(self, layout: Layout) -> None:
        """Take another layout on the same processes. More ranks start more; spare ones stay idle.

        Nothing is done where the ranks have that layout, all live and the last call succeeded. Only where the layout
        needs another share of a GPU for each rank, which CUDA fixes for a process's life, all are started anew.

        Raises:
            Refused: the fabric cannot carry the layout, or the ranks are closed; they stay as they are.
            RankDied, RankTimeout: a process did not come up; the next call returns to the layout before.
        """
        self.require_open()
        before = self.layout, self._placement
        self._placement = _place(require_layout(layout), self.fabric)
        self.layout = layout
        try:
            self._bring_up()
        except BaseException:
            self.layout, self._placement = before
            raise

    def renew(self) -> None:
        """Start new processes for dead ranks; all ranks then meet in fresh groups.

        Raises:
            Refused: the ranks are closed. RankDied, RankTimeout: a process did not come up.
        """
        self.require_open()
        self._bring_up(anew=True)

    def kill(self, rank: int) -> None:
        """Kill one rank's process.

        Raises:
            Refused: the layout has no such rank, or the ranks are closed.
        """
        self.require_open()
        self._crew.kill([require_rank(rank, self.size)])

    def stacks(self) -> list[str]:
        """Each rank's Python stack, also of those that hang, even inside C code; empty for ranks on other machines.

        Raises:
            Refused: the ranks are closed.
        """
        self.require_open()
        return self._crew.stacks(range(self.size))

    def examine(self) -> Verdict:
        """What each rank is doing and whom it waits for, read from outside; also while a call hangs.

        Raises:
            Refused: the ranks are closed.
        """
        self.require_open()
        return self._crew.examine(self.layout)

    def close(self) -> None:
        """End every process, remove every file. Idempotent."""
        self._closer()

    def _bring_up(self, *, anew: bool = False) -> None:
        self._joining.bring_up(self.layout, self._placement, anew=anew)


def _place(layout: Layout, fabric: str) -> Placement:
    return place(layout, fabric=fabric, visible_gpus=0 if fabric == "host" else count_visible_gpus())


def _close(cluster: Cluster, sharing: GpuSharing) -> None:
    try:
        cluster.close()
    finally:
        sharing.close()

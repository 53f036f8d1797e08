"""`Ranks`: the handle on the rank processes of a layout, in the notebook's process."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterable, Mapping
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING, Any

from mnnvl_lab.errors import Refused, named_arguments
from mnnvl_lab.hang import HangReport
from mnnvl_lab.hang.detect import ROUND_LIMIT_S
from mnnvl_lab.hardware import count_visible_gpus
from mnnvl_lab.layout import Layout
from mnnvl_lab.progress import Progress
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
from mnnvl_lab.ranks.gpu_placement import Placement, place, place_on_hosts, require_fabric
from mnnvl_lab.ranks.interrupts import DELAY_S, hold_interrupts, shown_step
from mnnvl_lab.ranks.joining import Environment, Joining
from mnnvl_lab.ranks.kernel_build import compile_missing
from mnnvl_lab.ranks.launchers import Launcher, require_launcher
from mnnvl_lab.ranks.mps import GpuSharing
from mnnvl_lab.ranks.pool import RankPool

if TYPE_CHECKING:
    import pandas as pd


class Ranks:
    """One warm process a rank. A context manager; leaving it ends every process and removes every file.

    A death is named once, by the call that meets it; the next call starts new processes for the dead and goes on.

    Args:
        layout: ranks to have.
        fabric: `host`, `nvlink` (one GPU per rank) or `shared_gpu` (several ranks per GPU, under MPS).
        launcher: `local`, `mpi`, `ssh` or `slurm`; see docs/launchers.md.
        start_timeout_s: how long processes may take to start and to join.
        env: environment variables of the processes; or a function of the rank that gives them, which then are set once
            torch is imported, before CUDA is used.
        launcher_options: ipyparallel's configuration, by class name.
        progress: show what takes more than a second: starting, calls, joining, closing.

    Attributes:
        layout, fabric: what the ranks are now.
        progress: as given; may be changed.

    Raises:
        Refused: the fabric cannot carry the layout. RankDied, RankTimeout: a process did not come up.
        Interrupted: by the user; every process was ended.
    """

    @named_arguments
    def __init__(
        self,
        layout: Layout,
        *,
        fabric: str = "host",
        launcher: str = "local",
        start_timeout_s: float = 60,
        env: Environment | None = None,
        launcher_options: Mapping[str, Any] | None = None,
        progress: bool = True,
    ):
        self.progress = progress
        self.layout, self.fabric = require_layout(layout), require_fabric(fabric)
        env = require_environment({} if env is None else env)
        self._launcher, start_timeout_s = (
            require_launcher(launcher),
            require_seconds("start_timeout_s", start_timeout_s),
        )
        self._placement = _place(layout, self.fabric, self._launcher)
        options = require_options(launcher_options)
        if self.fabric != "host" and count_visible_gpus():
            compile_missing(progress=progress)
        words = {"done": f"{self.size} ranks started", "then": "Every process was ended; start them again."}
        words |= {"status": self._status}
        with shown_step(set, f"starting {self.size} ranks", progress=progress, delay_s=0, **words):
            self._start(env, launcher=self._launcher, options=options, start_timeout_s=start_timeout_s)

    def _start(self, env: Environment, **cluster: Any) -> None:
        self._closer = None
        try:
            with hold_interrupts():  # until all that is there can be closed
                self._cluster = Cluster(**cluster)
                self._pool, self._sharing = RankPool(self._cluster), GpuSharing(self._cluster.guard)
                limits = {"start_timeout_s": cluster["start_timeout_s"]}
                self._joining = Joining(self._cluster, self._pool, self._sharing, fabric=self.fabric, env=env, **limits)
                self._closer = weakref.finalize(self, _close, self._cluster, self._sharing)  # also at Python's exit
            self._joining.bring_up(self.layout, self._placement)
        except BaseException:
            if self._closer:
                with hold_interrupts():
                    self._closer()
            raise

    def __enter__(self):
        self.require_open()
        return self

    def __exit__(self, *exc):
        self.close()

    def __repr__(self):
        state = "closed" if self.closed else f"dead: {sorted(self._pool.dead) or 'none'}"
        return f"Ranks({self.layout.arithmetic} = {self.size}, {self.fabric}, {state})"

    @property
    def closed(self) -> bool:
        """Whether `close` ended the processes; only `layout`, `output` and `errors` are of use then."""
        return not self._closer.alive

    def require_open(self) -> None:
        """Check that the ranks are still there.

        Raises:
            Refused: they were closed.
        """
        if self.closed:
            raise Refused(
                "these ranks are closed: start new ones with Ranks(layout), or run the cell again that started them"
            )

    @property
    def size(self) -> int:
        return self.layout.world_size

    def to_frame(self) -> pd.DataFrame:
        """The layout's rank grid with what is real: the columns `host`, `pid` and `interface` of each rank.

        `interface` is the network interface of Gloo and NCCL.

        Raises:
            Refused: the ranks are closed.
        """
        self.require_open()
        processes = [self._pool.processes[rank] for rank in range(self.size)]
        real = {"host": [p.host for p in processes], "pid": [p.pid for p in processes]}
        return self.layout.to_frame().assign(**real, interface=self._joining.interfaces)

    @property
    def output(self) -> list[str]:
        """What each rank printed in the last call."""
        return self._pool.output

    @property
    def errors(self) -> list[str]:
        """What each rank wrote to stderr in the last call."""
        return self._pool.errors

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
            Interrupted: by the user; ranks that were still at work were ended, and the next call starts new ones.
        """
        self.require_open()
        fn, ranks = require_importable(fn), require_ranks(only, self.size)
        limits = {
            name: require_seconds(name, value)
            for name, value in (("timeout_s", timeout_s), ("round_limit_s", round_limit_s))
        }
        calls = dict.fromkeys(ranks, ("run", fn, args, kwargs))
        with self._step(f"{fn.__name__} on {len(ranks)} ranks"):
            self._joining.make_ready(self.layout, self._placement, renew=only is None)
            with self._joining.watched():
                return self._pool.ask(calls, layout=self.layout, phase=fn.__name__, **limits)

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
        self._placement = _place(require_layout(layout), self.fabric, self._launcher)
        self.layout = layout
        try:
            with self._step(f"joining {self.size} ranks"):
                self._joining.bring_up(self.layout, self._placement)
        except BaseException:
            self.layout, self._placement = before
            raise

    def renew(self) -> None:
        """Start new processes for dead ranks; all ranks then meet in fresh groups.

        Raises:
            Refused: the ranks are closed. RankDied, RankTimeout: a process did not come up.
        """
        self.require_open()
        with self._step(f"joining {self.size} ranks"):
            self._joining.bring_up(self.layout, self._placement, anew=True)

    def kill(self, rank: int) -> None:
        """Kill one rank's process.

        Raises:
            Refused: the layout has no such rank, or the ranks are closed.
        """
        self.require_open()
        self._pool.kill([require_rank(rank, self.size)])

    def stacks(self) -> list[str]:
        """Each rank's Python stack, also of those that hang, even inside C code; empty for ranks on other machines.

        Raises:
            Refused: the ranks are closed.
        """
        self.require_open()
        return self._pool.stacks(range(self.size))

    def examine(self) -> HangReport:
        """What each rank is doing and whom it waits for, read from outside; also while a call hangs.

        Raises:
            Refused: the ranks are closed.
        """
        self.require_open()
        return self._pool.examine(self.layout)

    def close(self) -> None:
        """End every process, remove every file. Idempotent; an interrupt waits until it is done."""
        if not self.closed:
            with Progress(f"closing {self.size} ranks", enabled=self.progress, delay_s=DELAY_S), hold_interrupts():
                self._closer()

    def _step(self, text: str) -> AbstractContextManager[None]:
        return shown_step(lambda: self._pool.dead, text, progress=self.progress, status=self._status)

    def _status(self) -> str:
        """What is waited for, such as a job in a queue; empty before there is a cluster that could wait."""
        cluster = getattr(self, "_cluster", None)
        return cluster.status if cluster else ""


def _place(layout: Layout, fabric: str, launcher: Launcher) -> Placement:
    if launcher.remote:
        return place_on_hosts(layout, fabric=fabric)
    return place(layout, fabric=fabric, visible_gpus=0 if fabric == "host" else count_visible_gpus())


def _close(cluster: Cluster, sharing: GpuSharing) -> None:
    try:
        cluster.close()
    finally:
        sharing.close()

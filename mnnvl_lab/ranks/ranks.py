"""`Ranks`: the rank processes of a layout, as the notebook holds them."""

from __future__ import annotations

import math
import sys
import weakref
from collections.abc import Callable, Collection, Iterable, Mapping
from typing import Any

from mnnvl_lab.errors import Hang, RankDied, Refused
from mnnvl_lab.layout import Layout
from mnnvl_lab.postmortem import Verdict
from mnnvl_lab.postmortem.examine import examine
from mnnvl_lab.postmortem.stall import ROUND_LIMIT_S, Stall
from mnnvl_lab.ranks.call import Outcome, gather, raise_failures
from mnnvl_lab.ranks.cluster import Cluster, Process
from mnnvl_lab.ranks.gpus import count_visible_gpus
from mnnvl_lab.ranks.launchers import LOOPBACK, host_environment, require_launcher
from mnnvl_lab.ranks.mark import read_mark
from mnnvl_lab.ranks.mps import GpuSharing
from mnnvl_lab.ranks.placement import Placement, place
from mnnvl_lab.ranks.rank import Seat
from mnnvl_lab.ranks.stacks import read_stacks

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
        output: what each rank printed in the last call; `errors` what it wrote to stderr.

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
        self.output: list[str] = []
        self.errors: list[str] = []
        self._env, self._start_timeout_s = env or {}, start_timeout_s
        self._processes: dict[int, Process] = {}
        self._dead: set[int] = set()
        self._round = 0
        self._cluster = Cluster(
            launcher=require_launcher(launcher),
            options=dict(launcher_options or {}),
            start_timeout_s=start_timeout_s,
        )
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
        return f"Ranks({self.layout.arithmetic} = {self.size}, {self.fabric}, dead: {sorted(self._dead) or 'none'})"

    @property
    def size(self) -> int:
        return self.layout.world_size

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
            round_limit_s: limit of one round inside it: ranks that stand still so long while one waits for another in
                prepare, dispatch or combine hang, and are killed. Far above what a round takes.
            only: the ranks to call, if not all. Dead ranks are then left dead.

        Raises:
            RankDied: a rank's process ended; Hang: ranks did not answer; RankError: a rank raised. A `LabError`
            that all ranks raise alike is re-raised as it is. Refused: `fn` cannot be found by its name.
        """
        _require_importable(fn)
        if only is None and self._dead:
            self.renew()
        ranks = sorted(range(self.size) if only is None else only)
        calls = dict.fromkeys(ranks, ("run", fn, args, kwargs))
        return self._ask(calls, phase=fn.__name__, timeout_s=timeout_s, round_limit_s=round_limit_s)

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
        self._kill([rank])

    def close(self) -> None:
        """End every process, remove every file. Idempotent."""
        self._closer()

    def _bring_up(self) -> None:
        """Fill every place of the layout with a living process and let all meet."""
        if self.fabric == "shared_gpu" and not self._sharing.suits(self._placement.ranks_per_gpu):
            self._kill(self._processes)
            self._sharing.change(self._placement.ranks_per_gpu)
        self._dead |= {rank for rank, process in self._processes.items() if not self._cluster.alive(process)}
        vacant = sorted(self._dead | set(range(len(self._processes), self.size)))
        if vacant:
            started = self._cluster.start(len(vacant), env=self._common_env())
            self._processes |= dict(zip(vacant, started, strict=True))
            self._dead.clear()
            self._ask({rank: ("prepare", sys.path, self._cluster.run_dir, self._own_env(rank)) for rank in vacant})
        self._join()

    def _join(self) -> None:
        self._round += 1
        idle = range(self.size, len(self._processes))
        self._ask(dict.fromkeys(idle, ("leave",)))
        [store] = self._ask({0: ("host_store", LOOPBACK)})
        self._ask({rank: ("join", self._seat(rank, store)) for rank in range(self.size)})

    def _common_env(self) -> dict[str, str]:
        return host_environment() | self._sharing.env | dict({} if callable(self._env) else self._env)

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

    def _ask(
        self,
        calls: Mapping[int, tuple],
        *,
        phase: str = "start",
        timeout_s: float | None = None,
        round_limit_s: float = math.inf,
    ) -> list:
        """Let each rank call a method of its `Engine`; answers in rank order, or an error that names the culprit."""
        futures = {rank: self._cluster.submit(self._processes[rank], *call) for rank, call in calls.items()}
        limit_s = self._start_timeout_s if timeout_s is None else timeout_s
        try:
            outcome = gather(
                self._cluster, futures, self._processes, timeout_s=limit_s, stall=self._stall(round_limit_s)
            )
        except BaseException:  # interrupted: whatever they are doing, nobody waits for it any more
            self._kill([rank for rank, future in futures.items() if not future.done()])
            raise
        self._read_output(futures)
        self._raise_dead(outcome, phase)
        self._raise_silent(outcome, phase, limit_s)
        raise_failures(outcome, phase=phase)
        self._cluster.forget(futures.values())
        return [outcome.values[rank] for rank in sorted(outcome.values)]

    def _read_output(self, futures: Mapping[int, Any]) -> None:
        for future in futures.values():
            if future.done():
                future.wait_for_output(1)
        self.output = [futures[rank].stdout if rank in futures else "" for rank in range(self.size)]
        self.errors = [futures[rank].stderr if rank in futures else "" for rank in range(self.size)]

    def _raise_dead(self, outcome: Outcome, phase: str) -> None:
        if not outcome.dead:
            return
        self._dead |= set(outcome.dead)
        self._kill(range(self.size) if self._cluster.launcher.together else outcome.silent)
        rank = outcome.dead[0]
        end = self._cluster.end_of(self._processes[rank])
        others = [f"\n  also rank {other} died" for other in outcome.dead[1:]]
        others += [f"\n  rank {other} waited for it and was killed" for other in outcome.silent]
        raise RankDied(rank=rank, phase=self._phase(rank, phase), cause=end.cause + "".join(others), report=end.report)

    def _raise_silent(self, outcome: Outcome, phase: str, limit_s: float) -> None:
        if not outcome.silent or outcome.failures:
            self._kill(outcome.silent)
            return
        words = ", ".join(f"{silent} (in {self._phase(silent, phase)})" for silent in outcome.silent)
        verdict = outcome.hang or self.examine(done=outcome.values, limit_s=limit_s)
        self._kill(outcome.silent)
        rank = verdict.absent[0] if verdict.absent else outcome.silent[0]
        raise Hang(
            rank=rank,
            phase=self._phase(rank, phase),
            cause=f"no answer within {verdict.limit_s:g} s from ranks {words}; they were killed\n{verdict.headline}",
            verdict=verdict,
            report=f"{verdict}\n\n{verdict.stacks()}",
        )

    def _phase(self, rank: int, phase: str) -> str:
        """What the rank said that it was doing, or else the name of the call."""
        return read_mark(self._cluster.run_dir, self._processes[rank].pid) or phase

    def _kill(self, ranks: Iterable[int]) -> None:
        self._cluster.kill([self._processes[rank] for rank in ranks])
        self._dead |= set(ranks)

    def examine(self, *, done: Collection[int] = (), limit_s: float = 0) -> Verdict:
        """What each rank is doing and whom it waits for, read from outside; also while a call hangs.

        Args:
            done: ranks known to have answered.
            limit_s: how long was waited, for the report.
        """
        ranks = range(self.size)
        return examine(
            self._cluster.run_dir,
            {rank: self._processes[rank].pid for rank in ranks},
            layout=self.layout,
            phases={rank: self._phase(rank, "") for rank in ranks},
            stacks=dict(zip(ranks, self.stacks(), strict=True)),
            done=done,
            dead=self._dead,
            limit_s=limit_s,
        )

    def _stall(self, limit_s: float) -> Callable[[Outcome], Verdict | None]:
        """Notices a round that hangs in the call that begins now."""
        stall = Stall(
            phases=lambda: {rank: self._phase(rank, "") for rank in range(self.size)},
            examine=lambda done: self.examine(done=done, limit_s=limit_s),
            limit_s=limit_s,
        )
        return lambda outcome: stall(outcome.values)

    def stacks(self) -> list[str]:
        """Each rank's Python stack, also of those that hang, even inside C code; empty for ranks on other machines."""
        return read_stacks(self._cluster.run_dir, [self._processes[rank] for rank in range(self.size)])


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

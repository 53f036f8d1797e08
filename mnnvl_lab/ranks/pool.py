"""Pool of rank processes: sends calls, watches for crashes and hangs, and reports failures."""

from __future__ import annotations

import math
import pickle
import time
from collections.abc import Callable, Collection, Iterable, Mapping
from concurrent.futures import FIRST_COMPLETED, Future, wait
from typing import Any

from mnnvl_lab.errors import Hang, HelperDied, LabError, RankDied, RankError, Refused
from mnnvl_lab.hang import HangReport
from mnnvl_lab.hang.detect import Watchdog, examine, read_stacks
from mnnvl_lab.layout import Layout
from mnnvl_lab.ranks.cluster import POLL_S, Cluster, Process, failure_of, unpack
from mnnvl_lab.ranks.engine import Failure
from mnnvl_lab.ranks.interrupts import hold_interrupts
from mnnvl_lab.ranks.rank import read_phase

GRACE_S = 2.0  # that others get after a rank failed or died: those that wait for it would wait until the limit
REFUSED_GRACE_S = 10.0  # the same after refusals alone: ranks refuse together, some later on a busy machine
LOST_GRACE_S = 0.5  # the same after one that lost its GPU: they can only wait for it


class Outcome:
    """What each rank did: answered, failed, died or stayed silent. Every dict is keyed by rank, the earliest first.

    `hang` is set where ranks were found waiting for one another before the limit of the call.
    """

    def __init__(self):
        self.values: dict[int, Any] = {}
        self.failures: dict[int, Failure] = {}
        self.dead: list[int] = []
        self.silent: list[int] = []
        self.hang: HangReport | None = None

    @property
    def lost(self) -> list[int]:
        """Ranks that failed in a way that no later call would survive."""
        return [rank for rank, failure in self.failures.items() if failure.lost]

    def take(self, rank: int, future: Future) -> None:
        try:
            answer = unpack(future.result())
        except Exception as error:  # ipyparallel's own, or an answer of a class that is unknown here
            answer = failure_of(error)
        target = self.failures if isinstance(answer, Failure) else self.values
        target[rank] = answer


def gather(
    cluster: Cluster,
    pending: dict[int, Future],
    processes: dict[int, Process],
    *,
    timeout_s: float,
    watchdog: Callable[[Outcome], HangReport | None] = lambda _: None,
) -> Outcome:
    """Wait for the answers of `pending`, at most `timeout_s`, or a moment of grace once a rank has failed or died.

    The moment begins again with each further answer: ranks that all fail alike may do so one after the other on a busy
    machine.

    Args:
        watchdog: asked again and again whether a round hangs; if so the waiting ends.

    Raises:
        HelperDied: no answer can come any more.
    """
    outcome, waiting = Outcome(), dict(pending)
    deadline = limit = time.monotonic() + timeout_s
    while waiting:
        finished, _ = wait(waiting.values(), timeout=POLL_S, return_when=FIRST_COMPLETED)
        gone = [] if finished else _dead(cluster, {rank: processes[rank] for rank in waiting})
        done = [rank for rank, future in waiting.items() if future.done()]
        for rank in done:
            outcome.take(rank, waiting.pop(rank))
        for rank in set(gone) - set(done):
            outcome.dead.append(rank)
            del waiting[rank]
        if outcome.failures or outcome.dead:
            if done or gone or deadline == limit:
                deadline = min(limit, time.monotonic() + _grace_s(outcome))
        elif waiting and not finished:  # an answer is progress
            outcome.hang = watchdog(outcome)
        if outcome.hang or time.monotonic() > deadline:
            break
    outcome.silent = list(waiting)
    return outcome


def _dead(cluster: Cluster, processes: Mapping[int, Process]) -> list[int]:
    """Ranks whose process has ended.

    Raises:
        HelperDied: no answer can come any more.
    """
    cluster.require_helpers()
    return [rank for rank, process in processes.items() if not cluster.alive(process)]


def _grace_s(outcome: Outcome) -> float:
    if outcome.lost:
        return LOST_GRACE_S
    refused = all(isinstance(failure.error, Refused) for failure in outcome.failures.values())
    return REFUSED_GRACE_S if refused and not outcome.dead else GRACE_S


def raise_failures(outcome: Outcome, *, phase: str, phase_of: Callable[[int], str]) -> None:
    """Re-raise what the ranks raised: a `LabError` that all raised alike as it is, anything else as a `RankError`.

    Args:
        phase: what to say that a rank was doing that did not say so itself.
        phase_of: what a rank that never answered is doing.
    """
    if not outcome.failures:
        return
    (rank, first), *others = outcome.failures.items()
    alike = all(other.words == first.words for _, other in others)
    if isinstance(first.error, LabError) and alike and not outcome.values and not outcome.silent:
        raise first.error
    cause = first.words + "".join(f"\n  also rank {r}: {_headline(f)}" for r, f in sorted(others))
    cause += "".join(f"\n  rank {r} (in {phase_of(r)}) gave no answer and was killed" for r in sorted(outcome.silent))
    raise RankError(rank=rank, phase=first.phase or phase, cause=cause, report=first.report) from first.error


def _headline(failure: Failure) -> str:
    return failure.words.splitlines()[0]


REACH_LIMIT_S = 5.0  # for engines to connect to a new controller, and to finish what they were at


class RankPool:
    """The processes of a cluster by rank.

    Attributes:
        processes: by rank; those beyond the layout's size are idle.
        dead: ranks whose process is known to have ended.
        output, errors: what each rank wrote in the last call.
    """

    def __init__(self, cluster: Cluster):
        self._cluster = cluster
        self.processes: dict[int, Process] = {}
        self.dead: set[int] = set()
        self._unanswered = False
        self.output: list[str] = []
        self.errors: list[str] = []

    def recover(self) -> None:
        """Go on after the death of a process that serves the ranks. Ranks that nobody can reach any more, or that are
        still at work for a call whose answers were lost, are ended, to be replaced."""
        if not (self._cluster.recover() or self._unanswered):
            return
        living = {rank: p for rank, p in self.processes.items() if rank not in self.dead and self._cluster.alive(p)}
        self.kill(living.keys() - self._cluster.reachable(living, limit_s=REACH_LIMIT_S))
        self._unanswered = False

    def missing(self, size: int) -> list[int]:
        """Places that have no living process: those below `size`, and any that had one."""
        self.dead |= {rank for rank, process in self.processes.items() if not self._cluster.alive(process)}
        return sorted(self.dead | set(range(len(self.processes), size)))

    def fill(self, ranks: list[int], processes: list[Process]) -> None:
        self.processes |= dict(zip(ranks, processes, strict=True))
        self.dead -= set(ranks)

    def ask(
        self,
        calls: Mapping[int, tuple],
        *,
        layout: Layout,
        phase: str,
        timeout_s: float,
        round_limit_s: float = math.inf,
    ) -> list:
        """Let each rank call a method of its `Engine` and return the answers in rank order.

        Args:
            calls: by rank, the method's name and arguments.
            layout: what the ranks are, to explain who waits for whom.
            phase: what to say that a rank was doing that did not say so itself.
            timeout_s, round_limit_s: as in `Ranks.run`.

        Raises:
            RankDied, Hang, RankError: as in `Ranks.run`.
        """
        futures: dict[int, Any] = {}
        watchdog = self._watchdog(layout, round_limit_s)
        try:
            with hold_interrupts():  # until it is known which ranks were asked
                futures |= self._submit(calls)
            outcome = gather(self._cluster, futures, self.processes, timeout_s=timeout_s, watchdog=watchdog)
        except HelperDied:  # their answers are lost, but nothing is wrong with them
            self._unanswered = True
            raise
        except BaseException:  # interrupted: whatever they are doing, nobody waits for it any more
            with hold_interrupts():
                self.kill([rank for rank, future in futures.items() if not future.done()])
            raise
        self._read_output(futures, layout.world_size)
        self._cluster.forget(futures.values())
        self._raise_dead(outcome, phase)
        self._raise_hang(outcome, phase, layout, timeout_s)
        self._kill_useless(outcome)
        raise_failures(outcome, phase=phase, phase_of=lambda rank: self._phase(rank, phase))
        return [outcome.values[rank] for rank in sorted(outcome.values)]

    def _submit(self, calls: Mapping[int, tuple]) -> dict[int, Any]:
        try:
            return {rank: self._cluster.submit(self.processes[rank], *call) for rank, call in calls.items()}
        except (
            pickle.PicklingError,
            AttributeError,
            TypeError,
        ) as error:  # what pickle raises, before anything is sent
            raise Refused(
                f"an argument cannot be sent to the ranks ({error}): arguments are pickled; pass values, arrays, "
                "dataclasses or functions of a module instead"
            ) from error

    def _read_output(self, futures: Mapping[int, Any], size: int) -> None:
        for future in futures.values():
            if future.done():
                future.wait_for_output(1)
        printed = [self._cluster.printed(futures[rank]) if rank in futures else ("", "") for rank in range(size)]
        self.output, self.errors = map(list, zip(*printed, strict=True))

    def _raise_dead(self, outcome: Outcome, phase: str) -> None:
        if not outcome.dead:
            return
        self.dead |= set(outcome.dead)
        self.kill(self.processes if self._cluster.launcher.together else outcome.silent)
        rank = outcome.dead[0]
        end = self._cluster.exit_status(self.processes[rank])
        others = [f"\n  also rank {other} died" for other in outcome.dead[1:]]
        others += [f"\n  rank {other} waited for it and was killed" for other in outcome.silent]
        raise RankDied(rank=rank, phase=self._phase(rank, phase), cause=end.cause + "".join(others), report=end.report)

    def _raise_hang(self, outcome: Outcome, phase: str, layout: Layout, limit_s: float) -> None:
        if not outcome.silent or outcome.failures:
            return
        words = ", ".join(f"{silent} (in {self._phase(silent, phase)})" for silent in outcome.silent)
        hang_report = outcome.hang or self.examine(layout, done=outcome.values, limit_s=limit_s)
        self.kill(outcome.silent)
        rank = hang_report.culprits[0] if hang_report.culprits else outcome.silent[0]
        raise Hang(
            rank=rank,
            phase=self._phase(rank, phase),
            cause=f"no answer within {hang_report.limit_s:g} s from ranks {words}; they were killed\n"
            f"{hang_report.headline}",
            hang_report=hang_report,
            report=hang_report.details,
        )

    def _kill_useless(self, outcome: Outcome) -> None:
        """End, in one go, ranks that wait for one that failed and those that no later call would survive."""
        together = outcome.lost and self._cluster.launcher.together
        self.kill(self.processes if together else [*outcome.silent, *outcome.lost])

    def _phase(self, rank: int, phase: str) -> str:
        """What the rank said that it was doing, or else the name of the call."""
        return read_phase(self._cluster.run_dir, self.processes[rank].pid) or phase

    def kill(self, ranks: Iterable[int]) -> None:
        self._cluster.kill([self.processes[rank] for rank in ranks])
        self.dead |= set(ranks)

    def examine(self, layout: Layout, *, done: Collection[int] = (), limit_s: float = 0) -> HangReport:
        """What each rank is doing and whom it waits for, read from outside; also while a call hangs.

        Args:
            done: ranks known to have answered.
            limit_s: how long was waited, for the report.
        """
        ranks = range(layout.world_size)
        return examine(
            self._cluster.run_dir,
            {rank: self.processes[rank].pid for rank in ranks},
            layout=layout,
            phases={rank: self._phase(rank, "") for rank in ranks},
            stacks=dict(zip(ranks, self.stacks(ranks), strict=True)),
            done=done,
            dead=self.dead,
            limit_s=limit_s,
        )

    def _watchdog(self, layout: Layout, limit_s: float) -> Callable[[Outcome], HangReport | None]:
        """Notices a round that hangs in the call that begins now."""
        watchdog = Watchdog(
            phases=lambda: {rank: self._phase(rank, "") for rank in range(layout.world_size)},
            seconds_used=lambda: self._cluster.seconds_used(self.processes),
            examine=lambda done: self.examine(layout, done=done, limit_s=limit_s),
            limit_s=limit_s,
        )
        return lambda outcome: watchdog(outcome.values)

    def stacks(self, ranks: Iterable[int]) -> list[str]:
        """The stacks of these ranks."""
        return read_stacks(self._cluster.run_dir, [self.processes[rank] for rank in ranks])

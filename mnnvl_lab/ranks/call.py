"""One call on some ranks: wait for their answers while watching their processes; then say what became of it."""

from __future__ import annotations

import time
from collections.abc import Callable
from concurrent.futures import FIRST_COMPLETED, Future, wait
from typing import Any

from mnnvl_lab.errors import LabError, RankError
from mnnvl_lab.postmortem import Verdict
from mnnvl_lab.ranks.cluster import POLL_S, Cluster, Process, failure_of, unpack
from mnnvl_lab.ranks.engine import Failure

GRACE_S = 2.0  # that others get after a rank failed or died: those that wait for it would wait until the limit
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
        self.hang: Verdict | None = None

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
    stall: Callable[[Outcome], Verdict | None] = lambda _: None,
) -> Outcome:
    """Wait for the answers of `pending`, at most `timeout_s`, and a moment of grace once a rank has failed or died.

    Args:
        stall: asked again and again whether a round hangs; if so the waiting ends.

    Raises:
        HelperDied: no answer can come any more.
    """
    outcome, waiting = Outcome(), dict(pending)
    deadline = time.monotonic() + timeout_s
    while waiting:
        wait(waiting.values(), timeout=POLL_S, return_when=FIRST_COMPLETED)
        cluster.require_helpers()
        gone = [rank for rank in waiting if not cluster.alive(processes[rank])]
        done = [rank for rank, future in waiting.items() if future.done()]
        for rank in done:
            outcome.take(rank, waiting.pop(rank))
        for rank in set(gone) - set(done):
            outcome.dead.append(rank)
            del waiting[rank]
        if outcome.failures or outcome.dead:
            deadline = min(deadline, time.monotonic() + (LOST_GRACE_S if outcome.lost else GRACE_S))
        elif waiting:
            outcome.hang = stall(outcome)
        if outcome.hang or time.monotonic() > deadline:
            break
    outcome.silent = list(waiting)
    return outcome


def raise_failures(outcome: Outcome, *, phase: str) -> None:
    """Re-raise what the ranks raised: a `LabError` that all raised alike as it is, anything else as a `RankError`."""
    if not outcome.failures:
        return
    (rank, first), *others = outcome.failures.items()
    alike = all(other.words == first.words for _, other in others)
    if isinstance(first.error, LabError) and alike and not outcome.values and not outcome.silent:
        raise first.error
    cause = first.words + "".join(f"\n  also rank {r}: {_headline(f)}" for r, f in sorted(others))
    raise RankError(rank=rank, phase=first.phase or phase, cause=cause, report=first.report) from first.error


def _headline(failure: Failure) -> str:
    return failure.words.splitlines()[0]

"""The interface of a transport, one mode of dispatch and combine on one fabric, and what all transports share.

A round is data. `dispatch` returns the received rows with the round's handle, and `combine` takes the handle back:

    received = transport.dispatch(batch)
    combined = transport.combine(partials, received.handle)
"""

from __future__ import annotations

import weakref
from abc import ABC, abstractmethod
from contextlib import contextmanager
from typing import TYPE_CHECKING, ClassVar

import numpy as np
import torch

from mnnvl_lab.errors import Refused
from mnnvl_lab.exchange import Batch, Exchange, Handle, Received
from mnnvl_lab.model import Part
from mnnvl_lab.ranks.group import Group
from mnnvl_lab.ranks.rank import Rank
from mnnvl_lab.transport.validation import (
    agree,
    batch_problem,
    check_exchange,
    invalid_ids_problem,
    is_rank_mask,
    partials_problem,
    signature,
)

if TYPE_CHECKING:
    from mnnvl_lab.workspace import Allocation, OneSidedWorkspace, TwoSidedWorkspace


def as_bytes(rows: torch.Tensor) -> torch.Tensor:
    """uint8 `[T, row_bytes]`, the same memory."""
    if rows.numel():
        return rows.view(torch.uint8)
    return torch.empty(rows.shape[0], rows.shape[1] * rows.element_size(), dtype=torch.uint8, device=rows.device)


def as_e4m3(rows: torch.Tensor) -> torch.Tensor:
    """fp8 e4m3 without a scale, saturating, as `cvt.rn.satfinite` casts; torch alone makes NaN of what is beyond."""
    limit = torch.finfo(torch.float8_e4m3fn).max
    return rows.float().clamp(-limit, limit).to(torch.float8_e4m3fn)


def typed(rows: torch.Tensor, part: Part) -> torch.Tensor:
    """`[T, width]` of the part's dtype, the same memory as its bytes."""
    dtype = getattr(torch, part.dtype)
    return rows.view(dtype) if rows.numel() else torch.empty(len(rows), part.width, dtype=dtype, device=rows.device)


class ReceiveBuffer:
    """Memory that rows arrive in, kept from round to round: taking fresh pages would cost more than the copy."""

    def __init__(self):
        self._bytes = torch.empty(0, dtype=torch.uint8)

    def rows(self, count: int, row_bytes: int) -> torch.Tensor:
        """uint8 `[count, row_bytes]`; the same memory at every call, with whatever it held."""
        if self._bytes.numel() < count * row_bytes:
            self._bytes = torch.empty(count * row_bytes, dtype=torch.uint8)
        return self._bytes[: count * row_bytes].view(count, row_bytes)


def leaves_out_ranks(batch: Batch, ep_size: int) -> bool:
    """Whether a rank mask keeps some rank out of this round."""
    mask = getattr(batch, "active_ranks", None)  # of a batch that has not been validated yet
    return is_rank_mask(mask) and len(set(mask)) < ep_size


def active_group(rank: Rank, batch: Batch) -> Group:
    """The EP group, or the active ranks of it alone: those that a mask leaves out may be dead and could not answer.

    Only the active ranks connect, at the first use; later calls return the same group.
    """
    group = rank.group("ep")
    if not leaves_out_ranks(batch, group.size):
        return group
    ranks = tuple(group.ranks[ep_rank] for ep_rank in sorted(set(batch.active_ranks)))
    name = f"ep, active ranks {', '.join(map(str, ranks))}"
    return rank.subgroup(name, ranks)


def moved_problem(wanted: int, laid_out_for: int | None) -> str:
    """Why a round cannot be enqueued before its ranks have met."""
    before = "no size has been agreed on yet" if laid_out_for is None else f"ranks last agreed on {laid_out_for}"
    return (
        f"runtime_max_tokens is {wanted} but {before}: regions move with it, and rows would land where a slower rank "
        "may still pull; call meet(batch) on all active ranks first, or dispatch(batch), which does"
    )


def stale_problem(handle: Handle, in_flight: Handle | None) -> str | None:
    """Why combine cannot take this handle, or None."""
    if handle is in_flight:
        return None
    given = f"of a round of {handle.rows} rows" if isinstance(handle, Handle) else f"a {type(handle).__name__}"
    return (
        f"the handle is {given}, not that of the dispatch in flight: its rows are gone from the workspace; "
        "pass received.handle of the dispatch before this combine"
    )


class Transport(ABC):
    """A mode on a fabric, open for one `Exchange`.

    Args:
        rank: this process's place in the layout, its groups and its device.
        exchange: what it is opened for; equal on all ranks.

    Raises:
        Refused: the exchange breaks a limit of the kernels.
        WorkspaceMismatch: the workspace spans another group than the EP group (some modes say so later).

    Attributes:
        phases: of a round, in turn.
        workspace: the plan of the memory in use; None for modes without a workspace.
        wait_limit_s: seconds without progress after which a rank that waits for another gives up; None where it waits
            for ever, as FlashInfer's kernels do, or as long as the library below does.
        active: ep_ranks of the round in flight; None for all.
    """

    mode: ClassVar[str]
    fabric: ClassVar[str]
    phases: ClassVar[tuple[str, ...]] = ("dispatch", "combine")
    offsets_follow_size: ClassVar[bool] = False  # whether regions of the workspace move with M
    workspace: OneSidedWorkspace | TwoSidedWorkspace | None = None
    wait_limit_s: float | None = None

    def __init__(self, rank: Rank, exchange: Exchange):
        self.rank, self.exchange = rank, exchange
        self.group = rank.group("ep")
        check_exchange(exchange)
        if problem := invalid_ids_problem(exchange, rank.fabric):
            raise Refused(problem)
        self._state = "idle"
        self._in_flight: Handle | None = None  # of the dispatch that awaits its combine
        self._laid_out_for: int | None = None  # M whose offsets all ranks use; None before the first agreement
        self.active: tuple[int, ...] | None = None
        rank.watched = weakref.ref(self)

    @property
    def ep_size(self) -> int:
        return self.group.size

    @property
    def ep_rank(self) -> int:
        return self.group.rank

    def validate(self, batch: Batch) -> None:
        """Check a batch on all ranks together: either all accept it or all refuse it. Collective.

        `dispatch` does so by itself, unless it is told that the batch is `validated`.

        Raises:
            Refused: names the first rank whose batch is wrong, the value, the rule and the remedy.
        """
        problem = batch_problem(self.exchange, batch, self.ep_rank, self.rank.device)
        self._agree(batch, {} if problem else signature(batch), problem, call="check a batch")
        if self._laid_out_for is None and not leaves_out_ranks(batch, self.ep_size):
            self._laid_out_for = batch.runtime_max_tokens

    def meet(self, batch: Batch) -> None:
        """Wait until all active ranks have pulled their last rows and agree on the size of the next round.

        `dispatch` calls this where it is due: where `runtime_max_tokens` differs from the round before. Call it before
        `enqueue_dispatch`, or before replaying a CUDA graph, of a batch of another size. Collective over the batch's
        active ranks; the others may be dead.

        Raises:
            Refused: the batch of one is wrong, or the active ranks bring rounds of different form; on all of them.
        """
        problem = batch_problem(self.exchange, batch, self.ep_rank, self.rank.device)
        self._finish_pulls()
        mine = {} if problem else signature(batch)
        agree(active_group(self.rank, batch), mine, problem, call="meet before a round of another size")
        self._laid_out_for = batch.runtime_max_tokens

    def dispatch(self, batch: Batch, *, validated: bool = False) -> Received:
        """Send each token's row once to every rank that owns one of its experts; return what the others sent here.

        Args:
            batch: what this rank sends.
            validated: all ranks have called `validate` with their batches already; equal on all ranks.

        Raises:
            Refused: on all ranks, if the batch of one is wrong; or a combine is due first.
        """
        with self._moving("idle", "dispatched", "dispatch"):
            if not validated:
                self.validate(batch)
            self.active = batch.active_ranks
            if self._moves(batch):
                self.meet(batch)
            received = self._dispatch(batch, self.enqueue_prepare(batch))
        self._in_flight = received.handle
        return received

    def combine(self, partials: torch.Tensor, handle: Handle) -> torch.Tensor:
        """Add up, for each token of this rank, what the ranks' experts made of it.

        Args:
            partials: `[rows, H]` in `combine_dtype`, a row for each row of `Received`, already weighted and summed over
                this rank's experts.
            handle: of the dispatch before (`Received.handle`).

        Returns:
            `[T, H]` in `combine_dtype` (bf16 with `low_precision_combine`).

        Raises:
            Refused: on all ranks, if the partials of one have another form, or its handle is of another dispatch.
        """
        with self._moving("dispatched", "idle", "combine"):
            problem = self._combine_problem(partials, handle)
            self._agree(self._in_flight.batch, {}, problem, call="check what combine gets")
            combined = self._combine(partials, handle)
        self._in_flight = None
        return combined

    def enqueue_prepare(self, batch: Batch) -> object | None:
        """The bare phase, for clocks and CUDA graphs: nothing is checked, no state kept, no wait for a device.

        The caller has validated the batch, calls the phases in turn and on all ranks. A transport on GPUs only launches
        kernels here, and can be captured; one on the host has done the work when it returns.

        Returns:
            What it found out, for `enqueue_dispatch`; None for modes without this phase.
        """
        return None

    def enqueue_dispatch(self, batch: Batch, prepared: object | None = None) -> Handle:
        """Like `enqueue_prepare`, whose result it takes.

        Raises:
            Refused: the round's size differs from the one that ranks last agreed on, so its rows could land where a
                slower rank still pulls; `meet` first.
        """
        self._require_met(batch)
        return self._dispatch(batch, prepared).handle

    def enqueue_combine(
        self, partials: torch.Tensor, handle: Handle, output: torch.Tensor | None = None
    ) -> torch.Tensor:
        """Like `enqueue_prepare`; the result goes into `output`, `[T, H]`, if it is given."""
        combined = self._combine(partials, handle)
        return combined if output is None else output.copy_(combined)

    @property
    def allocations(self) -> tuple[Allocation, ...]:
        """Memory that this rank has allocated on its GPU, each in a window of its own; none on `host`."""
        return ()

    def workspace_row(self) -> np.ndarray:
        """A copy of this rank's own row, uint8 `[workspace_bytes]`; empty without a workspace."""
        return np.empty(0, dtype=np.uint8)

    def read_flags(self) -> dict[str, np.ndarray]:
        """This rank's flags and counters by region, as they are now, from any thread; none without a workspace."""
        return {}

    def note(self) -> str:
        return ""  # for the record: what the transport did beyond the protocol to stay right

    def explanation(self) -> str:
        return ""  # for the error: what in the transport's state may explain a wrong result

    def partials_buffer(self, handle: Handle) -> torch.Tensor:
        """Where the experts write their result, `[rows, H]`; it lies in the workspace with `payload_in_workspace`."""
        shape = handle.rows, self.exchange.hidden
        return torch.zeros(shape, dtype=self.combine_dtype, device=self.rank.device)

    def _moves(self, batch: Batch) -> bool:
        """Whether this round's regions lie elsewhere than those of the round before."""
        return self.offsets_follow_size and batch.runtime_max_tokens != self._laid_out_for

    def _require_met(self, batch: Batch) -> None:
        if self._moves(batch):
            raise Refused(moved_problem(batch.runtime_max_tokens, self._laid_out_for))

    def _finish_pulls(self) -> None:  # noqa: B027 on the host combine has pulled when it returns
        """Wait for this rank's own combine."""

    def _combine_problem(self, partials: torch.Tensor, handle: Handle) -> str | None:
        """The first broken rule of what this rank brings to combine, or None."""
        form = self._in_flight.rows, self.exchange.hidden, self.exchange.combine_dtype, self.rank.device
        return (
            stale_problem(handle, self._in_flight)
            or partials_problem(partials, *form)
            or self._misplaced(partials, handle)
        )

    def _misplaced(self, partials: torch.Tensor, handle: Handle) -> str | None:
        """What is wrong with where the partials lie, for transports that take them from one place only."""
        return None

    @property
    def combine_dtype(self) -> torch.dtype:
        return {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}[self.exchange.combine_dtype]

    @abstractmethod
    def _dispatch(self, batch: Batch, prepared: object | None) -> Received:
        """Send and receive a round's rows; `prepared` is what `enqueue_prepare` returned."""

    @abstractmethod
    def _combine(self, partials: torch.Tensor, handle: Handle) -> torch.Tensor:
        """Bring the partial sums back and add them up."""

    @abstractmethod
    def close(self) -> None:
        """Release everything that opening took: memory, and what was registered. Idempotent."""

    def abort(self) -> None:
        """Like `close`, after an error: waits for no other rank, since those may be elsewhere or dead."""
        self.close()

    def __enter__(self):
        return self

    def __exit__(self, error_type, error, traceback):
        if error_type is None:
            self.rank.phase = "close"
            self.close()
        else:  # its phase is the one to know
            self.rank.report(error)
            self.abort()

    def _agree(self, batch: Batch, mine: dict[str, object], problem: str | None, *, call: str) -> None:
        """All ranks together; in a round that leaves out dead ranks each for itself, for those could not answer."""
        if not leaves_out_ranks(batch, self.ep_size):
            agree(self.group, mine, problem, call=call)
        elif problem:
            raise Refused(f"ep_rank {self.ep_rank}: {problem}")

    @contextmanager
    def _moving(self, before: str, after: str, verb: str):
        """From one state to the next, or back if the input is refused; a failure half-way leaves a failed transport."""
        self._require(before, verb)
        self._state, self.rank.phase, self.rank.watched = "failed", verb, weakref.ref(self)
        try:
            yield
        except Refused:
            self._state = before
            raise
        self._state, self.rank.phase = after, f"after {verb}"

    def _require(self, state: str, verb: str) -> None:
        if self._state != state:
            rule = "a dispatch is followed by its combine" if state == "idle" else "combine follows a dispatch"
            remedy = "close it and open another" if self._state == "failed" else "call them in turn"
            raise Refused(f"{verb} called while the transport is {self._state!r}: {rule}; {remedy}")

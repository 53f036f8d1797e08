"""Prepare in packets and steps, as `trtllm_alltoall_prepare.cu` sends ids and weights: sound, and with its mistake.

A packet carries 256 units of ids and weights, a step 16 packets (64 where top_k is no multiple of 4). The sender fills
packets and publishes a step by its `head`; the receiver reads the packets of a step, and after its last packet sets
`head` and `tail` to 0. FlashInfer 0.7.2 publishes a last step that is full twice. If the reset comes between the two,
`head` stays above 0, and the receiver of the next round reads the step before it is filled.

Delays are placed where the race is: before the first packet of a round, and before each publication. During a delay
the other transfers of the rank go on, so the receiver of the rank itself always wins the race.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from itertools import count
from typing import Protocol

import numpy as np
import torch

from mnnvl_lab.exchange import Batch
from mnnvl_lab.ranks.sync import Fence
from mnnvl_lab.transport.host.fifo import HEAD, TAIL, FifoChannels, SendBatch, interleave
from mnnvl_lab.transport.host.two_sided import HostTwoSided, TwoSidedHandle
from mnnvl_lab.workspace.two_sided import (
    STATISTICS_PER_PACKET,
    UNITS_PER_PACKET,
    choices_per_unit,
    packets_per_step,
)

STEP_DEPTH = 2  # steps that the buffer holds, as in the kernels
DELAY_S = 0.005
POLLS = 200  # more than the packets of the largest round that is delayed
DELAYED_STEPS = ("fill packet 0", "publish head")


@dataclass(frozen=True, kw_only=True)
class NamedStep:
    """A step of a transfer by the name that the model checker's trace has for it (`model_check.Prepare`)."""

    sender: int
    receiver: int
    process: str
    label: str


class Gate(Protocol):
    """Decides when a named step may run."""

    def may_run(self, step: NamedStep) -> bool:
        """Polled until True; the rank's other transfers go on in between."""

    def done(self, step: NamedStep) -> None:
        """The step has run."""


class StepDelays:
    """Delays the steps at which the mistake shows, each by `delay_s` and `POLLS` polls from when it could first run.

    The polls make the outcome within one rank independent of the machine's load: the rank's own receiver moves on by
    one packet in each.
    """

    def __init__(self, delay_s: float = DELAY_S):
        self._delay_s = delay_s
        self._waiting: dict[NamedStep, tuple[float, int]] = {}

    def may_run(self, step: NamedStep) -> bool:
        name = step.label.partition(": ")[2]
        if name != DELAYED_STEPS[0] and not name.startswith(DELAYED_STEPS[1]):
            return True
        since_s, polls = self._waiting.get(step, (time.monotonic(), 0))
        self._waiting[step] = since_s, polls + 1
        return polls >= POLLS and time.monotonic() - since_s >= self._delay_s

    def done(self, step: NamedStep) -> None:
        self._waiting.pop(step, None)


@dataclass(frozen=True, kw_only=True)
class StepPipeline:
    """One direction between two ranks in one round.

    Attributes:
        slots: int32 `[depth * packets_per_step, 2, choices]` at the receiver: ids, then the bits of the weights.
        connection: uint64 words at the sender; `head` and `tail` count steps of this round.
        packets: packets of this round.
        publishes_twice: whether the end of the round publishes a full step again: the mistake.
        when: runs an action as a named step, once its condition holds and the gate lets it.
    """

    slots: np.ndarray
    connection: np.ndarray
    fence: Fence
    packets: int
    packets_per_step: int
    publishes_twice: bool
    when: Callable[..., Iterator[bool]]

    def send(self, choices_2N: np.ndarray) -> Iterator[bool]:
        """Fill packets and publish steps; yields whether it made progress."""
        published = 0
        for n in range(self.packets):
            room = partial(self._has_room, published) if n % self.packets_per_step == 0 else _always
            yield from self.when(f"fill packet {n}", partial(self._fill, n, choices_2N), room)
            if (n + 1) % self.packets_per_step == 0:
                published += 1
                yield from self.when(f"publish head {published}", partial(self._publish, published))
        left = self.packets % self.packets_per_step
        if left or (self.packets and self.publishes_twice):
            yield from self.when(f"publish head {published + 1}", partial(self._publish, published + 1))

    def receive(self, out_2: Sequence[np.ndarray]) -> Iterator[bool]:
        """Read the packets into `out_2`, ids and weights' bits, then set head and tail to 0."""
        for n in range(self.packets):
            step = n // self.packets_per_step
            if n % self.packets_per_step == 0:
                if step:
                    yield from self.when("release step", partial(self._release, step))
                yield from self.when(f"wait for step {step}", self.fence, partial(self._is_published, step))
            yield from self.when(f"read packet {n}", partial(self._read, n, out_2))
        yield from self.when("reset head and tail", self._reset)

    def _has_room(self, published: int) -> bool:
        return published - int(self.connection[TAIL]) < STEP_DEPTH

    def _is_published(self, step: int) -> bool:
        return int(self.connection[HEAD]) > step

    def _fill(self, n: int, choices_2N: np.ndarray) -> None:
        part = choices_2N[:, self._choices(n)]
        self._slot(n)[:, : part.shape[1]] = part

    def _read(self, n: int, out_2: Sequence[np.ndarray]) -> None:
        for into, sent in zip(out_2, self._slot(n), strict=True):
            part = into[self._choices(n)]
            part[:] = sent[: len(part)]

    def _publish(self, head: int) -> None:
        self.fence()
        self.connection[HEAD] = head

    def _release(self, step: int) -> None:
        self.fence()
        self.connection[TAIL] = step

    def _reset(self) -> None:
        self.fence()
        self.connection[HEAD] = self.connection[TAIL] = 0

    def _slot(self, n: int) -> np.ndarray:
        return self.slots[n % len(self.slots)]

    def _choices(self, n: int) -> slice:
        size = self.slots.shape[2]
        return slice(n * size, (n + 1) * size)


@dataclass(frozen=True, kw_only=True)
class StepChannels(FifoChannels):
    """Prepare's lanes as pipelines of packets and steps.

    Attributes:
        top_k, experts: they fix how many packets a number of rows takes (`workspace.two_sided.prepare_packets`).
        units_per_packet, packets_per_step: sizes; the kernels' unless a replay needs smaller ones.
        publishes_twice: the mistake.
        gate: decides when each named step may run.
        rounds: numbers the rounds, for the names of the steps.
    """

    top_k: int
    experts: int
    units_per_packet: int
    packets_per_step: int
    publishes_twice: bool
    gate: Gate
    rounds: Iterator[int] = field(default_factory=count)

    def move(self, send_batches: Sequence[SendBatch], limit_s: float) -> None:
        """Send and receive the ids and weights of one round; `send_batches` are these two."""
        number = next(self.rounds)
        sends = [(peer, self._sending_steps(send_batches, peer, number)) for peer in self.peers]
        receives = [(peer, self._receiving_steps(send_batches, peer, number)) for peer in self.peers]
        interleave([*sends, *receives], limit_s=limit_s, on_timeout=self.on_timeout, check=self.check)

    def reset_own(self) -> None:
        """Head and tail of every connection of this rank to 0; the counts stay."""
        self.connections_R[self.ep_rank][..., [HEAD, TAIL]] = 0

    def _sending_steps(self, send_batches: Sequence[SendBatch], peer: int, number: int) -> Iterator[bool]:
        choices_2N = np.stack([_words(each.rows[each.index_R[peer]]) for each in send_batches])
        return self._pipeline(self.ep_rank, peer, "sender", number, choices_2N.shape[1]).send(choices_2N)

    def _receiving_steps(self, send_batches: Sequence[SendBatch], peer: int, number: int) -> Iterator[bool]:
        out_2 = [_words(each.out_R[peer]) for each in send_batches]
        return self._pipeline(peer, self.ep_rank, "receiver", number, len(out_2[0])).receive(out_2)

    def _pipeline(self, sender: int, receiver: int, process: str, number: int, choices: int) -> StepPipeline:
        shape = (STEP_DEPTH * self.packets_per_step, 2, self.units_per_packet * choices_per_unit(self.top_k))
        words = _words(self.fifos_R[receiver][sender, 0].view(1, -1))
        name = partial(NamedStep, sender=sender, receiver=receiver, process=process)
        return StepPipeline(
            slots=words[: np.prod(shape)].reshape(shape),
            connection=self.connections_R[sender][receiver, 0],
            fence=self.fence,
            packets=self._packets(choices),
            packets_per_step=self.packets_per_step,
            publishes_twice=self.publishes_twice,
            when=lambda label, act, ready=_always: self._when(name(label=f"round {number}: {label}"), act, ready),
        )

    def _packets(self, choices: int) -> int:
        units = choices // choices_per_unit(self.top_k)
        return max(-(-units // self.units_per_packet), -(-self.experts // STATISTICS_PER_PACKET)) if units else 0

    def _when(self, step: NamedStep, act: Callable[[], None], ready: Callable[[], bool]) -> Iterator[bool]:
        while not (ready() and self.gate.may_run(step)):
            yield False
        act()
        self.gate.done(step)
        yield True


class PrepareInSteps(HostTwoSided):
    """Two-sided with prepare in packets and steps; a full last step is published once.

    Args:
        gate: decides when each named step of prepare may run; by default `StepDelays`.
    """

    publishes_twice = False
    resets_between_rounds = False
    units_per_packet = UNITS_PER_PACKET

    def __init__(self, rank, exchange, *, gate: Gate | None = None):
        self._gate = gate or StepDelays()
        super().__init__(rank, exchange)

    @property
    def packets_per_step(self) -> int:
        return packets_per_step(self.exchange.top_k)

    def enqueue_prepare(self, batch: Batch) -> TwoSidedHandle:
        if self.resets_between_rounds:
            self.group.barrier()  # all ranks have ended the last round: nobody publishes or reads
            self._prepare_channels.reset_own()
        return super().enqueue_prepare(batch)

    def head_and_tail(self, sender: int) -> tuple[int, int]:
        """Words of the connection on which `sender` prepares this rank, as they are now."""
        head, tail = self._prepare_channels.connections_R[sender][self.ep_rank, 0, [HEAD, TAIL]].tolist()
        return head, tail

    def _open_channels(self) -> tuple[FifoChannels, FifoChannels]:
        channels, prepare = super()._open_channels()
        steps = StepChannels(
            **vars(prepare),
            top_k=self.exchange.top_k,
            experts=self.exchange.experts,
            units_per_packet=self.units_per_packet,
            packets_per_step=self.packets_per_step,
            publishes_twice=self.publishes_twice,
            gate=self._gate,
        )
        return channels, steps


class StepPublishedTwice(PrepareInSteps):
    """With the mistake of FlashInfer 0.7.2."""

    publishes_twice = True


class StepPublishedTwiceThenReset(StepPublishedTwice):
    """With the mistake, and cured from outside: each sender sets head and tail to 0 between two rounds."""

    resets_between_rounds = True


def _always() -> bool:
    return True


def _words(rows: torch.Tensor) -> np.ndarray:
    """int32 `[n]`, the same memory as uint8 rows."""
    return rows.reshape(-1).numpy().view(np.int32)

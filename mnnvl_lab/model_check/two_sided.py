"""The two-sided protocol as small models: a FIFO, and `prepare`'s pipeline of packets and steps.

Both are one direction between two ranks; directions share nothing but the exchange of counts, which is part of the
model of `prepare`.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from mnnvl_lab.errors import choose
from mnnvl_lab.model_check.protocol import Memory, Protocol, Step

FIFO_MISTAKES = ("head before rows", "never full")


@dataclass(frozen=True, kw_only=True)
class TwoSidedFifo:
    """Rows through a FIFO (`trtllm_alltoall.cuh`): entries at the receiver, head and tail at the sender.

    Attributes:
        entries: entries sent, over all rounds; the counters go on.
        depth: entries that the FIFO holds; 8 in the kernels.
        mistake: one of `FIFO_MISTAKES`, or None.
    """

    entries: int
    depth: int = 2
    mistake: str | None = None

    def __post_init__(self):
        if self.mistake is not None:
            choose(self.mistake, FIFO_MISTAKES, "mistake")

    @property
    def protocol(self) -> Protocol:
        return Protocol(
            name=f"two_sided FIFO of {self.depth}, {self.entries} entries: {self.mistake or 'sound'}",
            programs={"sender": tuple(self._sender()), "receiver": tuple(self._receiver())},
            cells={"head": 0, "tail": 0} | {f"entry[{i}]": "stale" for i in range(self.depth)},
        )

    def _sender(self) -> Iterator[Step]:
        for n in range(self.entries):

            def fill(memory: Memory, n: int = n) -> None:
                memory.put(f"entry[{n % self.depth}]", n)

            def advance(memory: Memory, n: int = n) -> None:
                memory["head"] = n + 1

            if self.mistake != "never full":
                yield Step(label=f"wait for room for entry {n}", guard=lambda m, n=n: n - m["tail"] < self.depth)
            steps = [Step(label=f"fill entry {n}", act=fill)]
            steps.append(Step(label=f"move head to {n + 1}", act=advance, fence=self.mistake != "head before rows"))
            yield from reversed(steps) if self.mistake == "head before rows" else steps

    def _receiver(self) -> Iterator[Step]:
        for n in range(self.entries):
            yield Step(label=f"wait for head {n + 1}", guard=lambda m, n=n: m["head"] > n)
            yield Step(label=f"take entry {n}", act=lambda m, n=n: m.require(f"entry[{n % self.depth}]", n))
            yield Step(label=f"move tail to {n + 1}", act=lambda m, n=n: m.put("tail", n + 1))


@dataclass(frozen=True, kw_only=True)
class Prepare:
    """`prepare`'s pipeline (`trtllm_alltoall_prepare.cu`, `PacketPipeline`): ids and weights, in packets and steps.

    A full step is published when its last packet is filled. `sendFinalize` publishes what is left, and in FlashInfer
    0.7.2 also a step that is full and published already. The receiver sets head and tail to 0 after its last packet.

    Attributes:
        packets: packets in each round, in turn.
        packets_per_step: 16 in the kernels with top_k divisible by 4, else 64.
        depth: steps that the buffer holds; 2 in the kernels.
        fixed: `sendFinalize` leaves a full step alone.
        reset_between_rounds: the sender sets head and tail to 0 before each round, after both ranks ended the last.
    """

    packets: tuple[int, ...]
    packets_per_step: int = 2
    depth: int = 2
    fixed: bool = False
    reset_between_rounds: bool = False

    @property
    def protocol(self) -> Protocol:
        slots = self.depth * self.packets_per_step
        return Protocol(
            name=f"two_sided prepare, packets {self.packets}, {self.packets_per_step} per step",
            programs={"sender": tuple(self._sender()), "receiver": tuple(self._receiver())},
            cells={"head": 0, "tail": 0, "count": 0, "received": 0} | {f"packet[{i}]": "stale" for i in range(slots)},
        )

    def _slot(self, packet: int) -> str:
        return f"packet[{packet % (self.depth * self.packets_per_step)}]"

    def _sender(self) -> Iterator[Step]:
        for i, packets in enumerate(self.packets):
            yield Step(label=f"round {i}: wait for the peer's count", guard=lambda m, i=i: m["received"] >= i)
            if self.reset_between_rounds:
                yield Step(label=f"round {i}: reset head and tail", act=_reset)
            yield Step(label=f"round {i}: send the count", act=lambda m, n=packets: m.__setitem__("count", n + 1))
            yield from self._send(i, packets)

    def _send(self, i: int, packets: int) -> Iterator[Step]:
        published = 0
        for n in range(packets):
            if n and n % self.packets_per_step == 0:
                room = published - self.depth
                yield Step(label=f"round {i}: wait for room", guard=lambda m, room=room: m["tail"] > room)
            yield Step(
                label=f"round {i}: fill packet {n}", act=lambda m, n=n: m.put(self._slot(n), f"packet {n} of round {i}")
            )
            if (n + 1) % self.packets_per_step == 0:
                published += 1
                yield self._publish(i, published)
        left = packets % self.packets_per_step
        if left or (packets and not self.fixed):
            yield self._publish(i, published + 1)

    def _publish(self, i: int, head: int) -> Step:
        return Step(label=f"round {i}: publish head {head}", act=lambda m: m.__setitem__("head", head), fence=True)

    def _receiver(self) -> Iterator[Step]:
        for i, packets in enumerate(self.packets):
            yield Step(
                label=f"round {i}: take the count",
                guard=lambda m: m["count"] != 0,
                act=lambda m: m.__setitem__("count", 0),
            )
            for n in range(packets):
                step = n // self.packets_per_step
                if n % self.packets_per_step == 0:
                    if step:
                        yield Step(label=f"round {i}: release step", act=lambda m, s=step: m.put("tail", s), fence=True)
                    yield Step(label=f"round {i}: wait for step {step}", guard=lambda m, s=step: m["head"] > s)
                yield Step(
                    label=f"round {i}: read packet {n}",
                    act=lambda m, n=n, i=i: m.require(self._slot(n), f"packet {n} of round {i}"),
                )
            yield Step(label=f"round {i}: reset head and tail", act=_reset, fence=True)
            yield Step(label=f"round {i}: ended", act=lambda m, i=i: m.__setitem__("received", i + 1))


def _reset(memory: Memory) -> None:
    memory["head"] = memory["tail"] = 0

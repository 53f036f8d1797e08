"""Protocols with one line missing: the host transports as someone in a hurry would write them.

Each variant leaves out or swaps one step. Most of the time most of them work, which is what makes such mistakes costly;
so each also naps where the race is, and is then wrong nearly always. `mnnvl_lab.transport.broken` explains them.
"""

from __future__ import annotations

import time
from collections.abc import Sequence

import torch

from mnnvl_lab.transport.base import Admitted, Transport, bare
from mnnvl_lab.transport.epochs import Epochs
from mnnvl_lab.transport.exchange import Batch
from mnnvl_lab.transport.fifo import HEAD, Fifo
from mnnvl_lab.transport.host_lanes import Lanes, Parcel
from mnnvl_lab.transport.host_one_sided import HostOneSided
from mnnvl_lab.transport.host_two_sided import HostTwoSided
from mnnvl_lab.transport.routes import Routes

NAP_S = 0.005
GIVE_UP_S = 1.0


class Unmet(Transport):
    """Ranks check nothing together, so that they do not meet before a round either."""

    def admit(self, batch: Batch) -> Admitted:
        return Admitted(batch=batch)

    def meet(self, batch: Batch | Admitted) -> None:
        self._laid_out_for = bare(batch).runtime_max_tokens

    def _agree(self, batch: Batch, mine: dict[str, object], problem: str | None) -> None:
        pass


class FlagBeforePayload(HostOneSided):
    def _record(self, routes: Routes) -> None:
        super()._record(routes)
        self._announce_rows(self._round.batch, routes)
        for peer in self._round.active:
            self._peers[peer]["dispatch_completion_flags"][self.ep_rank] = self._epochs.now
        time.sleep(NAP_S * self.ep_rank)


class NoBarrierAfterInitialising(Unmet, HostOneSided):
    def _initialize(self) -> None:
        self.wait_limit_s = GIVE_UP_S
        if self.ep_rank == 0:
            time.sleep(20 * NAP_S)
        self._rows[self.ep_rank][: self.workspace.aux_bytes].zero_()


class StuckEpochs(Epochs):
    def advance(self) -> int:
        self._own["flag_val"][0] = 1
        return self.now


class EpochThatStandsStill(HostOneSided):
    def _initialize(self) -> None:
        super()._initialize()
        self._epochs.__class__ = StuckEpochs

    def _record(self, routes: Routes) -> None:
        super()._record(routes)
        time.sleep(NAP_S * self.ep_rank)


class HastyEpochs(Epochs):
    def complete(self, phase: str, active: Sequence[int]) -> None:
        if phase == "combine":
            for peer in active:
                self._aux_R[peer]["combine_completion_flags"][self._ep_rank] = self.now
        else:
            super().complete(phase, active)


class CombineWithoutWaiting(HostOneSided):
    def _initialize(self) -> None:
        super()._initialize()
        self._epochs.__class__ = HastyEpochs

    def _lay_out(self, partials: torch.Tensor) -> int:
        time.sleep(NAP_S * self.ep_rank)
        return super()._lay_out(partials)


class ShapesThatChangeUnmet(Unmet, HostOneSided):
    def _pull(self, stride_bytes: int) -> torch.Tensor:
        if self.ep_rank == self.ep_size - 1:  # whose rows lie furthest into what becomes a faster rank's
            time.sleep(20 * NAP_S)
        return super()._pull(stride_bytes)


class EagerFifo(Fifo):
    """Moves the head on before the rows are there."""

    def entry(self, counter: int, rows: int, row_bytes: int) -> torch.Tensor:
        entry = super().entry(counter, rows, row_bytes)
        if counter == HEAD:
            self.connection[HEAD] += 1
            time.sleep(NAP_S)
        return entry

    def advance(self, counter: int) -> None:
        if counter != HEAD:
            super().advance(counter)


class EndlessFifo(Fifo):
    """Never full."""

    @property
    def space(self) -> int:
        return 1


class EagerLanes(Lanes):
    def fifo(self, sender: int, receiver: int, channel: int) -> Fifo:
        fifo = super().fifo(sender, receiver, channel)
        return EagerFifo(**vars(fifo)) if sender == 0 else fifo


class EndlessLanes(Lanes):
    def move(self, parcels: Sequence[Parcel], limit_s: float) -> None:
        if self.ep_rank == 0:
            time.sleep(20 * NAP_S)
        super().move(parcels, limit_s)

    def fifo(self, sender: int, receiver: int, channel: int) -> Fifo:
        return EndlessFifo(**vars(super().fifo(sender, receiver, channel)))


class HeadBeforeRows(HostTwoSided):
    def _open_lanes(self) -> tuple[Lanes, Lanes]:
        lanes, prepare = super()._open_lanes()
        return EagerLanes(**vars(lanes)), prepare


class FifoNeverFull(HostTwoSided):
    def _open_lanes(self) -> tuple[Lanes, Lanes]:
        self.wait_limit_s = GIVE_UP_S
        lanes, prepare = super()._open_lanes()
        return EndlessLanes(**vars(lanes)), prepare

"""Guard for FlashInfer's two-sided prepare: resets the heads of connections where a step may be published twice.

A connection's head and tail lie with its sender and are 0 at rest. Where the last step is full
(`mnnvl_lab.workspace.two_sided`), the sender's second publication may come after the receiver's reset and leave the
head above 0. When a combine has ended, every target that this rank sent rows to has sent them back: its prepare is long
over, its reset done, and nothing touches the words before this rank's next prepare. So they are looked at and set back
there, in stream order, without a barrier, also inside a CUDA graph. Rounds whose steps are not full pay nothing.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from mnnvl_lab.errors import Refused
from mnnvl_lab.exchange import Batch, Exchange
from mnnvl_lab.workspace.two_sided import fills_last_step, first_rows_that_fill

if TYPE_CHECKING:
    import torch

    from mnnvl_lab.ranks.group import Group


class StepGuard:
    """One rank's guard, collective where it has to wait.

    Args:
        exchange: for its top_k, experts and size.
        words: int64 `[R, words]` in this rank's row of prepare's workspace: head, tail and count of each connection.
        group: the EP group.
    """

    def __init__(self, exchange: Exchange, words: torch.Tensor, group: Group):
        import torch

        self._exchange, self._words, self._group = exchange, words, group
        self._shape = {"top_k": exchange.top_k, "experts": exchange.experts}
        self._needed_from = first_rows_that_fill(**self._shape)
        self._lost_R = torch.zeros(exchange.ep_size, dtype=torch.int64, device=words.device)
        self._counted: tuple[Batch | None, tuple[int, ...], bool] = (None, (), False)
        self._full: tuple[int, ...] = ()  # targets whose last step the prepare in flight fills
        self._ever_full: set[int] = set()
        self._open = False  # whether some rank's prepare is full and no combine has followed yet

    def count(self, batch: Batch) -> None:
        """Count the rows to each target, on the host. Collective; not to be called where time is taken."""
        if batch.runtime_max_tokens >= self._needed_from:
            rows_R = rows_to_targets(batch.experts_TK, experts=self._exchange.experts, ep_size=self._exchange.ep_size)
            full = tuple(target for target, rows in enumerate(rows_R) if fills_last_step(rows, **self._shape))
            self._counted = (batch, full, any(self._group.allgather(bool(full), call="count rows to each target")))

    def before_prepare(self, batch: Batch) -> None:
        """Note which targets need the guard. After a prepare without a combine all ranks wait for one another first.

        Raises:
            Refused: that wait falls into a CUDA graph.
        """
        if self._open:
            self._come_to_rest()
        self._full, self._open = self._full_targets(batch)
        self._ever_full |= set(self._full)

    def after_combine(self) -> None:
        """Set heads and tails back, if the round's prepare may have published a step twice."""
        self._open = False
        if self._full:
            self._reset()

    def lost_steps_R(self) -> tuple[int, ...]:
        """Steps lost and set back so far, by target; waits for the device."""
        return tuple(self._lost_R.tolist())

    def note(self) -> str:
        """For the record: what was guarded, and what was found."""
        if not self._ever_full:
            return ""
        lost = {target: steps for target, steps in enumerate(self.lost_steps_R()) if steps}
        found = ", ".join(f"{steps} to ep_rank {target}" for target, steps in lost.items()) or "none"
        return (
            f"the last step of prepare is full to ep_ranks {', '.join(map(str, sorted(self._ever_full)))}, and "
            f"FlashInfer publishes it twice: heads set back after each combine; steps lost and set back: {found}"
        )

    def explanation(self) -> str:
        """Why ids and weights may be another round's: heads that are not 0 where nothing is in flight."""
        heads = {target: head for target, head in enumerate(self._words[:, 0].tolist()) if head}
        if not heads:
            return ""
        return (
            f"prepare's connections have heads {heads} by ep_rank where 0 is due at rest: a full last step was "
            "published twice, so rounds read the ids and weights of the round before "
            "(docs/findings/two-sided-prepare.md); combine after every prepare, or open with mended_prepare=True"
        )

    def _full_targets(self, batch: Batch) -> tuple[tuple[int, ...], bool]:
        """Targets of this rank whose last step is full, and whether any rank has one; maybe all, if not counted."""
        if batch.runtime_max_tokens < self._needed_from:
            return (), False
        counted, full, anywhere = self._counted
        return (full, anywhere) if counted is batch else (tuple(range(self._exchange.ep_size)), True)

    def _reset(self) -> None:
        self._lost_R += self._words[:, 0] != 0
        self._words[:, :2].zero_()

    def _come_to_rest(self) -> None:
        """Wait until no rank has a prepare in flight, then set the words back. Collective."""
        import torch

        if self._on_gpu and torch.cuda.is_current_stream_capturing():
            raise Refused(
                "a prepare that fills its last step was not followed by a combine, and the next one is captured in a "
                "CUDA graph: a combine or a barrier must bring it to rest; capture prepare, dispatch and combine in "
                "turn, or open the transport with mended_prepare=True"
            )
        self._meet()
        self._reset()
        self._meet()

    def _meet(self) -> None:
        """All ranks, with nothing left in flight on their devices."""
        import torch

        if self._on_gpu:
            torch.cuda.synchronize(self._words.device)
        self._group.barrier()

    @property
    def _on_gpu(self) -> bool:
        return self._words.device.type == "cuda"


def rows_to_targets(experts_TK: torch.Tensor, *, experts: int, ep_size: int) -> tuple[int, ...]:
    """Tokens that chose one expert of each rank at least; the kernel's owner is `id / (E / R)`, truncated as in C.

    Ids of padding count where they lead; those that lead to no rank count in a column of their own.
    """
    import torch

    owners = torch.div(experts_TK, experts // ep_size, rounding_mode="trunc").long()
    owners = torch.where((owners >= 0) & (owners < ep_size), owners, ep_size)
    nowhere = torch.zeros(len(experts_TK), ep_size + 1, dtype=torch.bool, device=experts_TK.device)
    return tuple(nowhere.scatter_(1, owners, True)[:, :-1].sum(0).tolist())

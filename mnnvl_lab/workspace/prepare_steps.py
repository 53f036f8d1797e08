"""Which rounds FlashInfer's two-sided `moe_prepare` may get wrong: those whose packets to a target fill the last step.

Prepare sends ids and weights in units of four choices, or of one if top_k is no multiple of four; 256 units are a
packet, 16 packets a step, or 64 (`allToAllMetadataDevice` and `PipelineConfig` of `trtllm_alltoall_prepare.cu` and
`.cuh`, FlashInfer 0.7.2). `finishSendPacket` publishes a step when it is full, and `sendFinalize` publishes the last
one. If the last is full, both do: then the receiver's reset may come between the two, and the head of that connection
stays above 0, so that every later round reads a step too early. `docs/findings/two-sided-prepare.md` tells the rest.
"""

from __future__ import annotations

from mnnvl_lab.workspace.region import require_at_least

UNITS_PER_PACKET = 256  # UNIT_PER_ITER
STATISTICS_PER_PACKET = 512  # 4 * STATIC_COPY_PER_ITER: packets also count the experts, sent or not


def choices_per_unit(top_k: int) -> int:
    return 4 if top_k % 4 == 0 else 1


def packets_per_step(top_k: int) -> int:
    return 16 if top_k % 4 == 0 else 64


def prepare_packets(rows: int, *, top_k: int, experts: int) -> int:
    """Packets that carry the ids and weights of so many rows to one target; none without rows.

    Raises:
        Refused: negative rows, or top_k or experts below 1.
    """
    require_at_least(0, rows=rows)
    require_at_least(1, top_k=top_k, experts=experts)
    units = rows * top_k // choices_per_unit(top_k)
    return max(-(-units // UNITS_PER_PACKET), -(-experts // STATISTICS_PER_PACKET)) if units else 0


def fills_last_step(rows: int, *, top_k: int, experts: int) -> bool:
    """Whether the last step to a target that gets so many rows is full, so that it is published twice."""
    packets = prepare_packets(rows, top_k=top_k, experts=experts)
    return packets > 0 and packets % packets_per_step(top_k) == 0


def first_rows_that_fill(*, top_k: int, experts: int) -> int:
    """The fewest rows to a target that fill a step: below, no round needs a guard."""
    at_least, step = -(-experts // STATISTICS_PER_PACKET), packets_per_step(top_k)
    full = -(-at_least // step) * step
    if full == at_least:
        return 1  # so many experts that their packets alone fill a step
    return (full - 1) * UNITS_PER_PACKET * choices_per_unit(top_k) // top_k + 1

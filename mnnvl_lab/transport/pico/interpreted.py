"""What Triton's interpreter needs in place of two functions of `kernels`: it has no inline assembly, and it cuts
float32 off to bfloat16 where a GPU rounds (Triton 3.9)."""

from __future__ import annotations

import triton.language as tl

from mnnvl_lab.errors import RankTimeout
from mnnvl_lab.transport.host.sync import WAIT_LIMIT_S, wait_until


def acquire(flags):
    return tl.atomic_add(flags, 0, sem="acquire", scope="sys")


def wait(flags, epoch) -> None:
    """Poll until all flags hold the epoch.

    Args:
        flags: block of pointers to int32.
        epoch: scalar int32.

    Raises:
        RankTimeout: after `WAIT_LIMIT_S` seconds; the transport says for which rank.
    """

    def timed_out() -> RankTimeout:
        return RankTimeout(rank=-1, phase="", cause=f"waited {WAIT_LIMIT_S:g} s")

    wait_until(lambda: bool((acquire(flags) == epoch).handle.data.all()), limit_s=WAIT_LIMIT_S, on_timeout=timed_out)


def rounded(total, TYPE: tl.constexpr):
    """`total` to the nearest value of TYPE, ties to even, as a GPU converts it."""
    if TYPE == tl.bfloat16:
        bits = total.to(tl.int32, bitcast=True)
        nearest = (bits + 0x7FFF + ((bits >> 16) & 1)) >> 16
        quiet = (bits >> 16) | 0x40  # of NaN, whose bits must not overflow
        return tl.where(total == total, nearest, quiet).to(tl.int16).to(TYPE, bitcast=True)
    return total.to(TYPE)

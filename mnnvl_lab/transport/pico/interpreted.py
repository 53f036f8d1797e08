"""What Triton's interpreter needs in place of two functions of `kernels`: it has no inline assembly, and it cuts
float32 off to bfloat16 where a GPU rounds (Triton 3.9)."""

from __future__ import annotations

from collections.abc import Callable
from contextvars import ContextVar
from dataclasses import replace

import triton.language as tl
from triton.runtime.interpreter import interpreter_builder

from mnnvl_lab.errors import RankTimeout
from mnnvl_lab.ranks.sync import wait_until
from mnnvl_lab.transport.host.epochs import WAIT_LIMIT_S

# The interpreter computes every sum and product of integers a second time to see whether it overflows, and then drops
# what it found unless it debugs, which it does not: a quarter of a kernel's time for nothing.
interpreter_builder.options = replace(interpreter_builder.options, sanitize_overflow=interpreter_builder.options.debug)


check_peers: ContextVar[Callable[[], None] | None] = ContextVar("check_peers", default=None)
"""Called now and then while a kernel waits; raises if it waits in vain. A kernel takes no function as an argument."""


def acquire(flags):
    return tl.atomic_add(flags, 0, sem="acquire", scope="sys")


def wait(flags, epoch) -> None:
    """Poll until all flags hold the epoch.

    Args:
        flags: block of pointers to int32.
        epoch: scalar int32.

    Raises:
        RankTimeout: after `WAIT_LIMIT_S` seconds; the transport says for which rank. RankDied: from `check_peers`.
    """

    def timed_out() -> RankTimeout:
        return RankTimeout(rank=-1, phase="", cause=f"waited {WAIT_LIMIT_S:g} s")

    wait_until(
        lambda: bool((acquire(flags) == epoch).handle.data.all()),
        limit_s=WAIT_LIMIT_S,
        on_timeout=timed_out,
        check=check_peers.get(),
    )


def rounded(total, TYPE: tl.constexpr):
    """`total` to the nearest value of TYPE, ties to even, as a GPU converts it."""
    if TYPE == tl.bfloat16:
        bits = total.to(tl.int32, bitcast=True)
        nearest = (bits + 0x7FFF + ((bits >> 16) & 1)) >> 16
        quiet = (bits >> 16) | 0x40  # of NaN, whose bits must not overflow
        return tl.where(total == total, nearest, quiet).to(tl.int16).to(TYPE, bitcast=True)
    return total.to(TYPE)

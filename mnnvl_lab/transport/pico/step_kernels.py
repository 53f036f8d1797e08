"""The kernel of notebook 12: a put that grows, one constant per lesson.

Memory is 16 int32 per rank: seven rows of two numbers, the count, the flag.
"""

import triton
import triton.language as tl


@triton.jit
def put(
    memory,
    rows,
    targets,
    counters,
    epoch,
    T,
    K: tl.constexpr,
    COUNT: tl.constexpr,
    DISTINCT: tl.constexpr,
    FLAG: tl.constexpr,
):
    """Program t stores row t at each rank that it names; the last one publishes counts and flags of both ranks."""
    t = tl.program_id(0)
    pair = tl.arange(0, 2)
    row = tl.load(rows + t * 2 + pair)
    for k in tl.static_range(K):
        target = tl.load(targets + t * K + k)
        named = 0
        for earlier in tl.static_range(k):
            named = tl.where(tl.load(targets + t * K + earlier) == target, 1, named)
        if named * DISTINCT == 0:
            slot = 0
            if COUNT:
                slot = tl.atomic_add(counters + target, 1)
            tl.store(memory + target * 16 + slot * 2 + pair, row)
    if FLAG & (t == T - 1):
        for rank in tl.static_range(2):
            tl.store(memory + rank * 16 + 14, tl.load(counters + rank))
            tl.atomic_xchg(memory + rank * 16 + 15, epoch, sem="release", scope="sys")

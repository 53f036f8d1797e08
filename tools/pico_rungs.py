"""An earlier rung of `tools.pico_ladder`: each program pushes a part of a row with a flag of its own, then adds up."""

import triton
import triton.language as tl

from mnnvl_lab.transport.pico.kernels import add_up, begin_kernel, push, row_of, word


# fmt: off
@triton.jit(do_not_specialize=["me", "T", "M", "blocks", "pushers"])
def combine_fused(
    y, partials, begin, base, stride, me, T, M, blocks, pushers,
    R: tl.constexpr, R2: tl.constexpr, K: tl.constexpr, KR2: tl.constexpr, TREE: tl.constexpr,
    TYPE: tl.constexpr, H: tl.constexpr, H2: tl.constexpr, CHUNK: tl.constexpr, SPLIT: tl.constexpr,
    AT: tl.constexpr, PDL: tl.constexpr,
):
    """Arguments as `kernels.combine`. Needs counted slots: then no token waits for a program behind its own."""
    begin_kernel(PDL)
    pid = tl.program_id(0)
    own = row_of(base, stride, me)
    epoch = tl.load(word(own, AT[9])) + 1
    if pid == 0:
        tl.store(word(own, AT[0]), epoch)
        tl.store(word(own, AT[8]), epoch)
    t = pid // SPLIT
    part = pid % SPLIT
    push(partials, begin, base, stride, me, M, blocks, t, part, epoch, R, R2, TYPE, H, H2, 1, SPLIT, AT)
    add_up(y, partials, begin, base, stride, me, T, M, blocks, t, part, epoch,
           R, K, KR2, TREE, TYPE, H, H2, 1, SPLIT, AT)
# fmt: on

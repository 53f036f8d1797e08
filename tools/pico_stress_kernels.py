"""Device side of `tools.pico_stress`: rows of a round, a random pause, and the comparison."""

import triton
import triton.language as tl


@triton.jit
def value(number, seed, rank, token, column):
    """An integer between -125 and 125 that bfloat16 holds exactly, also when doubled."""
    mixed = (number * 7919 + seed * 104729 + rank * 1299709 + token * 31 + column * 17) % 251
    return mixed.to(tl.int32) - 125


@triton.jit(do_not_specialize=["seed", "rank", "T"])
def begin(x, number, seed, rank, T, H: tl.constexpr):
    t = tl.program_id(0)
    column = tl.arange(0, H)
    row = value(tl.load(number), seed, rank, t, column).to(tl.bfloat16)
    tl.store(x + t * H + column, row, mask=column < tl.where(t < T, H, 0))


@triton.jit
def clock():
    return tl.inline_asm_elementwise("mov.u64 $0, %clock64;", "=l", [], dtype=tl.int64, is_pure=False, pack=1)


@triton.jit(do_not_specialize=["seed", "rank", "phase"])
def pause(number, seed, rank, phase):
    """Up to 8 microseconds, in three of four rounds none."""
    mixed = (tl.load(number) * 48271 + seed * 69621 + rank * 16807 + phase * 39373) * 2654435761 % 65521
    cycles = tl.where(mixed % 4 == 0, mixed // 4, 0)
    start = clock()
    while clock() - start < cycles:
        pass


@triton.jit(do_not_specialize=["seed", "rank", "T"])
def check(y, targets, number, wrong, seed, rank, T, H: tl.constexpr):
    """Counts rows that differ from the token's row times the number of ranks it went to, and the rounds with any."""
    t = tl.program_id(0)
    if t < T:
        column = tl.arange(0, H)
        expected = value(tl.load(number), seed, rank, t, column) * tl.load(targets + t)
        got = tl.load(y + t * H + column).to(tl.float32)
        if tl.max((got != expected.to(tl.float32)).to(tl.int32), 0) > 0:
            tl.atomic_add(wrong, 1)
            before = tl.atomic_max(wrong + 2, tl.load(number) + 1)  # the last wrong round, so that each counts once
            if before < tl.load(number) + 1:
                tl.atomic_add(wrong + 1, 1)

"""An expert-parallel all-to-all in two Triton kernels: dispatch puts rows at their targets, combine brings them back.

Every rank maps the workspaces of all ranks, `stride` bytes apart (rank r's begins at `base + r * stride`), so a store
to a peer is an ordinary store. The layout is that of FlashInfer's one-sided workspace, with a few more words behind it:

    dispatch region   [R, M, words]  row `slot` of source s, put there by s
    combine region    [R, M, H]      pull: what this rank's experts made of row `slot` of source s, loaded by s
                                     push: what s made of the row of this rank that has `slot` there, put here by s
    flags             [R, blocks]    flag i of rank s holds the epoch for which block i of s has arrived

Ordering. A program stores rows, passes a barrier, and raises a flag with release semantics at system scope. The barrier
orders the stores of all threads of the program before the one thread that raises the flag; release orders them before
the flag for whoever reads it with acquire semantics. Rows are read only after that, and never through the L1 cache.
A flag is never cleared: each phase of each round waits for its own epoch, with equality.

Reuse. Every flag that is raised is waited for at each peer, and no kernel ends before all peers have begun the same
phase. So when a rank dispatches again, its peers have read the rows and counts of the round before; when experts write
again, or rows are pushed again, the peers have added up what was there. That needs no barrier between rounds.

Progress. Programs start in the order of their number. Pushes and pulls wait for no program behind them: dispatch waits
for the program of its own number at each peer, or the last one, pull for the first, push for none.

Shapes: R ranks, T tokens of this rank, M tokens of the fullest rank, K top_k, E experts, H hidden. A row of dispatch is
a number of words of the type `WORD`. Constants are upper case; those that end in 2 are powers of two
that cover the thing (`WORDS2[0]` and `H2`: one part of a row that SPLIT programs share).
`AT` names the places of single words in a rank's row (`PicoWorkspace.places`). Memory is passed by address, as int64.
The same kernels run between CPU processes in Triton's interpreter (TRITON_INTERPRET=1).
"""

import triton
import triton.language as tl

INTERPRETED = triton.knobs.runtime.interpret

if INTERPRETED:
    from mnnvl_lab.transport.pico.interpreted import rounded, wait
else:
    from triton.language.extra.cuda import gdc_launch_dependents, gdc_wait

    @triton.jit
    def acquire(flags):
        """Read flags with acquire semantics; a load costs less than the atomic add of 0 that Triton offers."""
        asm: tl.constexpr = "ld.acquire.sys.global.b32 $0, [$1];"
        return tl.inline_asm_elementwise(asm, "=r,l", [flags], dtype=tl.int32, is_pure=False, pack=1)

    @triton.jit
    def wait(flags, epoch):
        """Until all these flags hold the epoch. The barrier passes on what the polling threads have acquired."""
        while tl.max((acquire(flags) != epoch).to(tl.int32), 0) != 0:
            pass
        tl.debug_barrier()

    @triton.jit
    def rounded(total, TYPE: tl.constexpr):
        return total.to(TYPE)


inlined = (lambda function: function) if INTERPRETED else triton.jit
"""What the kernels call. The interpreter prepares Triton anew at each call of a `jit` function, which takes longer than
most bodies; inside a kernel that is not needed."""

total_of, most_of = (tl.sum.fn, tl.max.fn) if INTERPRETED else (tl.sum, tl.max)  # for the same reason


@inlined
def begin_kernel(PDL: tl.constexpr):
    """Programmatic dependent launch: start early, but touch memory only when the kernel before has ended."""
    if PDL:
        gdc_wait()
        gdc_launch_dependents()


@inlined
def at(address, TYPE: tl.constexpr):
    return address.to(tl.pointer_type(TYPE))


@inlined
def aligned(address, TYPE: tl.constexpr, ALIGN: tl.constexpr):
    """A pointer that is known to be divisible by ALIGN, so that 16 bytes move at a time."""
    return tl.multiple_of(address.to(tl.pointer_type(TYPE)), ALIGN)


@inlined
def word(row, place: tl.constexpr):
    return (row + place).to(tl.pointer_type(tl.int32))


@inlined
def row_of(base, stride, rank):
    return base + tl.cast(rank, tl.int64) * stride


@inlined
def flag_at(row, phase: tl.constexpr, source, index, blocks, AT: tl.constexpr):
    """Flag `index` of `source`: the first is FlashInfer's own completion flag, which a diagnosis of hangs reads."""
    place = tl.where(index == 0, AT[4 + phase] + 4 * source, AT[6 + phase] + 4 * (source * blocks + index))
    return (row + place).to(tl.pointer_type(tl.int32))


@inlined
def signal(flags, epoch, valid):
    """Raise one flag per rank, each by a thread of its own; see "Ordering"."""
    tl.debug_barrier()
    tl.atomic_xchg(flags, epoch, mask=valid, sem="release", scope="sys")


@inlined
def owner(experts, valid, E: tl.constexpr, R: tl.constexpr):
    """The rank that owns an expert, -1 where not valid: the first E mod R ranks own one expert more."""
    small: tl.constexpr = E // R
    cut: tl.constexpr = E % R * (small + 1)
    rank = experts // small
    if cut > 0:
        rank = tl.where(experts < cut, experts // (small + 1), E % R + (experts - cut) // small)
    return tl.where(valid, rank, -1)


@inlined
def pick(values, index, wanted):
    """The element of a short vector at a position that is known only now."""
    return total_of(tl.where(index == wanted, values, 0), 0)


# fmt: off
@triton.jit(do_not_specialize=["me", "T", "M", "blocks"])
def dispatch(
    main, others, experts, weights, begins, base, stride, me, T, M, blocks,
    R: tl.constexpr, R2: tl.constexpr, K: tl.constexpr, K2: tl.constexpr, E: tl.constexpr,
    WORD: tl.constexpr, WORDS: tl.constexpr, WORDS2: tl.constexpr, ALIGN: tl.constexpr,
    COUNT2: tl.constexpr, ATOMICS: tl.constexpr, SPLIT: tl.constexpr, AT: tl.constexpr, PDL: tl.constexpr,
):
    """Puts each token's row once at every rank that owns one of its experts; program t * SPLIT + p puts part p of it.

    Slots: each program counts the tokens before its own, or (ATOMICS) takes them from counters, which combine clears.
    Flags: each program raises its own, and one more program counts all rows (COUNT2 is a power of two, at least T); or
    (COUNT2 is 0) the last program that comes to its end raises one flag for all.
    """
    begin_kernel(PDL)
    pid = tl.program_id(0)
    t = pid // SPLIT
    part = pid % SPLIT
    own = row_of(base, stride, me)
    r = tl.arange(0, R2)
    k = tl.arange(0, K2)
    choice = k < tl.where(t < T, K, 0)  # false in programs beyond this rank's last token
    epoch = tl.load(word(own, AT[8])) + 1
    off = part * WORDS2[0] + tl.arange(0, WORDS2[0])
    valid = off < tl.where(t < T, WORDS[0], 0)
    row = tl.load(aligned(main, WORD, ALIGN) + tl.cast(t, tl.int64) * WORDS[0] + off, mask=valid)
    chosen = tl.load(at(experts, tl.int32) + t * K + k, mask=choice, other=0)
    weight = tl.load(at(weights, tl.int32) + t * K + k, mask=choice, other=0)
    to = owner(chosen, choice, E, R)
    named = most_of((to[:, None] == r[None, :]).to(tl.int32), 0)
    first = (total_of(((to[:, None] == to[None, :]) & (k[:, None] < k[None, :])).to(tl.int32), 0) == 0) & (to >= 0)
    if ATOMICS:
        slot = tl.atomic_add(word(own, AT[10]) + r, 1, mask=named > 0, sem="relaxed", scope="gpu")
        count = slot  # not known yet
    else:
        slot, count = count_slots(experts, t, T, R, R2, K, E, COUNT2)
    slots = put(row, chosen, weight, others, begins, base, stride, me, M, t, part, off, named, slot, to, first,
                R, R2, K, K2, WORD, WORDS, WORDS2, ALIGN)
    if part == 0:  # for combine: for each choice the rank that it is the first to name, and the slot there
        tl.store(word(own, AT[12]) + t * K + k, tl.where(first, to, -1), mask=choice)
        tl.store(word(own, AT[13]) + t * K + k, slots, mask=choice)
    if COUNT2 > 0:
        if pid == tl.num_programs(0) - 1:
            if ATOMICS:
                slot, count = count_slots(experts, t, T, R, R2, K, E, COUNT2)
            publish(count, base, stride, me, T, epoch, R, R2, AT)
        signal(flag_at(row_of(base, stride, r), 0, me, pid, blocks, AT), epoch, r < R)
        wait(flag_at(own, 0, tl.minimum(r, R - 1), pid, blocks, AT), epoch)
    else:
        finish_last(base, stride, me, T, epoch, blocks, R, R2, AT)


@inlined
def count_slots(
    experts, t, T, R: tl.constexpr, R2: tl.constexpr, K: tl.constexpr, E: tl.constexpr, COUNT2: tl.constexpr,
):
    """For each rank: how many of the tokens before token t go there, and how many of all."""
    r = tl.arange(0, R2)
    every = tl.arange(0, COUNT2)
    ranks = tl.full([COUNT2], 0, tl.int64)  # one bit for each rank that a token names
    for i in tl.static_range(K):
        theirs = owner(tl.load(at(experts, tl.int32) + every * K + i, mask=every < T, other=0), every < T, E, R)
        ranks = ranks | tl.where(theirs >= 0, 1 << tl.maximum(theirs, 0).to(tl.int64), 0)
    sent = ((ranks[:, None] >> r[None, :]) & 1).to(tl.int32)
    return total_of(tl.where((every < t)[:, None], sent, 0), 0), total_of(sent, 0)


@inlined
def put(
    row, chosen, weight, others, begins, base, stride, me, M, t, part, off, named, slot, to, first,
    R: tl.constexpr, R2: tl.constexpr, K: tl.constexpr, K2: tl.constexpr,
    WORD: tl.constexpr, WORDS: tl.constexpr, WORDS2: tl.constexpr, ALIGN: tl.constexpr,
):
    """Stores one part of a token's row at each rank that it names, part 0 also all other payloads; gives its slots."""
    r = tl.arange(0, R2)
    k = tl.arange(0, K2)
    slots = tl.full([K2], -1, tl.int32)
    for i in range(R):  # the next rank first, so that not all ranks write to the same one at a time
        q = (me + 1 + i) % R
        if pick(named, r, q) > 0:
            place = pick(slot, r, q)
            slots = tl.where((to == q) & first, place, slots)
            there = row_of(base, stride, q)
            line = tl.cast(me * M + place, tl.int64)
            target = aligned(there + begins[0], WORD, ALIGN) + line * WORDS[0]
            tl.store(target + off, row, mask=off < WORDS[0])
            if part == 0:
                tl.store(at(there + begins[-2], tl.int32) + line * K + k, chosen, mask=k < K)
                tl.store(at(there + begins[-1], tl.int32) + line * K + k, weight, mask=k < K)
                for p in tl.static_range(len(WORDS) - 1):
                    o = tl.arange(0, WORDS2[p + 1])
                    more = tl.load(at(others[p], WORD) + t * WORDS[p + 1] + o, mask=o < WORDS[p + 1])
                    tl.store(at(there + begins[p + 1], WORD) + line * WORDS[p + 1] + o, more, mask=o < WORDS[p + 1])
    return slots


@inlined
def finish_last(base, stride, me, T, epoch, blocks, R: tl.constexpr, R2: tl.constexpr, AT: tl.constexpr):
    """The last program to come here publishes the counts, raises this rank's flag at all ranks and waits for theirs."""
    r = tl.arange(0, R2)
    own = row_of(base, stride, me)
    tl.debug_barrier()  # the counter releases and acquires: its last program has seen the stores of all others
    done = tl.atomic_add(word(own, AT[11]), 1, sem="acq_rel", scope="gpu")
    if done == tl.num_programs(0) - 1:
        count = tl.load(word(own, AT[10]) + r, mask=r < R, cache_modifier=".cg")
        publish(count, base, stride, me, T, epoch, R, R2, AT)
        tl.store(word(own, AT[11]), 0)
        signal(flag_at(row_of(base, stride, r), 0, me, 0, blocks, AT), epoch, r < R)
        wait(flag_at(own, 0, tl.minimum(r, R - 1), 0, blocks, AT), epoch)


@inlined
def publish(count, base, stride, me, T, epoch, R: tl.constexpr, R2: tl.constexpr, AT: tl.constexpr):
    """How many rows each target gets; the epoch goes where combine reads it, which is not where this kernel does."""
    r = tl.arange(0, R2)
    own = row_of(base, stride, me)
    tl.store(word(row_of(base, stride, r), AT[3]) + me, count, mask=r < R)
    tl.store(word(own, AT[2]) + r, count, mask=r < R)
    tl.store(word(own, AT[1]), T)
    tl.store(word(own, AT[0]), epoch)
    tl.store(word(own, AT[9]), epoch)


@triton.jit(do_not_specialize=["me", "T", "M", "blocks", "pushers"])
def combine(
    y, partials, begin, base, stride, me, T, M, blocks, pushers,
    R: tl.constexpr, R2: tl.constexpr, K: tl.constexpr, KR2: tl.constexpr, TREE: tl.constexpr,
    TYPE: tl.constexpr, H: tl.constexpr, H2: tl.constexpr, CHUNK: tl.constexpr, SPLIT: tl.constexpr,
    AT: tl.constexpr, PDL: tl.constexpr,
):
    """Adds up the rows that the ranks' experts made of each token; program t * SPLIT + p adds up part p of token t.

    Pull (CHUNK is 0): the experts have written their rows into the combine region. Each rank raises one flag, and loads
    its rows from the peers. Push (large rounds): `pushers` more programs, the first, store rows from `partials` into
    the combine region of the token's rank, CHUNK rows to a flag, to keep the link busy; the others add up behind them.
    """
    begin_kernel(PDL)
    pid = tl.program_id(0)
    r = tl.arange(0, R2)
    own = row_of(base, stride, me)
    epoch = tl.load(word(own, AT[9])) + 1
    if pid == 0:
        if CHUNK == 0:
            signal(flag_at(row_of(base, stride, r), 1, me, 0, blocks, AT), epoch, r < R)
        tl.store(word(own, AT[0]), epoch)
        tl.store(word(own, AT[8]), epoch)  # for the next dispatch
        tl.store(word(own, AT[10]) + r, 0, mask=r < R)  # its slots
    task = pid
    if CHUNK > 0:
        task = pid - pushers
        for chunk in range(pid, tl.where(task < 0, (M + (CHUNK - 1)) // CHUNK, 0), pushers):
            push(partials, begin, base, stride, me, M, blocks, chunk, 0, epoch, R, R2, TYPE, H, H2, CHUNK, SPLIT, AT)
    if task >= 0:
        add_up(y, partials, begin, base, stride, me, T, M, blocks, task // SPLIT, task % SPLIT, epoch,
               R, K, KR2, TREE, TYPE, H, H2, CHUNK, SPLIT, AT)


@inlined
def push(
    partials, begin, base, stride, me, M, blocks, chunk, part, epoch,
    R: tl.constexpr, R2: tl.constexpr, TYPE: tl.constexpr, H: tl.constexpr, H2: tl.constexpr,
    CHUNK: tl.constexpr, SPLIT: tl.constexpr, AT: tl.constexpr,
):
    """CHUNK rows for every other rank, back to where their tokens came from; then this rank's flag there."""
    off = (part * H2 + tl.arange(0, H2))[None, :]
    j = (chunk * CHUNK + tl.arange(0, CHUNK))[:, None]
    for i in range(R - 1):
        q = (me + 1 + i) % R
        valid = (j < tl.load(word(row_of(base, stride, me), AT[3]) + q)) & (off < H)
        line = aligned(partials, TYPE, 16) + (q * M + j).to(tl.int64) * H
        back = aligned(row_of(base, stride, q) + begin, TYPE, 16) + (me * M + j).to(tl.int64) * H
        tl.store(back + off, tl.load(line + off, mask=valid), mask=valid)
    r = tl.arange(0, R2)
    signal(flag_at(row_of(base, stride, r), 1, me, chunk * SPLIT + part, blocks, AT), epoch, r < R)


@inlined
def add_up(
    y, partials, begin, base, stride, me, T, M, blocks, t, part, epoch,
    R: tl.constexpr, K: tl.constexpr, KR2: tl.constexpr, TREE: tl.constexpr,
    TYPE: tl.constexpr, H: tl.constexpr, H2: tl.constexpr, CHUNK: tl.constexpr, SPLIT: tl.constexpr, AT: tl.constexpr,
):
    """One part of one token: wait for the flags of its rows, add them in float32, round once."""
    own = row_of(base, stride, me)
    k = tl.arange(0, KR2)
    off = part * H2 + tl.arange(0, H2)
    choice = k < tl.where(t < T, K, 0)
    to = tl.load(word(own, AT[12]) + t * K + k, mask=choice, other=-1)
    slot = tl.load(word(own, AT[13]) + t * K + k, mask=choice, other=-1)
    source = tl.where(to < 0, tl.minimum(tl.maximum(k - K, 0), R - 1), to)  # its rows' ranks, and every rank once
    if CHUNK > 0:  # noqa: SIM108 Triton's conditional expression wants scalars
        block = tl.where(to < 0, t // CHUNK, slot // CHUNK) * SPLIT + part
    else:
        block = tl.full([KR2], 0, tl.int32)
    wait(flag_at(own, 1, source, block, blocks, AT), epoch)
    if t < T:
        if (R <= 2) & (K > 2):  # two rows at most and an empty slot: their order makes no difference
            total = tl.full([H2], 0, tl.float32)
            for q in tl.static_range(R):
                mine = most_of(tl.where(to == q, slot, -1), 0)
                total += load_row(partials, begin, base, stride, me, M, q, mine, off, TYPE, H, CHUNK)
        else:
            total = add_slots(partials, begin, base, stride, me, M, t, off, 0, K, K, TREE, TYPE, H, CHUNK, AT)
        tl.store(aligned(y, TYPE, 16) + tl.cast(t, tl.int64) * H + off, rounded(total, TYPE), mask=off < H)


@inlined
def load_row(
    partials, begin, base, stride, me, M, q, slot, off, TYPE: tl.constexpr, H: tl.constexpr, CHUNK: tl.constexpr,
):
    """Part of the row that rank q made, as float32; an empty slot is +0.0."""
    if CHUNK > 0:  # it was pushed here, or made here
        rows = tl.where(me == q, partials, row_of(base, stride, me) + begin)
        line = tl.cast(q * M + slot, tl.int64) * H
    else:
        rows = row_of(base, stride, q) + begin
        line = tl.cast(me * M + slot, tl.int64) * H
    mask = off < tl.where(slot >= 0, H, 0)
    return tl.load(aligned(rows, TYPE, 16) + line + off, mask=mask, other=0, cache_modifier=".cg").to(tl.float32)


@inlined
def add_slots(
    partials, begin, base, stride, me, M, t, off, FROM: tl.constexpr, COUNT: tl.constexpr, K: tl.constexpr,
    TREE: tl.constexpr, TYPE: tl.constexpr, H: tl.constexpr, CHUNK: tl.constexpr, AT: tl.constexpr,
):
    """COUNT slots from FROM on, grouped as FlashInfer's combine: neighbours first, or (not TREE) from the left."""
    if COUNT == 1:
        own = row_of(base, stride, me)
        q = tl.load(word(own, AT[12]) + t * K + FROM)
        slot = tl.load(word(own, AT[13]) + t * K + FROM)
        return load_row(partials, begin, base, stride, me, M, q, slot, off, TYPE, H, CHUNK)
    else:  # noqa: RET505 Triton compiles what follows a return, but not the branch that a constant rules out
        LEFT: tl.constexpr = left_of(COUNT, TREE)
        left = add_slots(partials, begin, base, stride, me, M, t, off, FROM, LEFT, K, TREE, TYPE, H, CHUNK, AT)
        right = add_slots(partials, begin, base, stride, me, M, t, off, FROM + LEFT, COUNT - LEFT,
                          K, TREE, TYPE, H, CHUNK, AT)
        return left + right


@triton.constexpr_function
def left_of(count, tree):
    """Slots on the left of the last addition: the largest power of two below `count`, or all but one."""
    return 1 << ((count - 1).bit_length() - 1) if tree else count - 1
# fmt: on

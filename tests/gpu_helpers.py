"""Functions that the GPU tests run on ranks."""

import time

from mnnvl_lab.errors import WorkspaceMismatch
from mnnvl_lab.transport.flashinfer.small_round import TOKENS, TOP_K, Call

SPIN_S = 0.3


def checked(rank, point, rounds=2):
    """Rounds against the oracle; says how strict the comparison could be."""
    from mnnvl_lab.measure.check import checked_round
    from mnnvl_lab.measure.workload import Work
    from mnnvl_lab.transport import open_transport

    work = Work.of(rank, point)
    with open_transport(rank, point.exchange) as transport:
        return [checked_round(transport, work, work.batch())[1] for _ in range(rounds)]


def growing(rank, exchange, loads):
    """Rounds of different size and routing in one workspace."""
    from mnnvl_lab.measure.check import checked_round
    from mnnvl_lab.measure.point import Point
    from mnnvl_lab.measure.workload import Work
    from mnnvl_lab.transport import open_transport

    strictness = []
    with open_transport(rank, exchange) as transport:
        for load in loads:
            work = Work.of(rank, Point(exchange=exchange, load=load))
            strictness.append(checked_round(transport, work, work.batch())[1])
    return strictness


def changing(rank, exchange, loads, *, active_ranks=None):
    """Rounds whose sizes alternate, back to back, of batches made beforehand; which of this rank's sums were right.

    Without a mask all batches are validated first. Sums are compared after the last round: until then no rank waits for
    another beyond what the transport makes it.
    """
    from mnnvl_lab.measure.clocks import synchronize
    from mnnvl_lab.transport import open_transport
    from tests.transport_helpers import batch_of, check_combined, oracle_of, partials_of, tokens_in

    with open_transport(rank, exchange) as transport:
        if active_ranks is not None and transport.ep_rank not in active_ranks:
            return []
        batches = [batch_of(rank, exchange, load, active_ranks=active_ranks) for load in loads]
        for batch in [] if active_ranks else batches:
            transport.validate(batch)
        combined = []
        for load, batch in zip(loads, batches, strict=True):
            received = transport.dispatch(batch, validated=not active_ranks)
            blocks = [received.payloads[0][received.block(source)] for source in range(exchange.ep_size)]
            tokens_R = [tokens_in(block, source) for source, block in enumerate(blocks)]
            partials = partials_of(rank, exchange, load, transport, received, tokens_R)
            combined.append(transport.combine(partials, received.handle))
        synchronize(rank.device)
    for load, got in zip(loads, combined, strict=True):
        check_combined(rank, exchange, got, oracle_of(exchange, load, active_ranks))
    return [True] * len(loads)


def enqueued_in_another_size(rank, exchange):
    """What `enqueue_dispatch` says to a round of another size than the one before, and after the ranks have met."""
    from dataclasses import replace

    from mnnvl_lab.transport import open_transport
    from tests.transport_helpers import refusal

    call = call_of(rank)
    with open_transport(rank, exchange) as transport:
        full_round(transport, call, small_batch(call))
        larger = replace(small_batch(call), runtime_max_tokens=TOKENS + 1)
        said = refusal(lambda: transport.enqueue_dispatch(larger))
        transport.meet(larger)
        handle = transport.enqueue_dispatch(larger)
        (rows,), ids, _ = transport.received_views(handle)
        return said, call.right(transport.enqueue_combine(call.partials(rows, ids), handle))


def padded_ids(rank, exchange):
    """Rank 1 sends one token whose choices are all -1, unchecked: rows that arrive on this rank from rank 1, by two."""
    from dataclasses import replace

    from mnnvl_lab.transport import open_transport

    call = call_of(rank)
    with open_transport(rank, exchange) as transport:
        batch, counts = small_batch(call), []
        transport.validate(batch)
        for ids in (batch.experts_TK, padded(batch.experts_TK, rank)):
            received = transport.dispatch(replace(batch, experts_TK=ids), validated=True)
            counts.append(received.counts_R[1])
            transport.combine(transport.partials_buffer(received.handle), received.handle)
        return counts


def padded(experts_TK, rank):
    ids = experts_TK.clone()
    if rank.group("ep").rank == 1:
        ids[0] = -1
    return ids


def call_of(rank):
    ep = rank.group("ep")
    return Call(rank=rank, ep=ep, group=ep)


def small_batch(call, **more):
    from mnnvl_lab.exchange import Batch

    return Batch(payloads=(call.rows,), experts_TK=call.ids, weights_TK=call.weights, runtime_max_tokens=TOKENS, **more)


def replayed(rank, exchange):
    """A captured round, experts included, replayed over other rows and routings: were all the sums right?"""
    import torch

    from mnnvl_lab.transport import open_transport

    call = call_of(rank)
    with open_transport(rank, exchange) as transport:
        batch = small_batch(call)
        handle = transport.dispatch(batch).handle
        buffer = transport.partials_buffer(handle)
        transport.combine(buffer, handle)

        def one_round():
            handle = transport.enqueue_dispatch(batch, transport.enqueue_prepare(batch))
            (rows,), ids, _ = transport.received_views(handle)
            return transport.enqueue_combine(buffer.copy_(call.partials(rows, ids)), handle)

        side = torch.cuda.Stream()
        torch.cuda.synchronize()
        with torch.cuda.stream(side):
            one_round()
        side.synchronize()
        transport.group.barrier()
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, stream=side, capture_error_mode="thread_local"):
            combined = one_round()
        right = []
        for shift in range(1, 4):
            batch.payloads[0].copy_(call.rows.roll(shift, 0))
            batch.experts_TK.copy_((call.ids + 5 * shift) % call.experts)
            combined.fill_(float("nan"))
            graph.replay()
            torch.cuda.synchronize()
            right.append(bool((combined == batch.payloads[0] * TOP_K).all()))
        return right


def mismatch(rank, exchange):
    """What the kernels say to this exchange, in which phase, and what memory stays taken on this rank's GPU."""
    from mnnvl_lab.transport import open_transport

    def attempt():
        try:
            with open_transport(rank, exchange) as transport:
                transport.dispatch(small_batch(call_of(rank)))
        except WorkspaceMismatch as error:
            return error.kernel_message, error.phase, error.spans, error.ep_size
        return None

    attempt()
    before = used_bytes(rank)
    return attempt(), used_bytes(rank) - before


def without_rank_1(rank, exchange):
    """A round of all, then one in which rank 1 takes no part: counts, and whether rank 0's sums leave it out."""
    import torch

    from mnnvl_lab.transport import open_transport

    call = call_of(rank)
    with open_transport(rank, exchange) as transport:
        full_round(transport, call, small_batch(call))
        if rank.index == 1:
            return None
        received = transport.dispatch(small_batch(call, active_ranks=(0,)), validated=True)
        combined = transport.combine(call.partials(received.payloads[0], received.experts), received.handle)
        torch.cuda.synchronize()
        return received.counts_R, bool((combined == call.partials(call.rows, call.ids)).all())


def statistics(rank, exchange):
    """Load statistics as they arrive with dispatch."""
    import torch

    from mnnvl_lab.transport import open_transport

    call = call_of(rank)
    mine = torch.arange(exchange.eplb_stats_experts, dtype=torch.int32, device=rank.device) + 100 * rank.index
    with open_transport(rank, exchange) as transport:
        received = transport.dispatch(small_batch(call, eplb_stats_E=mine))
        table = received.eplb_stats_RE.cpu().tolist()
        transport.combine(call.partials(received.payloads[0], received.experts), received.handle)
        return table


def sanitized(rank, exchange):
    """Whether the ids of each source's rows stayed, and which ids the rows without a token have after `sanitize`."""
    from mnnvl_lab.exchange import Batch
    from mnnvl_lab.transport import open_transport

    call = call_of(rank)
    with open_transport(rank, exchange) as transport:
        few = Batch(
            payloads=(call.rows[:5],), experts_TK=call.ids[:5], weights_TK=call.weights[:5], runtime_max_tokens=TOKENS
        )
        received = transport.dispatch(few)
        before = received.experts.clone()
        transport.sanitize(received.handle, exchange.experts)
        kept = [bool((received.experts[received.block(s)] == before[received.block(s)]).all()) for s in range(2)]
        stale = [received.experts[received.block(s).stop : (s + 1) * TOKENS].flatten().tolist() for s in range(2)]
        transport.combine(call.partials(received.payloads[0], received.experts), received.handle)
        return kept, {i for ids in stale for i in ids}


def peeked(rank, exchange):
    """Rank 0 dispatches alone and reads its flags beside the spinning kernel; then rank 1 comes."""
    from mnnvl_lab.transport import open_transport

    call = call_of(rank)
    with open_transport(rank, exchange) as transport:
        batch = small_batch(call)
        full_round(transport, call, batch)  # a kernel that is loaded or memory that is taken later waits for the spin
        flags, seconds = None, 0.0
        if rank.index == 0:
            handle = transport.enqueue_dispatch(batch, transport.enqueue_prepare(batch))
            time.sleep(SPIN_S)
            start = time.perf_counter()
            flags = {name: value.tolist() for name, value in transport.read_flags().items()}
            seconds = time.perf_counter() - start
        transport.group.barrier()
        if rank.index == 1:
            handle = transport.enqueue_dispatch(batch, transport.enqueue_prepare(batch))
        payloads, ids, _ = transport.received_views(handle)
        right = call.right(transport.enqueue_combine(call.partials(payloads[0], ids), handle))
        return right, flags, seconds


def full_round(transport, call, batch):
    """Dispatch and combine with the experts of `Call`."""
    received = transport.dispatch(batch)
    return transport.combine(call.partials(received.payloads[0], received.experts), received.handle)


def misplaced(rank, exchange):
    """Partials outside the workspace although they were promised inside."""
    from mnnvl_lab.transport import open_transport

    call = call_of(rank)
    with open_transport(rank, exchange) as transport:
        full_round(transport, call, small_batch(call))


def memory_taken(rank, exchange):
    """Bytes of this rank's GPU, all of its ranks together: predicted for the workspaces, taken while a transport is
    open, and left taken once it is closed. One opening goes ahead uncounted: it loads modules and fills torch's pools.
    """
    from mnnvl_lab.transport import open_transport

    sharing = rank.group("world").allgather(str(rank.device)).count(str(rank.device))
    with open_transport(rank, exchange):
        pass
    before = used_bytes(rank)
    with open_transport(rank, exchange) as transport:
        during = used_bytes(rank)
        predicted = sharing * sum(allocation.allocated_bytes for allocation in transport.allocations)
    return predicted, during - before, used_bytes(rank) - before


def used_bytes(rank):
    """Memory in use on this rank's GPU while no rank allocates or frees."""
    from mnnvl_lab.transport.flashinfer.memory import device_memory_bytes

    rank.group("world").barrier()
    size = device_memory_bytes(rank.device)
    rank.group("world").barrier()
    return size

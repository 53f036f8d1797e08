"""What the transport tests run on ranks: batches out of the oracle's payloads, rounds compared with the oracle.

Tensors live on the rank's device, so the same functions serve every fabric.
"""

from dataclasses import replace
from functools import reduce
from operator import add

import numpy as np
import torch

from mnnvl_lab.errors import LabError, RankTimeout
from mnnvl_lab.exchange import Batch
from mnnvl_lab.faults.races import SlowPullOneSided
from mnnvl_lab.oracle import Oracle, partial_factor, payload, reduce_slots
from mnnvl_lab.oracle.kernel_rules import TREE_TOP_K, target_ranks
from mnnvl_lab.transport import open_transport

UNIT_ROUNDOFF = {"bf16": 2.0**-8, "fp16": 2.0**-11, "fp32": 2.0**-23}


def oracle_of(exchange, load, active_ranks=None):
    names = ("experts", "top_k", "hidden", "ep_size", "combine_dtype", "low_precision_combine")
    return Oracle(load=load, active_ranks=active_ranks, **{name: getattr(exchange, name) for name in names})


def part_of(exchange, load, index, source, tokens, device="cpu"):
    """The payload tensor `index` of these tokens of `source`."""
    part = exchange.payload_parts[index]
    dtype, where = getattr(torch, part.dtype), {"seed": load.seed, "rank": source, "tokens": tokens}
    if dtype.is_floating_point and dtype.itemsize > 1 and index == 0:
        return torch.from_numpy(payload.rows(**where, hidden=exchange.hidden)).to(dtype).to(device)
    raw = torch.from_numpy(payload.raw_bytes(**where, row_bytes=part.row_bytes, part=index))
    return (raw.view(dtype) if raw.numel() else torch.empty(0, part.width, dtype=dtype)).to(device)


def batch_of(rank, exchange, load, **more):
    """What this rank sends."""
    ep_rank, R = rank.group("ep").rank, exchange.ep_size
    tokens = np.arange(load.tokens_R(R)[ep_rank])
    chosen = load.experts_TK(ep_rank, experts=exchange.experts, top_k=exchange.top_k, ep_size=R)
    parts = range(len(exchange.payload_parts))
    return Batch(
        payloads=tuple(part_of(exchange, load, index, ep_rank, tokens, rank.device) for index in parts),
        experts_TK=torch.from_numpy(chosen).to(rank.device),
        weights_TK=torch.from_numpy(load.weights_TK(ep_rank, top_k=exchange.top_k)).to(rank.device),
        runtime_max_tokens=max(1, load.max_tokens),
        **more,
    )


def tokens_in(rows, source):
    """Tokens by the rows' headers, all of which must name `source`."""
    numeric = rows if rows.dtype in (torch.bfloat16, torch.float16, torch.float32) else rows.view(torch.uint8)
    names = [payload.identify(row) for row in numeric[:, : payload.HEADER_WIDTH].float().cpu().numpy()]
    assert all(rank == source for rank, _ in names), names
    return np.array([token for _, token in names], dtype=int)


def same_bits(got, expected):
    bits = {1: torch.uint8, 2: torch.int16, 4: torch.int32}[got.element_size()]
    got, expected = got.cpu().contiguous(), expected.cpu().contiguous()
    return (
        got.shape == expected.shape
        and got.dtype == expected.dtype
        and bool((got.view(bits) == expected.view(bits)).all())
    )


def check_received(rank, exchange, load, received, oracle):
    """Each source's rows are those that are due, each with its own content. Returns their tokens by source."""
    me, everything = rank.group("ep").rank, exchange.mode == "allgather_reducescatter"
    tokens_R = []
    for source, due in oracle.received(me).items():
        due = np.arange(load.tokens_R(exchange.ep_size)[source]) if everything else due
        block = received.block(source)
        tokens = tokens_in(received.payloads[0][block], source)
        assert sorted(tokens) == list(due), (source, tokens, due)
        for index, got in enumerate(received.payloads):
            assert same_bits(got[block], part_of(exchange, load, index, source, tokens)), f"payload {index} of {source}"
        tokens_R.append(tokens)
    return tokens_R


def partials_of(rank, exchange, load, transport, received, tokens_R):
    """What this rank's experts make of the rows, by the ids and weights that came with them."""
    partials, me = transport.partials_buffer(received.handle), rank.group("ep").rank
    for source, tokens in enumerate(tokens_R):
        block = received.block(source)
        ids, weights = received.experts[block].cpu().numpy(), received.weights[block].cpu().numpy()
        foreign = ids == exchange.experts  # what two-sided's prepare writes over choices of other ranks' experts
        ids, weights = np.where(foreign, 0, ids), np.where(foreign, np.float32(0), weights)
        factor = partial_factor(ids, weights, ep_rank=me, experts=exchange.experts, ep_size=exchange.ep_size)
        rows = payload.rows(seed=load.seed, rank=source, tokens=tokens, hidden=exchange.hidden)
        partials[block] = torch.from_numpy(rows * factor[:, None]).to(partials.dtype).to(partials.device)
    return partials


def check_combined(rank, exchange, combined, oracle):
    """To the last bit for one-sided and wherever the order of additions cannot matter, else within rounding."""
    me = rank.group("ep").rank
    got, exact = combined.float().cpu().numpy(), oracle.combined(me)
    assert got.shape == exact.shape
    assert (
        combined.dtype == {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}[exchange.combine_dtype]
    )
    same = (got.view(np.int32) == exact.view(np.int32)).all(axis=1)
    if exchange.mode in ("one_sided", "pico"):
        assert same.all()
    elif exchange.mode != "allgather_reducescatter":
        assert same[oracle.order_free(me)].all()
    scale = np.zeros_like(exact)
    for target in range(exchange.ep_size):
        scale[oracle.sent_tokens(me, target)] += np.abs(oracle.partials(target, me))
    bound = exchange.ep_size * UNIT_ROUNDOFF[exchange.combine_dtype] * scale
    assert (np.abs(got - oracle.combined_float64(me)) <= bound).all()


def one_round(rank, transport, load, *, active_ranks=None, **more):
    """Dispatch and combine on an open transport, both compared with the oracle."""
    exchange = transport.exchange
    oracle = oracle_of(exchange, load, active_ranks)
    received = transport.dispatch(batch_of(rank, exchange, load, active_ranks=active_ranks, **more))
    tokens_R = check_received(rank, exchange, load, received, oracle)
    combined = transport.combine(partials_of(rank, exchange, load, transport, received, tokens_R), received.handle)
    check_combined(rank, exchange, combined, oracle)
    return received


def rounds(rank, exchange, loads):
    """Rounds one after the other on one transport."""
    with open_transport(rank, exchange) as transport:
        for load in loads:
            one_round(rank, transport, load)
    return len(loads)


def slow_pulls(rank, exchange, loads, *, slow, pause_s, active_ranks=None, ahead=False):
    """Rounds in which one rank pulls late; with `ahead` all batches are validated before the first round.

    Sums are compared after the last round: a comparison in between would give the slow rank the time that it lacks.

    Returns:
        Rounds that were right.
    """
    with SlowPullOneSided(rank, exchange, slow=slow, pause_s=pause_s) as transport:
        if active_ranks is not None and transport.ep_rank not in active_ranks:
            return 0
        batches = [batch_of(rank, exchange, load, active_ranks=active_ranks) for load in loads]
        validate_ahead(transport, batches if ahead else [])
        oracles = [oracle_of(exchange, load, active_ranks) for load in loads]
        triples = zip(loads, batches, oracles, strict=True)
        combined = [exchanged(rank, transport, *triple, validated=ahead) for triple in triples]
    for got, oracle in zip(combined, oracles, strict=True):
        check_combined(rank, exchange, got, oracle)
    return len(loads)


def validate_ahead(transport, batches):
    for batch in batches:
        transport.validate(batch)


def exchanged(rank, transport, load, batch, oracle, *, validated):
    """What combine returns to this rank after a dispatch that is compared with the oracle."""
    received = transport.dispatch(batch, validated=validated)
    tokens_R = check_received(rank, transport.exchange, load, received, oracle)
    partials = partials_of(rank, transport.exchange, load, transport, received, tokens_R)
    return transport.combine(partials, received.handle)


def collectives(rank, exchange, loads, *, active_ranks=None, ahead=False):
    """Collective calls that each `dispatch` made, over all groups of this rank."""
    made = []
    with open_transport(rank, exchange) as transport:
        if active_ranks is not None and transport.ep_rank not in active_ranks:
            return made
        batches = [batch_of(rank, exchange, load, active_ranks=active_ranks) for load in loads]
        validate_ahead(transport, batches if ahead else [])
        for batch in batches:
            before = sum(group.begun for group in rank.groups.values())
            handle = transport.dispatch(batch, validated=ahead).handle
            made.append(sum(group.begun for group in rank.groups.values()) - before)
            transport.combine(transport.partials_buffer(handle), handle)
    return made


def enqueued_sizes(rank, exchange, loads):
    """What `enqueue_dispatch` says to a batch of each size, before and after the ranks have met."""
    said = []
    with open_transport(rank, exchange) as transport:
        for load in loads:
            batch = batch_of(rank, exchange, load)
            transport.validate(batch)
            said.append(refusal(lambda batch=batch: enqueued_round(transport, batch)))
            transport.meet(batch)
            said.append(refusal(lambda batch=batch: enqueued_round(transport, batch)))
    return said


def enqueued_round(transport, batch):
    handle = transport.enqueue_dispatch(batch, transport.enqueue_prepare(batch))
    transport.enqueue_combine(transport.partials_buffer(handle), handle)


def different_validated_sizes(rank, exchange, loads, *, odd):
    """One rank dispatches another of two validated batches than its peers; what each is told."""
    with open_transport(rank, exchange) as transport:
        first, *others = batches = [batch_of(rank, exchange, load) for load in loads]
        validate_ahead(transport, batches)
        handle = transport.dispatch(first, validated=True).handle
        transport.combine(transport.partials_buffer(handle), handle)
        return refusal(lambda: transport.dispatch(others[rank.group("ep").rank == odd], validated=True))


def cancelling_rows(source, tokens, target, hidden):
    """float32 `[tokens, hidden]`: what `target` makes of them. Large ones swallow a 1 and cancel, or cancel first."""
    values = np.array([-(2.0**24), -1, 1, 2.0**24], dtype=np.float32)
    rows = [np.random.default_rng([source, token, target]).choice(values, hidden) for token in tokens]
    return np.array(rows, dtype=np.float32).reshape(-1, hidden)


def cancelling_slots(exchange, load, source):
    """float32 `[tokens, hidden]` for each of a token's K slots."""
    shape = {"experts": exchange.experts, "ep_size": exchange.ep_size}
    targets_TK = target_ranks(load.experts_TK(source, top_k=exchange.top_k, **shape), **shape)
    slots = np.zeros((exchange.top_k, len(targets_TK), exchange.hidden), dtype=np.float32)
    for token, slot in np.argwhere(targets_TK >= 0):
        [slots[slot, token]] = cancelling_rows(source, [token], targets_TK[token, slot], exchange.hidden)
    return list(slots)


def cancelling_round(rank, exchange, load):
    """Whether combine adds up in the kernel's order, and in how many sums another order would show."""
    me = rank.group("ep").rank
    with open_transport(rank, exchange) as transport:
        received = transport.dispatch(batch_of(rank, exchange, load))
        partials = transport.partials_buffer(received.handle)
        for source in range(exchange.ep_size):
            block = received.block(source)
            rows = cancelling_rows(source, tokens_in(received.payloads[0][block], source), me, exchange.hidden)
            partials[block] = torch.from_numpy(rows).to(partials)
        combined = transport.combine(partials, received.handle).cpu()
    slots = cancelling_slots(exchange, load, me)
    expected = torch.from_numpy(reduce_slots(slots)).to(combined.dtype)
    other = torch.from_numpy(another_order(slots)).to(combined.dtype)
    return same_bits(combined, expected), int((other != expected).sum())


def another_order(slots):
    """One after the other where the kernel has a tree of neighbours, and the reverse."""
    tree = len(slots) in TREE_TOP_K
    return reduce(add, slots if tree else [left + right for left, right in zip(slots[::2], slots[1::2], strict=True)])


def stale_handles(rank, exchange, load):
    """What one rank's handle of an earlier round is told, and every other rank, with a right round after it."""
    said = []
    with open_transport(rank, exchange) as transport:
        old = one_round(rank, transport, load).handle
        received = transport.dispatch(batch_of(rank, exchange, load))
        partials = transport.partials_buffer(received.handle)
        handle = old if rank.group("ep").rank == 1 else received.handle
        said.append(refusal(lambda: transport.combine(partials, handle)))
        transport.combine(partials, received.handle)
        one_round(rank, transport, load)
    return said


def misuse(rank, exchange, load):
    """What the transport says to calls out of turn, and a right round after it."""
    said = []
    with open_transport(rank, exchange) as transport:
        batch = batch_of(rank, exchange, load)
        said.append(refusal(lambda: transport.combine(torch.zeros(1, exchange.hidden), None)))
        received = transport.dispatch(batch)
        said.append(refusal(lambda: transport.dispatch(batch)))
        tokens_R = check_received(rank, exchange, load, received, oracle_of(exchange, load))
        transport.combine(partials_of(rank, exchange, load, transport, received, tokens_R), received.handle)
        one_round(rank, transport, load)
        transport.close()  # and once more at the end of `with`
    return said


def refusal(call):
    try:
        call()
    except LabError as error:
        return f"{type(error).__name__}: {error}"
    return "went through"


def over_the_wrong_group(rank, exchange, load):
    """What is said, and how many phases went through before it."""
    passed = []
    try:
        with open_transport(rank, exchange) as transport:
            passed.append("open")
            batch = batch_of(rank, exchange, load)
            transport.validate(batch)
            prepared = transport.enqueue_prepare(batch)
            passed.append("prepare")
            transport.enqueue_dispatch(batch, prepared)
            passed.append("dispatch")
    except LabError as error:
        return type(error).__name__, str(error), getattr(error, "phase", ""), passed
    return "", "", "", passed


def unequal_exchange(rank, exchange):
    """Open with another hidden size on rank 1, then right."""
    odd = replace(exchange, hidden=2 * exchange.hidden) if rank.group("ep").rank == 1 else exchange
    said = refusal(lambda: open_transport(rank, odd))
    open_transport(rank, exchange).close()
    return said


def refusals(rank, exchange, load, mutations, call="dispatch"):
    """One rank's batch after the other made wrong; what every rank is told, with a right round after each."""
    said = {}
    with open_transport(rank, exchange) as transport:
        for name, mutate in mutations.items():
            batch = batch_of(rank, exchange, load)
            wrong = mutate(batch) if rank.group("ep").rank == exchange.ep_size // 2 else batch
            said[name] = refusal(lambda wrong=wrong: getattr(transport, call)(wrong))
            one_round(rank, transport, load)
    return said


def wrong_partials(rank, exchange, load):
    """One rank's partials in wrong forms; what every rank is told, then the right ones."""
    said = []
    with open_transport(rank, exchange) as transport:
        oracle = oracle_of(exchange, load)
        received = transport.dispatch(batch_of(rank, exchange, load))
        tokens_R = check_received(rank, exchange, load, received, oracle)
        right = partials_of(rank, exchange, load, transport, received, tokens_R)
        elsewhere = [right.clone()] if exchange.payload_in_workspace else []
        for wrong in (right[:-1], right.float(), right.t().contiguous().t(), *elsewhere):
            mine = wrong if rank.group("ep").rank == 1 else right
            said.append(refusal(lambda mine=mine: transport.combine(mine, received.handle)))
        check_combined(rank, exchange, transport.combine(right, received.handle), oracle)
    return said


def one_stays_away(rank, exchange, load, *, absent, limit_s):
    """All but one rank dispatch; what they say."""
    with open_transport(rank, exchange) as transport:
        transport.wait_limit_s = limit_s
        batch = batch_of(rank, exchange, load)
        transport.validate(batch)
        if rank.group("ep").rank == absent:
            return None
        try:
            transport.dispatch(batch, validated=True)
        except RankTimeout as error:
            again = refusal(lambda: transport.dispatch(batch, validated=True))
            return error.rank, error.phase, error.cause, again
    return "went through"


def without_a_rank(rank, exchange, load, *, active_ranks):
    """Two rounds of the living; the others only open."""
    with open_transport(rank, exchange) as transport:
        if rank.group("ep").rank in active_ranks:
            for seed in range(2):
                one_round(rank, transport, replace(load, seed=seed), active_ranks=active_ranks)
        return transport.read_flags()["flag_val"].tolist()


def regions_after(rank, exchange, load, rounds_done):
    """This rank's row of the one-sided workspace after some rounds and one more dispatch, cut into its regions."""
    with open_transport(rank, exchange) as transport:
        for _ in range(rounds_done):
            one_round(rank, transport, load)
        transport.dispatch(batch_of(rank, exchange, load))
        row = transport.workspace_row()
        return {r.name: row[r.offset_bytes : r.end_bytes].view(r.dtype) for r in transport.workspace.regions[:8]}


def gathered_stats(rank, exchange, load):
    with open_transport(rank, exchange) as transport:
        stats = torch.arange(exchange.eplb_stats_experts, dtype=torch.int32) + 100 * rank.group("ep").rank
        return one_round(rank, transport, load, eplb_stats_E=stats).eplb_stats_RE.numpy()


def mapped_segments(rank, exchange, load):
    """Shared segments in this process's address space: while a transport is open, and after it is closed; twice."""
    counts = []
    for _ in range(2):
        with open_transport(rank, exchange) as transport:
            one_round(rank, transport, load)
            counts.append(segments())
        counts.append(segments())
    return counts


def segments(kind="row"):
    with open("/proc/self/maps") as maps:
        return sum(f"memfd:mnnvl_lab-{kind}" in line for line in maps)


def die_in_dispatch(rank, exchange, load):
    """Rank 0 is killed between opening and dispatch; the others wait for it."""
    import os
    import signal

    transport = open_transport(rank, exchange)
    transport.wait_limit_s = 2.0
    batch = batch_of(rank, exchange, load)
    transport.validate(batch)
    if rank.index == 0:
        os.kill(os.getpid(), signal.SIGKILL)
    transport.dispatch(batch, validated=True)

"""Validation of exchanges, batches and partial sums; all ranks accept together, or all refuse in the same words.

Neither mode's kernel checks expert ids. Both divide by a rank's share of the experts, and division in C truncates
towards zero: `-1 / share` is 0, so an id just below 0, which engines give to padding, is taken for an expert of
ep_rank 0.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from mnnvl_lab.errors import Refused, WorkspaceMismatch, is_whole, shown
from mnnvl_lab.exchange import MODES, Batch
from mnnvl_lab.routing.padding import INVALID_IDS, kernel_target
from mnnvl_lab.workspace.kernel_limits import MAX_PAYLOADS, problems, runtime_max_problem

if TYPE_CHECKING:
    import torch

    from mnnvl_lab.exchange import Exchange
    from mnnvl_lab.ranks.group import Group
    from mnnvl_lab.ranks.rank import Rank


def ids_problem(x: Exchange, low: int, high: int) -> str | None:
    """What is wrong with a batch whose smallest and largest expert ids are these, or None.

    With `invalid_ids` of the exchange -1 and E may come too, unless the mode's kernel would leave the workspace.
    """
    if 0 <= low and high < x.experts:
        return None
    if x.invalid_ids != "refuse":
        return _padding_problem(x, low, high)
    reason = f" ({_unchecked(x, low, high)})" if x.mode in ("one_sided", "two_sided") else ""
    return (
        f"expert ids span {low} to {high}: they must lie in [0, {x.experts}){reason}; "
        "leave tokens that only pad out of the batch, and remap ids to physical experts first"
    )


def _padding_problem(x: Exchange, low: int, high: int) -> str | None:
    """What is wrong with ids of which some are out of range on purpose."""
    if low < -1 or high > x.experts:
        return (
            f"expert ids span {low} to {high}: with invalid_ids {x.invalid_ids!r} padding may say -1 or E = "
            f"{x.experts}, and nothing else; remap ids to physical experts first"
        )
    if x.invalid_ids == "drop" or x.mode != "one_sided":
        return None
    for lost in (low, high):
        if not 0 <= kernel_target(lost, experts=x.experts, ep_size=x.ep_size) < x.ep_size:
            return (
                f"padding of id {lost} with invalid_ids 'as_kernel' ({_unchecked(x, lost, lost)}); "
                "leave padding out of the batch, or use invalid_ids 'drop' on host"
            )
    return None


def invalid_ids_problem(x: Exchange, fabric: str) -> str | None:
    """Why an exchange cannot treat ids of padding as it asks, or None."""
    if x.invalid_ids not in INVALID_IDS:
        return f"invalid_ids is {x.invalid_ids!r}: it must be one of {', '.join(INVALID_IDS)}"
    if x.invalid_ids != "refuse" and x.mode not in ("one_sided", "two_sided"):
        return (
            f"invalid_ids is {x.invalid_ids!r} in mode {x.mode}: only FlashInfer's modes one_sided and two_sided take "
            "padding without an expert; leave it out of the batch, or let it name a real expert"
        )
    if x.invalid_ids == "drop" and fabric != "host":
        return (
            f"invalid_ids is 'drop' on fabric {fabric}: FlashInfer 0.7.2's kernels drop no rows (#4017 would); leave "
            "padding out of the batch, or use invalid_ids 'as_kernel'"
        )
    return None


def _unchecked(x: Exchange, low: int, high: int) -> str:
    """The worst that the mode's kernel would do with such ids."""
    lost = high if high >= x.experts else low
    target = kernel_target(lost, experts=x.experts, ep_size=x.ep_size)
    if not 0 <= target < x.ep_size:
        does = "write through a wild pointer" if x.mode == "one_sided" else "drop the choice without a word"
        return f"the kernels do not check: id {lost} gives target rank {target} of {x.ep_size}, so they would {does}"
    share = -(-x.experts // x.ep_size)
    return (
        f"the kernels do not check: {low} / {share} is 0 in C, which truncates, so they would send such choices to "
        "ep_rank 0 without a word"
    )


def check_exchange(exchange: Exchange, *, runtime_max_tokens: int | None = None) -> None:
    """Refuse an exchange that no kernel could serve.

    Args:
        runtime_max_tokens: refuse also rounds of this size, if the exchange's payloads cannot be packed at it.

    Raises:
        Refused: with the value, the rule and the remedy.
    """
    for problem in _exchange_problems(exchange):
        raise Refused(problem)
    if runtime_max_tokens and (problem := runtime_max_problem(exchange, exchange.mode, runtime_max_tokens)):
        raise Refused(problem)


def _exchange_problems(x: Exchange):
    """Every broken rule of an exchange, as a sentence."""
    if x.mode not in MODES:
        yield f"mode is {x.mode!r}: it must be one of {', '.join(MODES)}"
    yield from problems(x, x.mode)
    if x.mode != "one_sided" and x.workspace_options:
        yield f"{', '.join(x.workspace_options)} asked of mode {x.mode}: only one_sided has them; leave them out"
    if x.mended_prepare and x.mode != "two_sided":
        yield f"mended_prepare asked of mode {x.mode}: only two_sided has a prepare; leave it out"


def batch_problem(x: Exchange, batch: Batch, ep_rank: int, device: torch.device | None = None) -> str | None:
    """The first broken rule of one rank's batch, or None.

    Args:
        device: where its tensors must live; None for anywhere.
    """
    return next(_batch_problems(x, batch, ep_rank, device), None)


def _batch_problems(x: Exchange, batch: Batch, ep_rank: int, device: torch.device | None):
    yield from _type_problems(batch, device)
    yield from _routing_problems(x, batch)
    yield from _count_problems(x, batch)
    yield from _payload_problems(x, batch)
    yield from _mask_problems(x, batch, ep_rank)


def _type_problems(batch: object, device: torch.device | None) -> Iterator[str]:
    """Fields of other types, which every later check would fall over."""
    if not isinstance(batch, Batch):
        yield f"batch is {shown(batch)}: it must be a Batch; pass Batch(payloads=..., experts_TK=..., ...)"
    if not isinstance(batch.payloads, (tuple, list)):
        yield f"payloads is a {type(batch.payloads).__name__}: it must be a tuple of tensors; pass (rows,) for one"
    tensors = {"experts_TK": batch.experts_TK, "weights_TK": batch.weights_TK}
    tensors |= {f"payload {i}": payload for i, payload in enumerate(batch.payloads)}
    tensors |= {} if batch.eplb_stats_E is None else {"eplb_stats_E": batch.eplb_stats_E}
    for name, value in tensors.items():
        if problem := _tensor_problem(name, value, device):
            yield problem
    if not is_whole(batch.runtime_max_tokens):
        yield f"runtime_max_tokens is {shown(batch.runtime_max_tokens)}: it must be a whole number; pass an int"
    if batch.active_ranks is not None and not is_rank_mask(batch.active_ranks):
        yield f"active_ranks is {shown(batch.active_ranks)}: it must be a tuple of ep_ranks, or None for all"


def is_rank_mask(value: object) -> bool:
    """Whether a value can be the `active_ranks` of a batch."""
    return isinstance(value, (tuple, list)) and all(map(is_whole, value))


def _tensor_problem(name: str, value: object, device: torch.device | None) -> str | None:
    """Why a kernel cannot be given this, or None: the address of a tensor elsewhere means nothing to it."""
    import torch

    if not isinstance(value, torch.Tensor):
        return f"{name} is a {type(value).__name__}: it must be a torch.Tensor; convert it by torch.as_tensor"
    if device is not None and value.device != device:
        return f"{name} is on {value.device}: this rank's transport takes tensors on {device}; move it by .to({device})"
    return None


def _routing_problems(x: Exchange, batch: Batch):
    ids, weights = batch.experts_TK, batch.weights_TK
    for name, table, dtype in (("experts_TK", ids, "int32"), ("weights_TK", weights, "float32")):
        form = table.ndim == 2 and table.shape[1] == x.top_k and str(table.dtype) == f"torch.{dtype}"
        if not form or not table.is_contiguous():
            yield (
                f"{name} is {_form(table)}: it must be contiguous [tokens, top_k = {x.top_k}] of {dtype}; "
                "open the transport with the top_k of the router"
            )
    if ids.shape[0] != weights.shape[0]:
        yield f"experts_TK has {ids.shape[0]} tokens but weights_TK {weights.shape[0]}: one row per token in both"
    if ids.numel() and (problem := ids_problem(x, int(ids.min()), int(ids.max()))):
        yield problem


def _count_problems(x: Exchange, batch: Batch):
    limit = batch.runtime_max_tokens
    if not 0 < limit <= x.max_tokens:
        yield (
            f"runtime_max_tokens is {limit}: it must lie in [1, max_tokens = {x.max_tokens}]; "
            "open the transport with a larger max_tokens"
        )
    if batch.tokens > limit:
        yield (
            f"{batch.tokens} tokens but runtime_max_tokens is {limit}: surplus rows would overwrite another rank's; "
            "pass the fullest rank's token count"
        )


def _payload_problems(x: Exchange, batch: Batch):
    expected = x.payload_parts
    total = len(batch.payloads) + 2
    if total > MAX_PAYLOADS:
        yield f"{total} payloads with ids and weights: the kernels take at most {MAX_PAYLOADS}; merge some"
    if len(batch.payloads) != len(expected):
        yield f"{len(batch.payloads)} payloads: format {x.format} with its extras has {len(expected)}"
    for i, (payload, part) in enumerate(zip(batch.payloads, expected, strict=False)):
        if payload.ndim != 2 or payload.shape != (batch.tokens, part.width) or not payload.is_contiguous():
            yield f"payload {i} is {_form(payload)}: it must be contiguous [tokens = {batch.tokens}, {part.width}]"
        if str(payload.dtype) != f"torch.{part.dtype}":
            yield f"payload {i} is {payload.dtype}: format {x.format} has {part.dtype} for its {part.name}"
    if problem := runtime_max_problem(x, x.mode, batch.runtime_max_tokens):
        yield problem


def _mask_problems(x: Exchange, batch: Batch, ep_rank: int):
    if batch.active_ranks is not None:
        if not x.enable_rank_mask:
            yield "active_ranks given but enable_rank_mask is False: open the transport with enable_rank_mask=True"
        if ep_rank not in batch.active_ranks:
            yield f"active_ranks {batch.active_ranks} leave out ep_rank {ep_rank}, which calls: only living ranks call"
        if any(not 0 <= r < x.ep_size for r in batch.active_ranks):
            yield f"active_ranks {batch.active_ranks}: each must lie in [0, ep_size = {x.ep_size})"
    stats, reserved = batch.eplb_stats_E, x.eplb_stats_experts
    if stats is not None and (stats.shape != (reserved,) or str(stats.dtype) != "torch.int32" or not reserved):
        yield (
            f"eplb_stats_E is {_form(stats)}: it must be [{reserved}] of int32, as many as were reserved; "
            "open the transport with their number as eplb_stats_experts"
        )


def partials_problem(
    partials: torch.Tensor, rows: int, hidden: int, combine_dtype: str, device: torch.device | None = None
) -> str | None:
    """What is wrong with the rows that combine shall add up, or None; `device` as in `batch_problem`."""
    if problem := _tensor_problem("partials", partials, device):
        return f"{problem}, or fill partials_buffer(received.handle)"
    dtype = {"bf16": "bfloat16", "fp16": "float16", "fp32": "float32"}[combine_dtype]
    if partials.shape == (rows, hidden) and str(partials.dtype) == f"torch.{dtype}" and partials.is_contiguous():
        return None
    return (
        f"partials are {_form(partials)}: combine takes contiguous [{rows}, {hidden}] of {dtype}, a row for each "
        "received row; fill partials_buffer(received.handle)"
    )


def require_host(rank: Rank, mode: str) -> None:
    """Check that ranks are processes without GPUs: the protocols between processes move rows of the host's memory.

    Raises:
        Refused: they are on another fabric.
    """
    if rank.fabric != "host":
        raise Refused(
            f"{mode} between processes on fabric {rank.fabric}: its steps are Python's, on memory of the host, and a "
            'kernel cannot be stopped or changed like them; start Ranks(layout, fabric="host") for it'
        )


def require_ep_workspace(rank: Rank, exchange: Exchange, *, phase: str, kernel_message: str) -> None:
    """Refuse a workspace that spans another group than the EP group.

    Args:
        phase: where the kernels notice.
        kernel_words: what they say, with `{spans}` and `{ep_size}` for the two numbers.

    Raises:
        WorkspaceMismatch: the groups have different sizes.
        Refused: they have equal sizes but other ranks, which the kernels would not notice.
    """
    spanned, group = rank.group(exchange.workspace_group), rank.group("ep")
    if spanned.size != group.size:
        raise WorkspaceMismatch(
            kernel_message=kernel_message.format(spans=spanned.size, ep_size=group.size),
            phase=phase,
            spans=spanned.size,
            group=exchange.workspace_group,
            ep_size=group.size,
            arithmetic=exchange.layout.arithmetic,
        )
    if spanned.ranks != group.ranks:
        raise Refused(
            f"workspace_group {exchange.workspace_group} has ranks {list(spanned.ranks)} but the EP group "
            f"{list(group.ranks)}: as many, but others, so rows would go astray; allocate it over the EP group"
        )


def signature(batch: Batch) -> dict[str, object]:
    """What must be equal on all ranks in a round: offsets are computed locally, so a difference would mix up rows."""
    return {
        "runtime_max_tokens": batch.runtime_max_tokens,
        "payloads": tuple((str(p.dtype), p.shape[-1]) for p in batch.payloads),
        "active_ranks": batch.active_ranks,
        "eplb_stats": batch.eplb_stats_E is not None,
    }


def agree(group: Group, mine: dict[str, object], problem: str | None, *, call: str) -> None:
    """Collective. All ranks go on, or all refuse with the same words.

    Args:
        call: what for, as for `Group.allgather`.

    Raises:
        Refused: a rank has a problem, or the ranks' signatures differ. RankError: ranks agree on different things.
    """
    answers = group.allgather((mine, problem), call=call)
    for rank, (_, theirs) in enumerate(answers):
        if theirs:
            raise Refused(f"ep_rank {rank}: {theirs}")
    first = answers[0][0]
    for rank, (other, _) in enumerate(answers):
        for name in first:
            if other[name] != first[name]:
                raise Refused(
                    f"{name} is {first[name]} on ep_rank 0 but {other[name]} on ep_rank {rank}: every rank computes "
                    "the same offsets from it, so it must be equal; pass the value of the whole group"
                )


def _form(tensor: torch.Tensor) -> str:
    order = "" if tensor.is_contiguous() else "non-contiguous "
    return f"{order}{list(tensor.shape)} of {str(tensor.dtype).removeprefix('torch.')}"

"""A plan: a layout, a MoE shape and a GPU, and the bytes that follow."""

from __future__ import annotations

from bisect import bisect_right
from dataclasses import dataclass, replace
from functools import cached_property

import pandas as pd

from mnnvl_lab.errors import Refused, require_count
from mnnvl_lab.hardware import Gpu, require_gpu
from mnnvl_lab.layout import Layout
from mnnvl_lab.model import Model, require_format, require_model
from mnnvl_lab.need import COMBINE_BYTES, Need
from mnnvl_lab.planner.modes import ModePlan, one_sided, two_sided
from mnnvl_lab.show import html_block, text_block

GIB = 1024**3
PARTS = ("aux", "dispatch", "combine", "fifo", "prepare")
TOTALS = ("asked", "allocated", "mapped", "reserved")


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What a rank of a layout will take in either mode. Made by `plan`.

    Attributes:
        need: layout, shape, formats; its `max_tokens` is that of a batch, before any split over TP.
        gpu: whose multiprocessors and memory count.
        model: the named model, where there is one.
        sequence_parallel: whether the workspace is sized by a rank's share of the batch, ceil(tokens / TP), as SP-MoE
            needs it, and not by all of it, as vLLM sizes it.
    """

    need: Need
    gpu: Gpu
    model: Model | None = None
    sequence_parallel: bool = False

    @property
    def layout(self) -> Layout:
        return self.need.layout

    @property
    def tokens_per_rank(self) -> int:
        """The most tokens that the workspace lets one rank send."""
        return -(-self.need.max_tokens // self.layout.tp) if self.sequence_parallel else self.need.max_tokens

    @cached_property
    def one_sided(self) -> ModePlan:
        return one_sided(self._sized)

    @cached_property
    def two_sided(self) -> ModePlan:
        return two_sided(self._sized, self.gpu)

    @property
    def modes(self) -> tuple[ModePlan, ModePlan]:
        return self.one_sided, self.two_sided

    @property
    def sequence_parallel_saves_bytes(self) -> int:
        """Memory that one-sided sizing by a rank's share of the batch saves over sizing by the whole batch."""
        whole, share = (replace(self, sequence_parallel=sp).one_sided.allocated_bytes for sp in (False, True))
        return whole - share

    def memory_share(self, mode: ModePlan) -> float:
        """What the mode allocates, as a fraction of the GPU's memory."""
        return mode.allocated_bytes / self.gpu.memory_bytes

    def kv_cache_tokens(self, mode: ModePlan) -> int | None:
        """Tokens of the model's key-value cache, all layers on one rank, that would lie in what the mode allocates.

        Pipeline stages hold fewer layers and TP may split the heads: then it is as many times more. None without a
        model or where its cache is not known.
        """
        per_token = self.model.kv_bytes_per_token if self.model else None
        return mode.allocated_bytes // per_token if per_token else None

    def most_tokens(self, budget_bytes: int) -> int:
        """The most tokens of a batch whose one-sided workspace is allocated within a budget.

        The two-sided one does not depend on tokens: it fits or it does not.

        Raises:
            Refused: not even one token fits.
        """
        rows_bytes = self.need.dispatch_bytes_per_token + self.need.combine_bytes_per_token
        ceiling = self.layout.tp * (int(budget_bytes) // (self.need.ep_size * rows_bytes) + 1)
        most = bisect_right(range(1, ceiling + 1), int(budget_bytes), key=self._allocated_for)
        if most == 0:
            raise Refused(
                f"budget_bytes is {budget_bytes}: the one-sided workspace of one token takes "
                f"{self._allocated_for(1)}; give at least that, or use fewer ranks"
            )
        return most

    def to_dict(self) -> dict:
        """The plan as plain values: what `plan --json` prints.

        `allocated_bytes`, `mapped_bytes` and `reserved_bytes` of `two_sided` count both of its allocations;
        `workspace_bytes` is that of its FIFOs and `prepare_bytes` that of the other. `regions` do not overlap.
        """
        sizes = ("tp", "dp", "pcp", "pp", "gpus_per_node", "world_size", "ep_size")
        shape = ("hidden", "experts", "top_k", "format", "combine_dtype", "max_tokens")
        return {
            "layout": {name: getattr(self.layout, name) for name in sizes},
            "gpu": self.gpu.name,
            "model": self.model.name if self.model else None,
            **{name: getattr(self.need, name) for name in shape},
            "sequence_parallel": self.sequence_parallel,
            "tokens_per_rank": self.tokens_per_rank,
            **{mode.mode: mode.to_dict() | self._costs(mode) for mode in self.modes},
        }

    def to_frame(self) -> pd.DataFrame:
        """Bytes a rank: one row a quantity, one column a mode; missing where the mode has no such thing."""
        columns = {mode.mode: _column(mode) for mode in self.modes}
        frame = pd.DataFrame(columns, index=[*PARTS, *TOTALS], dtype="Int64")
        return frame.rename_axis("bytes a rank").reset_index()

    def __str__(self) -> str:
        return text_block(self._title, self._shown, self._notes)

    def _repr_html_(self) -> str:
        return html_block(self._title, self._shown, self._notes)

    @property
    def _sized(self) -> Need:
        return replace(self.need, max_tokens=self.tokens_per_rank)

    def _allocated_for(self, max_tokens: int) -> int:
        return replace(self, need=replace(self.need, max_tokens=max_tokens)).one_sided.allocated_bytes

    def _costs(self, mode: ModePlan) -> dict:
        return {"memory_share": self.memory_share(mode), "kv_cache_tokens": self.kv_cache_tokens(mode)}

    @property
    def _title(self) -> str:
        need, name = self.need, self.model.name if self.model else "MoE"
        return (
            f"Memory of one rank on {self.gpu.name}: {self.layout.arithmetic} = {need.ep_size} EP ranks, "
            f"{name} (hidden {need.hidden}, {need.experts} experts, top-{need.top_k}), {need.format} dispatch, "
            f"{need.combine_dtype} combine, {self.tokens_per_rank} tokens a rank"
        )

    @property
    def _shown(self) -> pd.DataFrame:
        return self.to_frame().set_index("bytes a rank").map(_shown_bytes).reset_index()

    @property
    def _notes(self) -> list[str]:
        return [*(self._cost_note(mode) for mode in self.modes), *self._sequence_parallel_note(), *self._refusals()]

    def _cost_note(self, mode: ModePlan) -> str:
        share = f"{mode.mode}: {self.memory_share(mode):.2%} of the GPU's {self.gpu.memory_bytes / GIB:.1f} GiB"
        tokens = self.kv_cache_tokens(mode)
        return share if tokens is None else f"{share}, the KV cache of {tokens:,} tokens of {self.model.name}"

    def _sequence_parallel_note(self) -> list[str]:
        if self.layout.tp == 1:
            return []
        saved = f"{self.sequence_parallel_saves_bytes / GIB:.3f} GiB"
        verb = "saves" if self.sequence_parallel else "would save"
        return [f"under SP-MoE a rank sends 1/TP of a batch: sizing one_sided by that share {verb} {saved}"]

    def _refusals(self) -> list[str]:
        return [f"{mode.mode} cannot serve this: {mode.refusal}" for mode in self.modes if mode.refusal]


def plan(
    layout: Layout,
    *,
    max_tokens: int,
    model: Model | str | None = None,
    hidden: int | None = None,
    experts: int | None = None,
    top_k: int | None = None,
    format: str = "bf16",
    combine_dtype: str = "bf16",
    gpu: Gpu | str = "h100",
    sequence_parallel: bool = False,
    sm_limit: int | None = None,
) -> Plan:
    """Plan the workspaces of a layout.

    Args:
        layout: gives the EP group.
        max_tokens: the most tokens of a batch of one DP rank (vLLM's `max_num_batched_tokens`).
        model: a model or its name; or else give `hidden`, `experts` and `top_k`.
        hidden, experts, top_k: H, E, K.
        format: dispatch format.
        combine_dtype: `bf16`, `fp16` or `fp32`.
        gpu: a GPU or its name.
        sequence_parallel: size by ceil(max_tokens / TP), a rank's share under SP-MoE.
        sm_limit: multiprocessors that the two-sided kernels may use.

    Raises:
        Refused: an unknown name, a number that is none, or a format that cannot carry `hidden`. A shape that a mode's
            kernels cannot serve is planned all the same: `ModePlan.refusal` says why.
    """
    known = require_model(model) if isinstance(model, str) else model
    shape = _shape(known, {"hidden": hidden, "experts": experts, "top_k": top_k})
    require_format(format).require_hidden(shape["hidden"])
    if combine_dtype not in COMBINE_BYTES:
        raise Refused(f"combine_dtype is {combine_dtype!r}: combine adds {', '.join(COMBINE_BYTES)}; name one of these")
    need = Need(
        layout=layout,
        max_tokens=require_count("max_tokens", max_tokens),
        **shape,
        format=format,
        combine_dtype=combine_dtype,
        sm_limit=sm_limit,
    )
    chosen = require_gpu(gpu) if isinstance(gpu, str) else gpu
    return Plan(need=need, gpu=chosen, model=known, sequence_parallel=sequence_parallel)


def _shape(model: Model | None, numbers: dict[str, int | None]) -> dict[str, int]:
    """H, E and K, from the model or from the numbers, never from both."""
    given = [name for name, value in numbers.items() if value is not None]
    if model and given:
        raise Refused(
            f"model {model.name} and {', '.join(given)} given: it brings these numbers; leave one or the other out"
        )
    if model:
        return {name: getattr(model, name) for name in numbers}
    if len(given) < len(numbers):
        missing = ", ".join(name for name in numbers if name not in given)
        raise Refused(
            f"no model, and {missing} missing: a plan needs hidden, experts and top_k; name a model or give them"
        )
    return {name: require_count(name, value) for name, value in numbers.items()}


def _column(mode: ModePlan) -> dict[str, int]:
    return dict(mode.parts) | {total: getattr(mode, f"{total}_bytes") for total in TOTALS}


def _shown_bytes(size) -> str:
    if pd.isna(size):
        return "-"
    return f"{size:,} = {size / GIB:.3f} GiB" if size >= GIB / 1000 else f"{size:,}"

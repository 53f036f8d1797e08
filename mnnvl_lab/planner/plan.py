"""A plan: a layout, a MoE shape and a GPU, and the bytes that follow."""

from __future__ import annotations

import math
from bisect import bisect_right
from dataclasses import dataclass, replace
from functools import cached_property
from numbers import Real

import pandas as pd

from mnnvl_lab.errors import MOST_COUNT, Refused, choose, named_arguments, require_count, shown
from mnnvl_lab.exchange import COMBINE_BYTES, ExchangeShape
from mnnvl_lab.hardware import Gpu, require_gpu
from mnnvl_lab.layout import Layout, require_layout
from mnnvl_lab.model import Model, require_format, require_model
from mnnvl_lab.notebook import html_block, text_block
from mnnvl_lab.planner import report
from mnnvl_lab.planner.deployment import Deployment, deployment
from mnnvl_lab.planner.modes import FLASHINFER, ModePlan, one_sided, two_sided

GIB = 1024**3
ADDRESSES = 2**63  # bytes that a signed 64-bit offset reaches
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
        flashinfer: version of FlashInfer whose one-sided layout counts, `0.7.2` or `main`.
        cft: whether that layout has room for counted writes (`main` alone).
    """

    need: ExchangeShape
    gpu: Gpu
    model: Model | None = None
    sequence_parallel: bool = False
    flashinfer: str = FLASHINFER[0]
    cft: bool = False

    @property
    def layout(self) -> Layout:
        return self.need.layout

    @property
    def tokens_per_rank(self) -> int:
        """The most tokens that the workspace lets one rank send."""
        return -(-self.need.max_tokens // self.layout.tp) if self.sequence_parallel else self.need.max_tokens

    @cached_property
    def one_sided(self) -> ModePlan:
        return one_sided(self.sized, self.gpu, flashinfer=self.flashinfer, cft=self.cft)

    @cached_property
    def two_sided(self) -> ModePlan:
        return two_sided(self.sized, self.gpu)

    @property
    def modes(self) -> tuple[ModePlan, ModePlan]:
        return self.one_sided, self.two_sided

    @property
    def sequence_parallel_saves_bytes(self) -> int:
        """Memory that one-sided sizing by a rank's share of the batch saves over sizing by the whole batch."""
        whole, share = (replace(self, sequence_parallel=sp).one_sided.allocated_bytes for sp in (False, True))
        return whole - share

    def fits(self, mode: ModePlan) -> bool:
        """Whether the GPU has the memory that the mode allocates, were nothing else on it."""
        return mode.allocated_bytes <= self.gpu.memory_bytes

    def reasons_against(self, mode: ModePlan) -> list[str]:
        """Every reason why the mode cannot run here, as sentences: what its kernels refuse, and memory."""
        return report.reasons_against(self, mode)

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
            Refused: the budget is no number, or not even one token fits.
        """
        if not isinstance(budget_bytes, Real) or not 0 <= budget_bytes < math.inf:
            raise Refused(f"budget_bytes is {shown(budget_bytes)}: it must be a finite number of bytes; correct it")
        rows_bytes = self.need.dispatch_bytes_per_token + self.need.combine_bytes_per_token
        ceiling = self.layout.tp * (int(budget_bytes) // (self.need.ep_size * rows_bytes) + 1)
        most = bisect_right(range(1, min(ceiling, MOST_COUNT) + 1), int(budget_bytes), key=self.allocated_for)
        if most == 0:
            raise Refused(
                f"budget_bytes is {shown(budget_bytes)}: the one-sided workspace of one token takes "
                f"{self.allocated_for(1)}; give at least that, or use fewer ranks"
            )
        return most

    def deployment(self, **choices) -> Deployment:
        """This plan with a server's weights, all of its workspaces, and what they leave for the KV cache.

        Args:
            mode: `one_sided` (default) or `two_sided`.
            engine: whose rules say which workspaces are alive: `vllm` (default) or `sglang`.
            heads: further kinds of MoE layers, in the order of loading, that share a workspace: `bf16`, or `bf16:2048`
                with a hidden size of their own (vLLM).
            namespaces: workspaces that SGLang keeps: of `decode`, `speculative`, `sp_prefill`.
            weights: dtype of the routed experts' weights: `bf16`, `fp8`, `fp4`, `mxfp4`.
            redundant: replicas of experts in each layer (EPLB).
            other_weights_bytes: weights of everything else on one rank, as an engine reports them; otherwise about as
                many as the model's card says.
            utilization: share of the GPU's memory that the engine may use (vLLM's `gpu_memory_utilization`).
            least_kv_tokens: tokens of KV cache that must find room beside all this.

        Raises:
            Refused: an unknown name, or a number out of its range.
        """
        return deployment(self, **choices)

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
            "flashinfer": self.flashinfer,
            "cft": self.cft,
            "sequence_parallel": self.sequence_parallel,
            "tokens_per_rank": self.tokens_per_rank,
            **{mode.mode: mode.to_dict() | self._costs(mode) for mode in self.modes},
        }

    def to_frame(self) -> pd.DataFrame:
        """Bytes per rank: one row per quantity, one column per mode; missing where the mode has no such thing."""
        columns = {mode.mode: _column(mode) for mode in self.modes}
        parts = [*PARTS, *(["inbox"] if self.cft else [])]
        frame = pd.DataFrame(columns, index=[*parts, *TOTALS], dtype="Int64")
        return frame.rename_axis("bytes per rank").reset_index()

    def text(self, *, wide: bool = False) -> str:
        """The plan for a terminal; `wide` adds the exact bytes to each size."""
        return text_block(report.title(self), report.sizes(self, wide=wide), report.notes(self))

    def __str__(self) -> str:
        return self.text()

    def _repr_html_(self) -> str:
        return html_block(report.title(self), report.sizes(self), report.notes(self))

    @property
    def sized(self) -> ExchangeShape:
        """The exchange for which the workspace is sized: `max_tokens` is `tokens_per_rank`."""
        return replace(self.need, max_tokens=self.tokens_per_rank)

    def allocated_for(self, max_tokens: int) -> int:
        """Bytes of the one-sided workspace if a batch had that many tokens."""
        return replace(self, need=replace(self.need, max_tokens=max_tokens)).one_sided.allocated_bytes

    def _costs(self, mode: ModePlan) -> dict:
        return {
            "memory_share": self.memory_share(mode),
            "kv_cache_tokens": self.kv_cache_tokens(mode),
            "fits": self.fits(mode),
            "reasons_against": self.reasons_against(mode),
        }


@named_arguments
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
    flashinfer: str = FLASHINFER[0],
    cft: bool = False,
) -> Plan:
    """Plan the workspaces of a layout; `Plan.deployment` puts a server's weights and cache beside them.

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
        flashinfer: version of FlashInfer whose one-sided layout counts, `0.7.2` or `main`.
        cft: with room for counted writes (`main` alone).

    Raises:
        Refused: an unknown name, a number that is none, or a format that cannot carry `hidden`. What a mode cannot
            serve, such as an EP group beyond one NVLink domain, is planned all the same: `Plan.reasons_against` and
            `ModePlan.problems` say why.
    """
    known = None if model is None else require_model(model)
    shape = _shape(known, {"hidden": hidden, "experts": experts, "top_k": top_k})
    form = require_format(format)
    form.require_hidden(shape["hidden"])
    need = ExchangeShape(
        layout=require_layout(layout),
        max_tokens=require_count("max_tokens", max_tokens),
        **shape,
        format=form.name,
        combine_dtype=choose(combine_dtype, COMBINE_BYTES, "combine_dtype"),
        sm_limit=None if sm_limit is None else require_count("sm_limit", sm_limit),
    )
    made = Plan(
        need=need,
        gpu=require_gpu(gpu),
        model=known,
        sequence_parallel=bool(sequence_parallel),
        flashinfer=choose(flashinfer, FLASHINFER, "flashinfer"),
        cft=bool(cft),
    )
    if (reserved_bytes := made.one_sided.reserved_bytes) >= ADDRESSES:
        raise Refused(
            f"max_tokens is {max_tokens} with hidden {need.hidden} on {need.ep_size} EP ranks: they would reserve "
            f"{reserved_bytes} bytes of addresses, and 64 bits end before {ADDRESSES}; use smaller numbers"
        )
    return made


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
    if not mode.parts:
        return {}
    return dict(mode.parts) | {total: getattr(mode, f"{total}_bytes") for total in TOTALS}

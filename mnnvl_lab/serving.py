"""Who serves a layout: the kernels, FlashInfer's `moe_ep`, vLLM, SGLang, TensorRT-LLM; each "yes", or what it says.

A refusal is the layer's own first one, in its words where it has words. Layers differ: what a kernel can do, the engine
above it may refuse, and the other way round an engine may pass on what its kernel does not check.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from types import MappingProxyType

import pandas as pd

from mnnvl_lab.engines import EngineSetup, sglang, tensorrt_llm, vllm
from mnnvl_lab.errors import Refused, named_arguments
from mnnvl_lab.exchange import ExchangeShape
from mnnvl_lab.hardware import Gpu, domain_problems
from mnnvl_lab.layout import Layout
from mnnvl_lab.model import ALIASES, MODELS, Model, require_model
from mnnvl_lab.notebook import html_block, text_block
from mnnvl_lab.planner import Plan
from mnnvl_lab.workspace.kernel_limits import (
    ONE_SIDED_MAX_RANKS,
    ONE_SIDED_TOP_K,
    TWO_SIDED_MAX_TOP_K,
    expert_multiple,
    missing_experts,
    problems,
)

YES = "yes"
NONE_OPENED = "opens none"
FLASHINFER = "0.7.2.post1"
MODES = ("one_sided", "two_sided")
TENSORRT_MAX_TOP_K = 8
VLLM_FORMATS = ("bf16", "fp16", "nvfp4", "mxfp8", "fp8_block")
SGLANG_FORMATS = ("bf16", "nvfp4", "mxfp8")


@dataclass(frozen=True, kw_only=True)
class Case:
    """What a layer is asked to serve.

    Attributes:
        need: layout, shape and format.
        gpu: whose NVLink domains count.
    """

    need: ExchangeShape
    gpu: Gpu

    @property
    def layout(self) -> Layout:
        return self.need.layout


@dataclass(frozen=True, kw_only=True)
class Served:
    """The table "who serves this".

    Attributes:
        case: what was asked.
        table: one row per layer: `layer, version, one_sided, two_sided, source`.
    """

    case: Case
    table: pd.DataFrame

    def to_dict(self) -> list[dict[str, str]]:
        return self.table.to_dict("records")

    def __str__(self) -> str:
        return text_block(self._title, self.table.drop(columns="source"), self._remedies)

    def _repr_html_(self) -> str:
        return html_block(self._title, self.table, self._remedies)

    @property
    def _remedies(self) -> list[str]:
        """How many redundant experts the layers want that have too few for these ranks."""
        need, found = self.case.need, []
        for mode, multiple in (("one_sided", need.ep_size), ("two_sided", expert_multiple("two_sided", need.ep_size))):
            if more := missing_experts(need.experts, multiple):
                total = need.experts + more
                found.append(
                    f"{more} redundant experts, {total} in all, are the least that every layer of {mode} takes"
                )
        return found

    @property
    def _title(self) -> str:
        need = self.case.need
        return (
            f"Who serves {need.layout.arithmetic} x PP {need.layout.pp}, {need.experts} experts, top-{need.top_k}, "
            f"hidden {need.hidden}, {need.format} on {self.case.gpu.name}"
        )


@named_arguments
def who_serves(plan: Plan) -> Served:
    """Which layers serve a plan's layout and shape in either mode, and what those say that do not.

    Raises:
        Refused: not a plan.
    """
    if not isinstance(plan, Plan):
        raise Refused(f"plan is {plan!r}: pass what plan(...) returns")
    case = Case(need=plan.need, gpu=plan.gpu)
    rows = [
        {"layer": layer, "version": version, **{mode: _first(rules(case, mode)) for mode in MODES}, "source": source}
        for layer, (version, rules, source) in LAYERS.items()
    ]
    return Served(case=case, table=pd.DataFrame(rows))


OTHER_SIZES = ("air", "flash", "lite", "mini", "nano", "distill", "tiny")
"""Words in a checkpoint's name that make it another model than the one it begins with."""


def model_named(name: str) -> Model | None:
    """The model that a name of a checkpoint begins with, such as `deepseek-ai/DeepSeek-V3-0324`; None if none does.

    What follows must begin with a hyphen (`DeepSeek-V3.3` may have another shape) and name no other size
    (`GLM-4.5-Air`).
    """
    base = name.rstrip("/").rpartition("/")[2].casefold().replace("_", "-")
    known = [one for one in (*MODELS, *ALIASES) if base == one or base.startswith(f"{one}-")]
    if not known:
        return None
    found = max(known, key=len)
    others = set(base.removeprefix(found).split("-")) & set(OTHER_SIZES)
    return None if others else require_model(found)


def about(setup: EngineSetup) -> str:
    """In one sentence, whether the engine would open a workspace with these flags."""
    if setup.opens_all_to_all and setup.mode in MODES:
        return f"{setup.engine} opens a {setup.mode} workspace for {setup.capacity} tokens per rank"
    kind = f"uses {setup.backend}, which needs neither workspace" if setup.opens_all_to_all else NONE_OPENED
    return f"{setup.engine} {kind}: {setup.why}"


def _first(reasons: Iterator[str]) -> str:
    return next(reasons, YES)


def _kernel(case: Case, mode: str) -> Iterator[str]:
    """What the kernels say; what they do not check is marked so."""
    need = case.need
    if any(domain_problems(case.layout, case.gpu)):
        yield "POSIX fd exchange via SCM_RIGHTS requires all ranks to share the same host"
    if mode == "one_sided":
        if need.top_k not in ONE_SIDED_TOP_K:
            yield f"Unsupported top_k (top_k is {need.top_k})"
        if need.ep_size > ONE_SIDED_MAX_RANKS:
            yield f"epSize must be in the range (0, {ONE_SIDED_MAX_RANKS}] (ep_size is {need.ep_size})"
        if need.experts < need.ep_size:
            yield "num_experts must be >= ep_size"
    elif need.experts % 4:
        yield f"expertCount must be divisible by 4 (experts is {need.experts})"
    elif need.top_k > TWO_SIDED_MAX_TOP_K:
        yield "Only 1 <= topK <= 32 is supported now."
    yield from (f"does not check: {text}" for text in problems(need, mode))


def _moe_ep(case: Case, mode: str) -> Iterator[str]:
    need, name = case.need, {"one_sided": "NVLinkOneSidedAlltoAll", "two_sided": "NVLinkTwoSidedAlltoAll"}[mode]
    if need.experts % need.ep_size:
        yield f"{name} requires num_experts ({need.experts}) divisible by the EP size ({need.ep_size})"
    if mode == "two_sided" and need.experts % 4:
        yield f"{name} requires num_experts divisible by 4, got {need.experts}"
    yield from _kernel(case, mode)


def _vllm(case: Case, mode: str) -> Iterator[str]:
    layout = case.layout
    if layout.dp == layout.pcp == 1:
        yield f"{NONE_OPENED}: DP 1 and PCP 1, its TP ranks hold the same tokens"
    if mode == "one_sided":
        if case.need.format not in VLLM_FORMATS:
            yield f"NotImplementedError: dispatch carries {', '.join(VLLM_FORMATS)}"
        yield from _moe_ep(case, mode)
    if mode == "two_sided":
        if layout.pcp > 1 and layout.dp == 1:
            yield "AssertionError: dp_metadata is not None"
        yield from _kernel(case, mode)


def _sglang(case: Case, mode: str) -> Iterator[str]:
    layout = case.layout
    if mode == "two_sided":
        yield "has none: --moe-a2a-backend flashinfer is one-sided"
    if layout.tp > 1 or layout.pcp > 1 or layout.dp == 1:
        yield "Flashinfer MoE A2A is only supported with dp_size == tp_size and --enable-dp-attention"
    if case.need.format not in SGLANG_FORMATS:
        yield f"would dispatch bf16: formats are {', '.join(SGLANG_FORMATS)}"
    yield from _kernel(case, mode)


def _tensorrt_llm(case: Case, mode: str) -> Iterator[str]:
    layout, need = case.layout, case.need
    if layout.dp == 1:
        yield "no MoE communication is needed (no attention DP)"
    if layout.tp > 1 or layout.pcp > 1:
        yield "attention DP makes every GPU a DP rank: no TP or PCP beside it"
    if mode == "one_sided":
        if layout.pp > 1:
            yield "Currently NVLinkOneSided only supports pure EP for MoE."
        if need.top_k > TENSORRT_MAX_TOP_K:
            yield f"MAX_TOP_K is {TENSORRT_MAX_TOP_K} (top_k is {need.top_k})"
    elif need.experts % need.ep_size:
        yield (
            "Communication method 'NVLINK_TWO_SIDED' requires num_experts % ep_size == 0, but got "
            f"num_experts={need.experts}, ep_size={need.ep_size}."
        )
    if any(domain_problems(layout, case.gpu)):
        yield "POSIX fds end at the node: needs one NVLink domain"


Rules = Callable[[Case, str], Iterator[str]]

LAYERS: Mapping[str, tuple[str, Rules, str]] = MappingProxyType(
    {
        "FlashInfer kernel": (
            FLASHINFER,
            _kernel,
            "csrc/trtllm_moe_alltoall.cu, trtllm_alltoall_prepare.cu, comm/mnnvl.py",
        ),
        "flashinfer.moe_ep": (
            FLASHINFER,
            _moe_ep,
            "moe_ep/core/comm/communication.py, nvlink_two_sided/communication.py",
        ),
        vllm.ENGINE: (vllm.VERSION, _vllm, "device_communicators/all2all.py, fused_moe/all2all_utils.py"),
        sglang.ENGINE: (sglang.VERSION, _sglang, "srt/server_args.py, token_dispatcher/flashinfer.py"),
        tensorrt_llm.ENGINE: (
            tensorrt_llm.VERSION,
            _tensorrt_llm,
            "fused_moe/communication/communication_factory.py, nvlink_one_sided.py",
        ),
    }
)
"""Each layer with its version, its rules and where they were read."""

"""Memory of one rank of a server: weights, every workspace that is alive, and what is left for the KV cache."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from numbers import Real
from typing import TYPE_CHECKING

import pandas as pd

from mnnvl_lab.errors import MOST_COUNT, Refused, choose, require_count, shown
from mnnvl_lab.model import require_format
from mnnvl_lab.notebook import html_block, readable_bytes, text_block
from mnnvl_lab.planner.live import ENGINES, Head, LiveWorkspace, grown, require_namespaces, told_apart
from mnnvl_lab.planner.modes import ModePlan, Totals
from mnnvl_lab.planner.weights import BYTES_PER_PARAMETER, expert_bytes, other_bytes
from mnnvl_lab.workspace import Window, pack

if TYPE_CHECKING:
    from mnnvl_lab.planner.plan import Plan

UTILIZATION = 0.92  # gpu_memory_utilization of vLLM 0.33.0


@dataclass(frozen=True, kw_only=True)
class Deployment(Totals):
    """What a rank of a server holds. Made by `Plan.deployment`.

    Attributes:
        plan: layout, shape, GPU and batch.
        mode: whose workspaces, `one_sided` or `two_sided`.
        engine: whose rules say which workspaces are alive, `vllm` or `sglang`.
        heads: further kinds of layers that share a workspace (vLLM).
        namespaces: workspaces that SGLang keeps apart.
        weights: dtype of the routed experts' weights.
        redundant: replicas of experts in each layer (EPLB).
        given_other_bytes: weights of everything else, as an engine reports them; None to take them from the model.
        utilization: share of the GPU's memory that the engine may use.
        least_kv_tokens: tokens of KV cache that must find room.
    """

    plan: Plan
    mode: str = "one_sided"
    engine: str = "vllm"
    heads: tuple[Head, ...] = ()
    namespaces: tuple[str, ...] = ("decode",)
    weights: str = "fp8"
    redundant: int = 0
    given_other_bytes: int | None = None
    utilization: float = UTILIZATION
    least_kv_tokens: int = 0

    @property
    def mode_plan(self) -> ModePlan:
        return next(mode for mode in self.plan.modes if mode.mode == self.mode)

    @cached_property
    def workspaces(self) -> tuple[LiveWorkspace, ...]:
        """All that are alive, in the order of their allocation."""
        if self.mode == "two_sided":  # sized by GPU and ranks alone, one for all layers
            sizes = tuple(size for _, size in self.mode_plan.parts)
            return (LiveWorkspace(name="all layers", asked_bytes=sizes),)
        layout = {"flashinfer": self.plan.flashinfer, "cft": self.plan.cft}
        if self.engine == "sglang":
            return told_apart(self.plan.sized, self.namespaces, **layout)
        return grown(self.plan.sized, self.heads, **layout)

    @cached_property
    def windows(self) -> tuple[Window, ...]:
        asked = [size for workspace in self.workspaces for size in workspace.asked_bytes]
        return pack(asked, ep_size=self.plan.need.ep_size)

    @property
    def expert_bytes(self) -> int | None:
        """Routed experts with their replicas, on the fullest rank; None where the model does not say."""
        model = self.plan.model
        return model and expert_bytes(model, self.plan.layout, dtype=self.weights, redundant=self.redundant)

    @property
    def redundant_bytes(self) -> int:
        """What the replicas add to the fullest rank."""
        model, layout = self.plan.model, self.plan.layout
        without = model and expert_bytes(model, layout, dtype=self.weights)
        return (self.expert_bytes or 0) - (without or 0)

    @property
    def other_bytes(self) -> int | None:
        """Weights of attention, shared experts and embeddings; None where they are neither given nor known."""
        if self.given_other_bytes is not None or self.plan.model is None:
            return self.given_other_bytes
        return other_bytes(self.plan.model, self.plan.layout)

    @property
    def budget_bytes(self) -> int:
        """Memory that the engine may use."""
        return int(self.plan.gpu.memory_bytes * self.utilization)

    @property
    def left_bytes(self) -> int:
        """For the KV cache, activations and CUDA graphs; negative if it does not fit. Weights not known count 0."""
        return self.budget_bytes - (self.expert_bytes or 0) - (self.other_bytes or 0) - self.allocated_bytes

    @property
    def kv_tokens(self) -> int | None:
        """Tokens of KV cache in what is left, all heads of this stage's layers on one rank; None where not known."""
        per_token = self.plan.model.kv_bytes_per_token if self.plan.model else None
        return max(self.left_bytes, 0) * self.plan.layout.pp // per_token if per_token else None

    @property
    def kept_bytes(self) -> int:
        """Workspaces that the engine has outgrown: alive, and of no use."""
        sizes = [size for workspace in self.workspaces if not workspace.in_use for size in workspace.asked_bytes]
        return self._taken_bytes(sizes)

    def _taken_bytes(self, asked_bytes: Sequence[int]) -> int:
        return sum(window.allocated_bytes for window in pack(asked_bytes, ep_size=self.plan.need.ep_size))

    @property
    def unused_bytes(self) -> int:
        """What vLLM's workspaces never use under SP-MoE, as they are sized for TP times a rank's share of a batch."""
        layout = self.plan.layout
        shares = self.engine == "vllm" and self.mode == "one_sided" and layout.tp > 1 and layout.dp > 1
        if not shares or self.plan.sequence_parallel:
            return 0
        return self.allocated_bytes - replace(self, plan=replace(self.plan, sequence_parallel=True)).allocated_bytes

    @property
    def fits(self) -> bool:
        """Whether weights, workspaces and the KV cache that is asked for find room."""
        return self.left_bytes >= self._kv_bytes(self.least_kv_tokens)

    @property
    def reasons_against(self) -> tuple[str, ...]:
        """What the mode cannot serve, and memory, as sentences."""
        refused = tuple(f"{self.mode} cannot serve this: {problem}" for problem in self.mode_plan.problems)
        return refused if self.fits else (*refused, self._too_large())

    def most_tokens(self, kv_tokens: int | None = None) -> int | None:
        """The most tokens of a batch beside which the KV cache fits; None if not even one does.

        The two-sided workspace does not depend on tokens: then it is the largest count or None.

        Args:
            kv_tokens: tokens of KV cache that must find room; `least_kv_tokens` by default.

        Raises:
            Refused: KV cache is asked for and its size per token is not known.
        """
        tokens = self.least_kv_tokens if kv_tokens is None else require_count("kv_tokens", kv_tokens, least=0)
        needed_bytes = self._kv_bytes(tokens)
        room_bytes = self.left_bytes + self.allocated_bytes - needed_bytes
        rows_bytes = self.plan.need.dispatch_bytes_per_token + self.plan.need.combine_bytes_per_token
        share = self.plan.layout.tp if self.plan.sequence_parallel else 1
        ceiling = min(share * (max(room_bytes, 0) // (self.plan.need.ep_size * rows_bytes) + 1), MOST_COUNT)
        if self.mode == "two_sided":
            return MOST_COUNT if self.allocated_bytes <= room_bytes else None
        return bisect_right(range(1, ceiling + 1), room_bytes, key=self._allocated_for) or None

    def _allocated_for(self, max_tokens: int) -> int:
        plan = replace(self.plan, need=replace(self.plan.need, max_tokens=max_tokens))
        return replace(self, plan=plan).allocated_bytes

    def _kv_bytes(self, tokens: int) -> int:
        per_token = self.plan.model.kv_bytes_per_token if self.plan.model else None
        if tokens and not per_token:
            raise Refused("kv_tokens given but the KV cache of a token is not known; name a model that says it, or 0")
        return -(-tokens * (per_token or 0) // self.plan.layout.pp)

    def _too_large(self) -> str:
        most = self.most_tokens()
        remedy = "use more GPUs, or weights in fewer bytes" if most is None else f"use max_tokens {most} or less"
        missing = self._kv_bytes(self.least_kv_tokens) - self.left_bytes
        cache = f" with {self.least_kv_tokens:,} tokens of KV cache" if self.least_kv_tokens else ""
        return (
            f"{self.mode} does not fit{cache}: {readable_bytes(missing)} too many in "
            f"{readable_bytes(self.budget_bytes)} ({self.utilization:.0%} of {self.plan.gpu.name}); {remedy}"
        )

    def to_frame(self) -> pd.DataFrame:
        """One row per thing that takes memory, and what is left: `what`, `bytes` (missing where not known), `note`."""
        rows = [
            ("GPU memory that the engine may use", self.budget_bytes, f"{self.utilization:.0%} of {self.plan.gpu.name}")
        ]
        rows += [("routed experts", self.expert_bytes, self._experts_note())]
        rows += [("other weights", self.other_bytes, "given" if self.given_other_bytes is not None else "about")]
        rows += [self._workspace_row(workspace) for workspace in self.workspaces]
        rows += [("left", self.left_bytes, self._left_note())]
        frame = pd.DataFrame(rows, columns=["what", "bytes", "note"])
        return frame.astype({"bytes": "Int64"})

    def to_dict(self) -> dict[str, object]:
        """Plain values for JSON."""
        names = (
            "mode",
            "engine",
            "weights",
            "redundant",
            "utilization",
            "least_kv_tokens",
            "budget_bytes",
            "expert_bytes",
        )
        more = ("redundant_bytes", "other_bytes", "allocated_bytes", "kept_bytes", "unused_bytes", "left_bytes")
        return {
            **{name: getattr(self, name) for name in (*names, *more, "kv_tokens", "fits")},
            "most_tokens": self.most_tokens(),
            "workspaces": [
                {"name": one.name, "asked_bytes": list(one.asked_bytes), "in_use": one.in_use}
                for one in self.workspaces
            ],
            "reasons_against": list(self.reasons_against),
        }

    def __str__(self) -> str:
        return text_block(self._title, self._shown(), self._notes())

    def _repr_html_(self) -> str:
        return html_block(self._title, self._shown(), self._notes())

    @property
    def _title(self) -> str:
        need, layout = self.plan.need, self.plan.layout
        name = self.plan.model.name if self.plan.model else "MoE"
        return (
            f"A rank of {name} under {self.engine}, {self.mode}: {layout.arithmetic} x PP {layout.pp}, "
            f"{need.format} dispatch, batches of {need.max_tokens} tokens, FlashInfer {self.plan.flashinfer}"
        )

    def _shown(self) -> pd.DataFrame:
        frame = self.to_frame()
        sizes = ["not known" if pd.isna(size) else _signed(int(size)) for size in frame["bytes"]]
        return frame.assign(bytes=sizes).rename(columns={"bytes": "per rank"})

    def _experts_note(self) -> str:
        if self.expert_bytes is None:
            return "the model's inner size is not known"
        replicas = f", {readable_bytes(self.redundant_bytes)} of them replicas" if self.redundant else ""
        return f"in {self.weights}{replicas}"

    def _workspace_row(self, workspace: LiveWorkspace) -> tuple[str, int, str]:
        note = "in use" if workspace.in_use else "outgrown, kept by FlashInfer until the process ends"
        return f"workspace: {workspace.name}", self._taken_bytes(workspace.asked_bytes), note

    def _left_note(self) -> str:
        if self.kv_tokens is None:
            return "KV cache, activations, CUDA graphs"
        return f"KV cache of at most {self.kv_tokens:,} tokens, activations, CUDA graphs"

    def _notes(self) -> list[str]:
        most = self.most_tokens()
        beside = (
            f"these weights and {self.least_kv_tokens:,} tokens of KV cache"
            if self.least_kv_tokens
            else "these weights"
        )
        notes = [f"the largest batch beside {beside}: {most:,} tokens"] if most and self.mode == "one_sided" else []
        if self.unused_bytes:
            notes.append(
                f"{readable_bytes(self.unused_bytes)} of the workspaces stay empty: vLLM sizes them for whole batches, "
                f"and under SP-MoE each of the {self.plan.layout.tp} TP ranks sends its share"
            )
        return [*notes, *self.reasons_against]


def deployment(
    plan: Plan,
    *,
    mode: str = "one_sided",
    engine: str = "vllm",
    heads: Sequence[Head | str] = (),
    namespaces: Sequence[str] = ("decode",),
    weights: str = "fp8",
    redundant: int = 0,
    other_weights_bytes: int | None = None,
    utilization: float = UTILIZATION,
    least_kv_tokens: int = 0,
) -> Deployment:
    """Put a server's weights and workspaces beside one another: `Plan.deployment` says what each argument means."""
    if heads and engine == "sglang":
        raise Refused("heads with engine sglang: there every workspace has room for bf16 rows; leave heads out")
    if not isinstance(utilization, Real) or not 0 < utilization <= 1:
        raise Refused(f"utilization is {shown(utilization)}: it must lie in (0, 1]; pass a share such as 0.92")
    made = Deployment(
        plan=plan,
        mode=choose(mode, [one.mode for one in plan.modes], "mode"),
        engine=choose(engine, ENGINES, "engine", remedy="whose rules on workspaces are known"),
        heads=tuple(map(Head.read, heads)),
        namespaces=tuple(namespaces),
        weights=choose(weights, BYTES_PER_PARAMETER, "dtype of weights"),
        redundant=require_count("redundant", redundant, least=0),
        given_other_bytes=None
        if other_weights_bytes is None
        else require_count("other_weights_bytes", other_weights_bytes, least=0, most=2**63 - 1),
        utilization=float(utilization),
        least_kv_tokens=require_count("least_kv_tokens", least_kv_tokens, least=0),
    )
    for head in made.heads:
        require_format(head.format).require_hidden(head.hidden or plan.need.hidden)
    require_namespaces(made.namespaces)
    made._kv_bytes(made.least_kv_tokens)  # refused where the model does not say what a token takes
    return made


def _signed(size: int) -> str:
    return readable_bytes(size) if size >= 0 else f"-{readable_bytes(-size)}"

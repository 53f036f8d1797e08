"""Workspaces that an engine keeps alive at once: layers that differ, growth, and a workspace for each kind of batch.

Rules of vLLM 0.33.0 (`FlashInferNVLinkOneSidedManager.initialize`) and SGLang 0.5.23
(`token_dispatcher/flashinfer.py`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from types import MappingProxyType

from mnnvl_lab.arguments import whole_in
from mnnvl_lab.errors import Refused, choose, require_count, shown
from mnnvl_lab.exchange import ExchangeShape
from mnnvl_lab.model import require_format
from mnnvl_lab.planner.modes import one_sided_workspace

ENGINES = ("vllm", "sglang")
NAMESPACES: Mapping[str, int] = MappingProxyType({"decode": 0, "speculative": 128, "sp_prefill": 256})
"""SGLang's workspaces: bytes by which each is larger, so that FlashInfer's cache tells them apart."""


@dataclass(frozen=True, kw_only=True)
class Head:
    """A further kind of MoE layers that shares the workspace, such as a multi-token-prediction head.

    Attributes:
        format: its dispatch format.
        hidden: values of its rows; None for those of the model's other layers.
    """

    format: str
    hidden: int | None = None

    @classmethod
    def read(cls, head: Head | str) -> Head:
        """A head as it is, or from `bf16` or `bf16:2048`.

        Raises:
            Refused: no such format, or a hidden size that it cannot carry.
        """
        if isinstance(head, Head):
            return head
        if not isinstance(head, str):
            raise Refused(f"head is {shown(head)}: it must be a format, such as bf16 or bf16:2048; pass a string")
        name, colon, size = head.partition(":")
        form = require_format(name)
        hidden = require_count("hidden of a head", whole_in(size)) if colon else None
        if hidden is not None:
            form.require_hidden(hidden)
        return cls(format=form.name, hidden=hidden)

    def shape(self, need: ExchangeShape) -> ExchangeShape:
        """The exchange of this head in a deployment whose other layers are those of `need`."""
        return replace(need, format=self.format, hidden=self.hidden or need.hidden)


@dataclass(frozen=True, kw_only=True)
class LiveWorkspace:
    """A workspace that takes memory.

    Attributes:
        name: what it is for.
        asked_bytes: of one rank, for each allocation.
        in_use: False for one that the engine has outgrown and FlashInfer keeps.
    """

    name: str
    asked_bytes: tuple[int, ...]
    in_use: bool = True


@dataclass(frozen=True, kw_only=True)
class Capacity:
    """What a one-sided workspace is sized by: it serves every layer that needs no more of either."""

    hidden: int
    dispatch_bytes: int

    @classmethod
    def of(cls, need: ExchangeShape) -> Capacity:
        return cls(hidden=need.hidden, dispatch_bytes=need.dispatch_bytes_per_token)

    def union(self, other: Capacity) -> Capacity:
        return Capacity(
            hidden=max(self.hidden, other.hidden), dispatch_bytes=max(self.dispatch_bytes, other.dispatch_bytes)
        )

    def workspace_bytes(self, need: ExchangeShape, *, flashinfer: str, cft: bool) -> int:
        """Bytes of one rank in that version's layout."""
        base = one_sided_workspace(need, flashinfer=flashinfer, cft=cft)
        combine = self.hidden * (need.combine_bytes_per_token // need.hidden)
        sized = replace(base, dispatch_bytes_per_token=self.dispatch_bytes, combine_bytes_per_token=combine)
        return sized.workspace_bytes


def grown(
    need: ExchangeShape, heads: Sequence[Head] = (), *, flashinfer: str = "0.7.2", cft: bool = False
) -> tuple[LiveWorkspace, ...]:
    """vLLM's one-sided workspaces: the first layers' own, then a union whenever a later layer needs more.

    The manager keeps one and grows it to the larger of each size. FlashInfer 0.7.2 keeps the outgrown ones in its cache
    until the process ends; main frees them.
    """
    steps = [("layers", Capacity.of(need))]
    for head in heads:
        union = steps[-1][1].union(Capacity.of(head.shape(need)))
        if union != steps[-1][1]:
            steps.append((f"layers and {head.format} head", union))
    kept = steps if flashinfer == "0.7.2" else steps[-1:]
    size = {"flashinfer": flashinfer, "cft": cft}
    return tuple(
        LiveWorkspace(name=name, asked_bytes=(one.workspace_bytes(need, **size),), in_use=one is steps[-1][1])
        for name, one in kept
    )


def told_apart(
    need: ExchangeShape, namespaces: Sequence[str], *, flashinfer: str = "0.7.2", cft: bool = False
) -> tuple[LiveWorkspace, ...]:
    """SGLang's one-sided workspaces, one for each kind of batch; each has room for bf16 rows, whatever the format.

    Raises:
        Refused: no such kind.
    """
    names = require_namespaces(namespaces)
    wide = Capacity.of(need).union(Capacity.of(replace(need, format="bf16")))
    size = wide.workspace_bytes(need, flashinfer=flashinfer, cft=cft)
    return tuple(LiveWorkspace(name=name, asked_bytes=(size + NAMESPACES[name],)) for name in names)


def require_namespaces(namespaces: Sequence[str]) -> tuple[str, ...]:
    """The names of SGLang's workspaces as they are spelled, each once.

    Raises:
        Refused: no such name, or none at all.
    """
    names = tuple(dict.fromkeys(choose(name, NAMESPACES, "workspace of SGLang") for name in namespaces))
    if not names:
        raise Refused(f"no workspace of SGLang is named: choose of {', '.join(NAMESPACES)}")
    return names

"""Memory of one mode's workspaces, summed over its allocations."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from mnnvl_lab.errors import Refused, choose
from mnnvl_lab.exchange import ExchangeShape
from mnnvl_lab.hardware import Gpu, domain_problems
from mnnvl_lab.workspace import MainOneSidedWorkspace, OneSidedWorkspace, Region, TwoSidedWorkspace, Window, pack
from mnnvl_lab.workspace.kernel_limits import problems

FLASHINFER = ("0.7.2", "main")
"""Versions of FlashInfer whose one-sided layout is known; `main` is what follows 0.7.2."""


class Totals:
    """Sums for whatever has `windows`, in bytes of one rank."""

    windows: tuple[Window, ...]

    @property
    def allocated_bytes(self) -> int:
        """Memory that is gone: every allocation, rounded up."""
        return sum(window.allocated_bytes for window in self.windows)

    @property
    def mapped_bytes(self) -> int:
        return sum(window.mapped_bytes for window in self.windows)

    @property
    def reserved_bytes(self) -> int:
        return sum(window.reserved_bytes for window in self.windows)


@dataclass(frozen=True, kw_only=True)
class ModePlan(Totals):
    """Bytes of one rank in one mode.

    Attributes:
        mode: `one_sided` or `two_sided`.
        parts: name and bytes of what the mode reserves, in order.
        regions: of the workspace, disjoint.
        prepare_regions: of the allocation of `prepare`, whose offsets begin at 0 again (two-sided).
        windows: where all that is allocated lies in the address space.
        channels: FIFOs from each peer (two-sided).
        problems: every reason why this mode cannot serve it, as sentences; the bytes are given all the same. Without
            a size (two-sided, no channel fits the multiprocessors) there are no regions and no bytes.
    """

    mode: str
    parts: tuple[tuple[str, int], ...]
    regions: tuple[Region, ...]
    prepare_regions: tuple[Region, ...] = ()
    windows: tuple[Window, ...]
    channels: int | None = None
    problems: tuple[str, ...] = ()

    @property
    def refusal(self) -> str | None:
        """All problems in one line, or None."""
        return "; ".join(self.problems) or None

    @property
    def prepare_bytes(self) -> int:
        """Bytes asked for apart from the workspace, for `prepare`; 0 in one-sided mode."""
        return dict(self.parts).get("prepare", 0)

    @property
    def workspace_bytes(self) -> int:
        """Bytes asked for as the workspace; in two-sided mode the FIFOs alone."""
        return self.asked_bytes - self.prepare_bytes

    @property
    def asked_bytes(self) -> int:
        return sum(size for _, size in self.parts)

    def to_dict(self) -> dict:
        """Plain values for JSON."""
        totals = ("workspace_bytes", "allocated_bytes", "mapped_bytes", "reserved_bytes")
        return {
            **{name: getattr(self, name) for name in totals},
            **{f"{name}_bytes": size for name, size in self.parts},
            "regions": _listed(self.regions),
            **({"prepare_regions": _listed(self.prepare_regions)} if self.prepare_regions else {}),
            **({"channels": self.channels} if self.channels else {}),
            "refusal": self.refusal,
            "problems": list(self.problems),
        }


def one_sided(
    need: ExchangeShape, gpu: Gpu | None = None, *, flashinfer: str = FLASHINFER[0], cft: bool = False
) -> ModePlan:
    """The one-sided workspace of `need`, such as an `Exchange`.

    Args:
        gpu: whose NVLink domain must hold each EP group; without it this is not judged.
        flashinfer: whose layout, a name of `FLASHINFER`.
        cft: with room for counted writes (`main` alone).

    Raises:
        Refused: no such version, or counted writes with 0.7.2.
    """
    workspace = one_sided_workspace(need, flashinfer=flashinfer, cft=cft)
    inbox = (("inbox", workspace.inbox_bytes),) if cft else ()
    return ModePlan(
        mode="one_sided",
        parts=(
            ("aux", workspace.aux_bytes),
            ("dispatch", workspace.dispatch_bytes),
            ("combine", workspace.combine_bytes),
            *inbox,
        ),
        regions=workspace.tiles,
        windows=pack([workspace.workspace_bytes], ep_size=need.ep_size),
        problems=(*problems(need, "one_sided"), *_domain_problems(need, gpu)),
    )


def one_sided_workspace(
    need: ExchangeShape, *, flashinfer: str = FLASHINFER[0], cft: bool = False
) -> OneSidedWorkspace | MainOneSidedWorkspace:
    """The one-sided workspace in the layout of a version of FlashInfer.

    Raises:
        Refused: no such version, or counted writes with 0.7.2.
    """
    if choose(flashinfer, FLASHINFER, "flashinfer") == "main":
        return MainOneSidedWorkspace.of(need, cft=cft)
    if cft:
        raise Refused("cft with FlashInfer 0.7.2: counted writes came after it; choose flashinfer main, or no cft")
    return OneSidedWorkspace.of(need)


def two_sided(need: ExchangeShape, gpu: Gpu) -> ModePlan:
    """The FIFOs and the workspace of `prepare`, allocated in this order; neither depends on tokens or hidden size."""
    found = (*problems(need, "two_sided"), *_domain_problems(need, gpu))
    try:
        workspace = TwoSidedWorkspace(ep_size=need.ep_size, multiprocessors=gpu.multiprocessors, sm_limit=need.sm_limit)
    except Refused as reason:
        return ModePlan(mode="two_sided", parts=(), regions=(), windows=(), problems=(*found, str(reason)))
    return ModePlan(
        mode="two_sided",
        parts=(("fifo", workspace.workspace_bytes), ("prepare", workspace.prepare_bytes)),
        regions=workspace.regions,
        prepare_regions=workspace.prepare_regions,
        windows=pack([workspace.workspace_bytes, workspace.prepare_bytes], ep_size=need.ep_size),
        channels=workspace.channels,
        problems=found,
    )


def _domain_problems(need: ExchangeShape, gpu: Gpu | None) -> Iterable[str]:
    return () if gpu is None else domain_problems(need.layout, gpu)


def _listed(regions: Iterable[Region]) -> list[dict]:
    fields = ("name", "offset_bytes", "size_bytes")
    return [{field: getattr(region, field) for field in fields} for region in regions]

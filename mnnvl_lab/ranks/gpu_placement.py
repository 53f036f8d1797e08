"""Which GPU a rank computes on, and what the ranks of a fabric need in their environment. Pure arithmetic."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import product

from mnnvl_lab.errors import Refused, choose, shown
from mnnvl_lab.layout import Layout

FABRICS = ("host", "nvlink", "shared_gpu")
MPS_CLIENTS = 48  # that one GPU serves at a time, from Volta on (NVIDIA's MPS documentation, "Limitations")


@dataclass(frozen=True, kw_only=True)
class Placement:
    """GPUs of the ranks of a layout.

    Attributes:
        gpus: index of each rank's GPU among the visible ones; empty on `host`, and where hosts decide.
        ranks_per_gpu: the most ranks that share a GPU; 0 on `host`.
    """

    gpus: tuple[int, ...] = ()
    ranks_per_gpu: int = 0

    def gpu(self, rank: int, hosts: Sequence[str] = ()) -> int | None:
        """Index of a rank's GPU among those that its host shows.

        Args:
            hosts: of all ranks; needed where hosts decide.
        """
        if self.gpus:
            return self.gpus[rank]
        return hosts[:rank].count(hosts[rank]) if self.ranks_per_gpu else None


def place(layout: Layout, *, fabric: str, visible_gpus: int) -> Placement:
    """Give every rank its GPU: in order one each on `nvlink`, in contiguous blocks on `shared_gpu`, none on `host`.

    Args:
        visible_gpus: GPUs that this process sees, `CUDA_VISIBLE_DEVICES` respected.

    Raises:
        Refused: there is no such fabric, or the GPUs do not carry the layout; names the nearest layout that fits.
    """
    if fabric == "host":
        return Placement()
    capacity = _capacity(fabric, visible_gpus)
    size = layout.world_size
    if size > capacity:
        raise Refused(_too_large(layout, fabric=fabric, visible_gpus=visible_gpus, capacity=capacity))
    ranks_per_gpu = 1 if fabric == "nvlink" else -(-size // visible_gpus)
    return Placement(gpus=tuple(rank // ranks_per_gpu for rank in range(size)), ranks_per_gpu=ranks_per_gpu)


def place_on_hosts(layout: Layout, *, fabric: str) -> Placement:
    """Give every rank the GPU of its place on its host; how many GPUs a host has, only the host can tell.

    Raises:
        Refused: the fabric needs a daemon on the hosts, which this package starts on this machine only.
    """
    if fabric == "shared_gpu":
        raise Refused(
            f"{layout.world_size} ranks on fabric shared_gpu on other hosts: MPS is started on this machine alone; use "
            "launcher local, or fabric nvlink with a GPU per rank"
        )
    return Placement(ranks_per_gpu=0 if fabric == "host" else 1)


def require_fabric(name: str) -> str:
    """The fabric of that name, in any case.

    Raises:
        Refused: there is none.
    """
    return choose(name, FABRICS, "fabric")


def nearest_layout(layout: Layout, *, capacity: int) -> Layout | None:
    """The layout of the most ranks, at most `capacity`, each of whose sizes divides that of `layout`.

    Among those of equal size the one that keeps PP, then PCP, then TP: DP is what is easiest to do with less of.
    """
    sizes = (layout.pp, layout.pcp, layout.tp, layout.dp)
    fitting = [s for s in product(*map(_divisors, sizes)) if s[0] * s[1] * s[2] * s[3] <= capacity]
    if not fitting:
        return None
    pp, pcp, tp, dp = max(fitting, key=lambda s: (s[0] * s[1] * s[2] * s[3], s))
    return replace(layout, pp=pp, pcp=pcp, tp=tp, dp=dp)


def _capacity(fabric: str, visible_gpus: int) -> int:
    if fabric == "nvlink":
        return visible_gpus
    if fabric == "shared_gpu":
        return visible_gpus * MPS_CLIENTS
    raise Refused(f"fabric is {shown(fabric)}: it must be one of {', '.join(FABRICS)}; choose one of them")


def _too_large(layout: Layout, *, fabric: str, visible_gpus: int, capacity: int) -> str:
    rule = "needs one GPU per rank" if fabric == "nvlink" else f"takes at most {MPS_CLIENTS} ranks per GPU"
    nearest = nearest_layout(layout, capacity=capacity)
    remedies = [f"the nearest layout that fits is {_sizes(nearest)}"] if nearest else []
    if fabric == "nvlink" and visible_gpus:
        remedies.append("fabric shared_gpu puts several ranks on a GPU")
    remedies.append("fabric host needs no GPU")
    return (
        f"{layout.world_size} ranks ({_sizes(layout)}) on {visible_gpus} visible GPUs: "
        f"fabric {fabric} {rule}; {'; '.join(remedies)}"
    )


def _sizes(layout: Layout) -> str:
    return f"TP {layout.tp} x DP {layout.dp} x PCP {layout.pcp} x PP {layout.pp}"


def _divisors(number: int) -> list[int]:
    return [d for d in range(1, number + 1) if number % d == 0]

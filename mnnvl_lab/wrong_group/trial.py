"""One layout, each mode and layer twice: over the group in question, and over the EP group."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import TYPE_CHECKING

import pandas as pd

from mnnvl_lab import records
from mnnvl_lab.errors import LabError, Refused, WorkspaceMismatch
from mnnvl_lab.layout import Layout
from mnnvl_lab.measure import Point, Sampling, measure
from mnnvl_lab.routing import Load, Uniform
from mnnvl_lab.transport.checks import check_exchange
from mnnvl_lab.transport.exchange import Exchange
from mnnvl_lab.transport.upstream import LAYERS, attempt
from mnnvl_lab.wrong_group.attempts import Attempt, to_frame
from mnnvl_lab.wrong_group.hits import axes_of

if TYPE_CHECKING:
    from mnnvl_lab.ranks import Ranks
    from mnnvl_lab.ranks.rank import Rank

OWN_LAYER = "kernels"
MODES = ("one_sided", "two_sided")
PARTS_OF_EP = ("dp", "tp", "pcp")
LAYER_TIMEOUT_S = 400  # modules may have to be compiled


def side_by_side(
    ranks: Ranks,
    layout: Layout,
    *,
    group: str = "dp",
    modes: Sequence[str] = MODES,
    layers: Sequence[str] = (),
    tokens: int = 128,
    hidden: int = 1024,
    experts: int = 64,
    top_k: int = 4,
    clock: str = "eager",
) -> pd.DataFrame:
    """Run a layout with the workspace over `group`, then over the EP group, in each mode and layer.

    An attempt that fails is a row with its words, and does not keep the others from being made.

    Args:
        ranks: warm ranks; they take `layout`.
        group: `dp`, `tp` or `pcp`.
        layers: of `transport.upstream.LAYERS`, FlashInfer's own classes (on GPUs).
        tokens, hidden, experts, top_k: of the round that is checked and timed, for the modes.
        clock: that times it.

    Returns:
        One row an attempt: the fields of `Attempt`, and `p50_us` over `latencies_us`; provenance in `attrs`.

    Raises:
        Refused: no such group, mode or layer; the fabric cannot carry the layout; the round breaks a limit.
    """
    _require(ranks, group, layers)
    shape = {"max_tokens": tokens, "hidden": hidden, "experts": experts, "top_k": top_k}
    points = [
        _point(Exchange(mode=mode, layout=layout, workspace_group=name, **shape), clock)
        for mode in modes
        for name in (group, "ep")
    ]
    ranks.use(layout)
    attempts = [_try_point(ranks, point) for point in points]
    attempts += [_try_layer(ranks, layout, layer, name) for layer in layers for name in (group, "ep")]
    return to_frame(attempts, records.provenance(fabric=ranks.fabric, clocks=(clock,), seed=0))


def _require(ranks: Ranks, group: str, layers: Sequence[str]) -> None:
    if group not in PARTS_OF_EP:
        raise Refused(
            f"group is {group!r}: it must be one of {', '.join(PARTS_OF_EP)}, which are parts of the EP group; "
            "ranks of another stage would get rows that are not for them, and no kernel would notice"
        )
    for layer in layers:
        if layer not in LAYERS:
            raise Refused(f"layer is {layer!r}: it must be one of {', '.join(LAYERS)}")
    if layers and ranks.fabric == "host":
        raise Refused("FlashInfer's classes need a GPU: leave layers out on fabric host, or use nvlink or shared_gpu")


def _point(exchange: Exchange, clock: str) -> Point:
    check_exchange(exchange)
    load = Load(routing=Uniform(), tokens=exchange.max_tokens)
    return Point(exchange=exchange, load=load, clock=clock, sampling=Sampling(max_samples=60))


def _try_point(ranks: Ranks, point: Point) -> Attempt:
    exchange = point.exchange
    begun = _begun(ranks, exchange.layout, OWN_LAYER, exchange.mode, exchange.workspace_group)
    try:
        samples = measure(point, ranks)
        size = ranks.run(open_bytes, exchange)[0]
    except WorkspaceMismatch as error:
        return Attempt(**begun, outcome="mismatch", phase=error.phase, words=error.kernel_words)
    except LabError as error:
        return Attempt(**begun, outcome="error", **_failure(error))
    slowest = records.slowest_rank(samples[samples["phase"] == "round"])["latency_us"]
    checked = "exact" if (samples["checked"] == "exact").all() else "bounded"
    return Attempt(**begun, outcome="right", checked=checked, workspace_bytes=size, latencies_us=tuple(slowest))


def _try_layer(ranks: Ranks, layout: Layout, layer: str, group: str) -> Attempt:
    mode = "two_sided" if layer == "MnnvlMoe" or "TwoSided" in layer else "one_sided"
    begun = _begun(ranks, layout, layer, mode, group)
    try:
        outcomes = ranks.run(attempt, layer=layer, group=group, timeout_s=LAYER_TIMEOUT_S)
    except LabError as error:
        return Attempt(**begun, outcome="error", **_failure(error))
    failed = next((outcome for outcome in outcomes if outcome.phase), None)
    if failed:
        kind = "mismatch" if _names_both(failed.words, begun["spans"], begun["ep_size"]) else "error"
        return Attempt(**begun, outcome=kind, phase=failed.phase, words=failed.words)
    if not all(outcome.right for outcome in outcomes):
        return Attempt(**begun, outcome="error", phase="combine", words="wrong sums")
    return Attempt(**begun, outcome="right", checked="exact")


def open_bytes(rank: Rank, exchange: Exchange) -> int:
    """Rank function: bytes of this rank's part of the workspace, from the transport that holds it. Collective."""
    from mnnvl_lab.transport import open_transport

    with open_transport(rank, exchange) as transport:
        return transport.workspace.workspace_bytes


def _begun(ranks: Ranks, layout: Layout, layer: str, mode: str, group: str) -> dict[str, object]:
    place = {"ep_size": layout.ep_size, "fabric": ranks.fabric, "layer": layer, "mode": mode, "group": group}
    return axes_of(layout) | place | {"spans": len(layout.group_of(group, 0))}


def _failure(error: LabError) -> dict[str, str]:
    return {"phase": getattr(error, "phase", ""), "words": str(error).splitlines()[0]}


def _names_both(words: str, spans: int, ep_size: int) -> bool:
    """Whether a refusal names the two sizes: the layers have no error class of their own for it."""
    return spans != ep_size and {str(spans), str(ep_size)} <= set(re.findall(r"\d+", words))

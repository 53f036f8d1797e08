"""What came of each attempt: a row of a table, and a file that carries its provenance."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING

import pandas as pd

from mnnvl_lab import records
from mnnvl_lab.errors import LabError, RecordError, Refused, WorkspaceMismatch
from mnnvl_lab.exchange import Exchange
from mnnvl_lab.layout import Layout
from mnnvl_lab.measure import Point, Sampling, measure
from mnnvl_lab.records.files import replacing
from mnnvl_lab.records.table import ATTRIBUTE, require_provenance
from mnnvl_lab.routing import Load, Uniform
from mnnvl_lab.transport.flashinfer.upstream import ON_HOST, VLLM_LAYERS, attempt, require_layer
from mnnvl_lab.transport.flashinfer.vllm_files import require_vllm
from mnnvl_lab.transport.validation import check_exchange
from mnnvl_lab.wrong_group.memory import axes_of

if TYPE_CHECKING:
    from mnnvl_lab.ranks import Ranks
    from mnnvl_lab.ranks.rank import Rank

KIND = "mnnvl_lab.wrong_group"
FOLDER = Path(__file__).resolve().parents[2] / "data"


@dataclass(frozen=True, kw_only=True)
class Attempt:
    """What came of one workspace over one group.

    Attributes:
        tp, dp, pcp, pp, ep_size: the layout.
        fabric: what carried the bytes.
        layer: `kernels`, called directly by this package's transports (on `host` their protocol between processes), one
            of FlashInfer's classes, or one of vLLM's managers.
        mode: one_sided or two_sided.
        group: name of the group whose communicator allocated the workspace.
        spans: ranks of that group.
        outcome: `right`, a round equal to the oracle's; `mismatch`, refused because `spans` is not `ep_size`; `error`,
            failed in another way.
        phase: where it failed; empty if it did not.
        words: what was said then, word for word.
        checked: how strictly the round was compared, `exact` or `bounded`; empty where no round was.
        workspace_bytes: of one rank; None where no workspace stood.
        latencies_us: of each round, its slowest rank; empty where none was timed.
    """

    tp: int
    dp: int
    pcp: int
    pp: int
    ep_size: int
    fabric: str
    layer: str
    mode: str
    group: str
    spans: int
    outcome: str
    phase: str = ""
    words: str = ""
    checked: str = ""
    workspace_bytes: int | None = None
    latencies_us: tuple[float, ...] = ()


COLUMNS = tuple(field.name for field in fields(Attempt))


def to_frame(attempts: Iterable[Attempt], provenance: Mapping[str, object]) -> pd.DataFrame:
    """Attempts as a table with the statistics that are derived of them."""
    table = pd.DataFrame([asdict(attempt) for attempt in attempts], columns=list(COLUMNS))
    table["workspace_bytes"] = table["workspace_bytes"].astype("Int64")
    table["p50_us"] = [pd.Series(latencies, dtype=float).median() for latencies in table["latencies_us"]]
    table.attrs = {ATTRIBUTE: require_provenance(provenance)}
    return table


def join(tables: Sequence[pd.DataFrame]) -> pd.DataFrame:
    """Tables of one run, one behind the other, with the provenance of the first."""
    joined = pd.concat(tables, ignore_index=True)
    joined.attrs = dict(tables[0].attrs)
    return joined


def save(table: pd.DataFrame, path: str | os.PathLike) -> Path:
    """Write a table of `side_by_side` as JSON with its provenance, whole or not at all."""
    rows = table[list(COLUMNS)].astype(object).where(table[list(COLUMNS)].notna(), None).to_dict("records")
    document = {"kind": KIND, "provenance": records.provenance_of(table), "attempts": rows}
    with replacing(path, text=True) as file:
        json.dump(document, file, indent=1, allow_nan=False)
    return Path(path)


def load(path: str | os.PathLike) -> pd.DataFrame:
    """Read what `save` wrote.

    Raises:
        RecordError: no such file, no such record, or one of a newer schema.
    """
    try:
        document = json.loads(Path(path).read_text())
        if document["kind"] != KIND:
            raise ValueError(f"it is a {document['kind']!r}")
        attempts = [Attempt(**row | {"latencies_us": tuple(row["latencies_us"])}) for row in document["attempts"]]
        return to_frame(attempts, document["provenance"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise RecordError(f"{path} is no wrong_group record ({error}); record it with tools.record") from error


def recorded(folder: Path = FOLDER) -> pd.DataFrame:
    """All attempts in `data/wrong_group_*.json` of the checkout, each with its `device` and `clock`; empty without."""
    tables = [_named(load(path)) for path in sorted(folder.glob("wrong_group_*.json"))]
    return join(tables) if tables else pd.DataFrame(columns=[*COLUMNS, "p50_us", "device", "clock"])


def _named(table: pd.DataFrame) -> pd.DataFrame:
    origin = records.provenance_of(table)
    return table.assign(device=origin["device"], clock=", ".join(origin["clocks"]))


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
        layers: of `transport.flashinfer.upstream.ALL_LAYERS`: FlashInfer's own classes and vLLM's managers, on GPUs; on
            `host` vLLM's one-sided manager is opened as far as FlashInfer's first checks.
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
        require_layer(layer)
    if any(layer in VLLM_LAYERS for layer in layers):
        require_vllm()
    if ranks.fabric == "host" and (gpu_layers := [layer for layer in layers if layer not in ON_HOST]):
        raise Refused(
            f"{gpu_layers[0]} on fabric host: FlashInfer's classes need a GPU; leave it out, or take ranks of fabric "
            "nvlink or shared_gpu"
        )


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
        return Attempt(**begun, outcome="mismatch", phase=error.phase, words=error.kernel_message)
    except LabError as error:
        return Attempt(**begun, outcome="error", **_failure(error))
    slowest = records.slowest_rank(samples[samples["phase"] == "round"])["latency_us"]
    checked = "exact" if (samples["checked"] == "exact").all() else "bounded"
    return Attempt(**begun, outcome="right", checked=checked, workspace_bytes=size, latencies_us=tuple(slowest))


def _try_layer(ranks: Ranks, layout: Layout, layer: str, group: str) -> Attempt:
    mode = "two_sided" if layer == "MnnvlMoe" or "TwoSided" in layer else "one_sided"
    begun = _begun(ranks, layout, layer, mode, group)
    try:
        root = str(require_vllm()) if layer in VLLM_LAYERS else ""
        outcomes = ranks.run(attempt, layer=layer, group=group, vllm_root=root, timeout_s=LAYER_TIMEOUT_S)
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

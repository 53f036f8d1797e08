"""Small rounds of the real kernels as recorded bytes, and the same rounds on any other fabric to compare.

A case fixes everything from a seed. Running it returns, for every rank and round, the auxiliary part of the workspace
after each phase (counters, flags, target ranks, slots), the rows received and the rows combined. What the kernels leave
to chance is only which slot a row takes among those of its source rank: `normalised` sorts that away.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from zipfile import BadZipFile

import numpy as np

from mnnvl_lab.errors import RecordError
from mnnvl_lab.exchange import Exchange
from mnnvl_lab.layout import Layout
from mnnvl_lab.measure.point import Point
from mnnvl_lab.routing import Load, Uniform
from mnnvl_lab.workspace import OneSidedWorkspace

ROUNDS = 2
HIDDEN = 64
Arrays = dict[str, np.ndarray]


@dataclass(frozen=True, kw_only=True)
class Case:
    """One recorded configuration.

    Attributes:
        mode: `one_sided` or `two_sided`.
        tokens: one count per rank; its length is R.
        experts, top_k: E and K.
        seed: of the first round; each further round adds one.
    """

    mode: str
    tokens: tuple[int, ...]
    experts: int
    top_k: int
    seed: int = 0

    @property
    def name(self) -> str:
        tokens = "-".join(map(str, self.tokens))
        return f"{self.mode}_tokens{tokens}_experts{self.experts}_top{self.top_k}"

    @property
    def layout(self) -> Layout:
        return Layout(dp=len(self.tokens))

    @property
    def exchange(self) -> Exchange:
        return Exchange(
            mode=self.mode,
            layout=self.layout,
            max_tokens=max(self.tokens) + 1,
            hidden=HIDDEN,
            experts=self.experts,
            top_k=self.top_k,
        )

    def point(self, round_index: int) -> Point:
        """The round as a point; routing and payloads change from round to round."""
        load = Load(routing=Uniform(), tokens=self.tokens, seed=self.seed + round_index)
        return Point(exchange=self.exchange, load=load)


def cases(ep_sizes: tuple[int, ...] = (2, 4, 8)) -> Iterator[Case]:
    """Both modes; top_k 1 to 8; ragged and absent tokens; experts that do not divide (one-sided alone takes those)."""
    for ep_size in ep_sizes:
        full, ragged = (5,) * ep_size, tuple((3 * rank) % 7 for rank in range(ep_size))
        for mode in ("one_sided", "two_sided"):
            for top_k in (1, 2, 4, 6, 8):
                yield Case(mode=mode, tokens=full, experts=4 * ep_size, top_k=min(top_k, 4 * ep_size))
            yield Case(mode=mode, tokens=ragged, experts=8 * ep_size, top_k=4)
            yield Case(mode=mode, tokens=(0,) * (ep_size - 1) + (6,), experts=4 * ep_size, top_k=2)
        yield Case(mode="one_sided", tokens=ragged, experts=3 * ep_size + ep_size // 2, top_k=4)


def replay(rank, case: Case) -> Arrays:
    """Rank function: run the case's rounds, checked against the oracle, and return what they left. Collective."""
    from mnnvl_lab.transport import open_transport

    arrays: Arrays = {}
    with open_transport(rank, case.exchange) as transport:
        for index in range(ROUNDS):
            arrays |= {f"round{index}/{name}": array for name, array in _round(rank, transport, case, index).items()}
    return arrays


def _round(rank, transport, case: Case, index: int) -> Arrays:
    from mnnvl_lab.measure.check import check_combined, check_received
    from mnnvl_lab.measure.workload import Work, fake_experts

    work = Work.of(rank, case.point(index))
    received = transport.dispatch(work.batch())
    tokens_of = check_received(work, received)
    arrays = _received(received)
    arrays |= _aux(transport, case, "dispatch")
    combined = transport.combine(fake_experts(transport, work, received, tokens_of), received.handle)
    check_combined(work, combined)
    arrays["combined"] = _bits(combined)
    return arrays | _aux(transport, case, "combine")


def _received(received) -> Arrays:
    """The blocks of all sources, one after the other, without the gaps between them."""
    blocks = [received.block(source) for source in range(len(received.counts_R))]
    columns = {"rows": received.payloads[0], "experts": received.experts, "weights": received.weights}
    arrays = {name: np.concatenate([_bits(column[b]) for b in blocks]) for name, column in columns.items()}
    return arrays | {"counts": np.asarray(received.counts_R, np.int32)}


def _aux(transport, case: Case, phase: str) -> Arrays:
    if case.mode == "two_sided":
        return {}
    aux_bytes = OneSidedWorkspace.of(case.exchange).aux_bytes
    return {f"aux_after_{phase}": transport.workspace_row()[:aux_bytes]}


def _bits(tensor) -> np.ndarray:
    """Contents as unsigned integers of the element's size, so that equality means equal bits."""
    import torch

    view = {2: torch.int16, 4: torch.int32}[tensor.element_size()]
    return tensor.detach().contiguous().view(view).cpu().numpy().view(f"u{tensor.element_size()}")


def regions(case: Case, aux: np.ndarray) -> Mapping[str, np.ndarray]:
    """The auxiliary bytes cut into FlashInfer's regions, as int32."""
    plan = OneSidedWorkspace.of(case.exchange)
    cut = {}
    for region in plan.regions:
        end = region.offset_bytes + region.size_bytes
        if region.size_bytes and end <= plan.aux_bytes:
            cut[region.name] = aux[region.offset_bytes : end].view(np.int32)
    return cut


def normalised(case: Case, arrays: Arrays) -> Arrays:
    """Sort away the order of rows within a source, which the kernels leave to chance.

    Rows (with their ids and weights) are sorted within each source's block by their bits; of the slots in
    `topk_send_indices` the sorted list of each target is kept.
    """
    result: Arrays = {}
    for index in range(ROUNDS):
        here = {name.split("/", 1)[1]: a for name, a in arrays.items() if name.startswith(f"round{index}/")}
        result |= {f"round{index}/{name}": array for name, array in _normalised_round(case, here).items()}
    return result


def _normalised_round(case: Case, arrays: Arrays) -> Arrays:
    order = _order(arrays["counts"], arrays["rows"])
    result = {name: arrays[name][order] for name in ("rows", "experts", "weights")}
    result |= {name: arrays[name] for name in ("counts", "combined")}
    for phase in ("dispatch", "combine"):
        if (aux := arrays.get(f"aux_after_{phase}")) is not None:
            result |= {f"{phase}/{name}": region for name, region in _sorted_slots(regions(case, aux)).items()}
    return result


def _order(counts: np.ndarray, rows: np.ndarray) -> np.ndarray:
    source = np.repeat(np.arange(len(counts)), counts)
    return np.lexsort((*rows.T[::-1], source))


def _sorted_slots(cut: Mapping[str, np.ndarray]) -> Arrays:
    """Pairs of target and slot, sorted: which slots each target handed out."""
    targets, slots = cut["topk_target_ranks"], cut["topk_send_indices"]
    order = np.lexsort((slots, targets))
    return dict(cut) | {"topk_send_indices": np.stack([targets[order], slots[order]])}


def save(directory: Path, case: Case, per_rank: list[Arrays], provenance: Mapping[str, object]) -> Path:
    """Write a case as compressed arrays (no pickle), with the case and its provenance as JSON inside."""
    path = directory / f"{case.name}.npz"
    flat = {f"rank{rank}/{name}": array for rank, arrays in enumerate(per_rank) for name, array in arrays.items()}
    header = json.dumps({"case": asdict(case), "provenance": dict(provenance)}, default=str)
    np.savez_compressed(path, header=np.frombuffer(header.encode(), np.uint8), **flat)
    return path


def load(path: Path) -> tuple[Case, list[Arrays], dict]:
    """Read a recorded case.

    Raises:
        RecordError: the file is not one of these, or holds objects.
    """
    try:
        with np.load(path, allow_pickle=False) as stored:
            arrays = {name: stored[name] for name in stored.files}
        header = json.loads(arrays.pop("header").tobytes())
    except (OSError, EOFError, ValueError, KeyError, BadZipFile) as error:
        raise RecordError(f"{path} is no conformance record ({error}): record it anew with tools.record") from error
    fields = header["case"] | {"tokens": tuple(header["case"]["tokens"])}
    case = Case(**fields)
    per_rank: list[Arrays] = [{} for _ in case.tokens]
    for name, array in arrays.items():
        rank, rest = name.split("/", 1)
        per_rank[int(rank.removeprefix("rank"))][rest] = array
    return case, per_rank, header["provenance"]

"""vLLM's flags (0.33.0): sizes multiply, EP is derived from them, and DP > 1 or PCP > 1 decides on an all-to-all.

Read in `vllm/config/parallel.py`, `distributed/device_communicators/all2all.py` and
`model_executor/layers/fused_moe/all2all_utils.py`.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from types import MappingProxyType

from mnnvl_lab.engines.flags import SWITCH, TEXT, CommandLine, Flag, read
from mnnvl_lab.engines.setup import EngineSetup
from mnnvl_lab.errors import Refused, choose, require_count
from mnnvl_lab.layout import Layout

ENGINE, VERSION = "vLLM", "0.33.0"
DEFAULT_BATCH = 8192  # max_num_batched_tokens of a server on GPUs of 70 GiB or more
DEFAULT_BACKEND = "allgather_reducescatter"
BACKENDS: Mapping[str, str | None] = MappingProxyType(
    {
        "allgather_reducescatter": "allgather_reducescatter",
        "flashinfer_nvlink_one_sided": "one_sided",
        "flashinfer_nvlink_two_sided": "two_sided",
        "flashinfer_all2allv": "two_sided",
        "deepep_high_throughput": None,
        "deepep_low_latency": None,
        "deepep_v2": None,
        "mori_high_throughput": None,
        "mori_low_latency": None,
        "nixl_ep": None,
        "moonep": None,
    }
)
SEQUENCE_PARALLEL = (
    "allgather_reducescatter",
    "deepep_high_throughput",
    "deepep_low_latency",
    "deepep_v2",
    "flashinfer_nvlink_one_sided",
    "mori_high_throughput",
    "mori_low_latency",
    "nixl_ep",
)
"""Backends under which TP ranks share their tokens, if EP is on and TP and DP are above 1."""
FLAGS = (
    Flag(name="tp", spellings=("--tensor-parallel-size", "-tp")),
    Flag(name="dp", spellings=("--data-parallel-size", "-dp")),
    Flag(name="dp_local", spellings=("--data-parallel-size-local", "-dpl")),
    Flag(name="pp", spellings=("--pipeline-parallel-size", "-pp")),
    Flag(name="pcp", spellings=("--prefill-context-parallel-size", "-pcp")),
    Flag(name="dcp", spellings=("--decode-context-parallel-size", "-dcp")),
    Flag(name="nodes", spellings=("--nnodes", "-n")),
    Flag(name="ep", spellings=("--enable-expert-parallel", "-ep"), kind=SWITCH),
    Flag(name="no_ep", spellings=("--no-enable-expert-parallel",), kind=SWITCH),
    Flag(name="backend", spellings=("--all2all-backend",), kind=TEXT),
    Flag(name="batch", spellings=("--max-num-batched-tokens",)),
    Flag(name="eplb", spellings=("--enable-eplb",), kind=SWITCH),
    Flag(name="eplb_config", spellings=("--eplb-config",), kind=TEXT),
    Flag(name="redundant", spellings=("--eplb-config.num-redundant-experts", "--num-redundant-experts"), least=0),
    Flag(name="model", spellings=("--model",), kind=TEXT),
)
OTHERS = (
    "--data-parallel-rank",
    "--data-parallel-start-rank",
    "--data-parallel-address",
    "--data-parallel-rpc-port",
    "--data-parallel-backend",
    "--data-parallel-hybrid-lb",
    "--data-parallel-external-lb",
    "--enable-ep-weight-filter",
    "--max-num-partial-prefills",
    "--model-impl",
)


def read_vllm(text: str | Sequence[str]) -> EngineSetup:
    """Flags of `vllm serve`.

    Raises:
        Refused: names the flag, the rule and the remedy.
    """
    line = read(text, engine=ENGINE, flags=FLAGS, others=OTHERS)
    layout = _layout(line)
    backend = choose(_backend(line), BACKENDS, "--all2all-backend")
    is_ep = line.on("ep") and not line.on("no_ep")
    opens, why = _opens(layout, is_ep)
    shares = is_ep and backend in SEQUENCE_PARALLEL and layout.tp > 1 and layout.dp > 1
    batch = line.count("batch", DEFAULT_BATCH)
    return EngineSetup(
        engine=ENGINE,
        version=VERSION,
        layout=layout,
        expert_parallel=is_ep and layout.ep_size > 1,
        backend=backend if opens else "none",
        mode=BACKENDS[backend] if opens else None,
        opens_all_to_all=opens,
        why=why,
        capacity=batch,
        tokens_per_rank=-(-batch // layout.tp) if shares else batch,
        sequence_parallel=shares,
        model=line.text("model") or _named(line.words),
        notes=tuple(_notes(line, layout, backend, opens=opens, shares=shares)),
        unread=line.unread,
    )


def _layout(line: CommandLine) -> Layout:
    sizes = {name: line.count(name, 1) for name in ("tp", "dp", "pcp", "pp")}
    if (dcp := line.count("dcp", 1)) > 1 and sizes["pcp"] == 1 and sizes["tp"] % dcp:
        raise Refused(
            f"--decode-context-parallel-size is {dcp}: it reuses TP ranks, so that it must divide "
            f"--tensor-parallel-size {sizes['tp']}; choose a divisor"
        )
    per_replica = sizes["tp"] * sizes["pcp"] * sizes["pp"]
    if local := line.values.get("dp_local"):
        if local > sizes["dp"]:
            raise Refused(
                f"--data-parallel-size-local is {local}: it must be at most --data-parallel-size {sizes['dp']}; lower"
            )
        return Layout(**sizes, gpus_per_node=int(local) * per_replica)
    nodes = line.count("nodes", 1)
    world = per_replica * sizes["dp"]
    if world % nodes:
        raise Refused(f"--nnodes is {nodes}: it must divide the {world} ranks; choose a divisor")
    return Layout(**sizes, gpus_per_node=world // nodes if "nodes" in line.values else 8)


def _backend(line: CommandLine) -> str:
    return line.text("backend") or line.environment.get("VLLM_ALL2ALL_BACKEND", DEFAULT_BACKEND)


def _opens(layout: Layout, is_ep: bool) -> tuple[bool, str]:
    """vLLM's `use_all2all_kernels`: EP, and DP above 1 or PCP above 1."""
    if not is_ep and layout.dp > 1:
        return False, "DP without --enable-expert-parallel: experts are split like TP, over all-gather / reduce-scatter"
    if not is_ep:
        return False, "no --enable-expert-parallel: experts are split like TP, and an all-reduce adds up"
    if layout.dp == layout.pcp == 1:
        return False, "DP 1 and PCP 1: TP ranks hold the same tokens, and an all-reduce adds up"
    return True, f"--enable-expert-parallel with DP {layout.dp} and PCP {layout.pcp}"


def _notes(line: CommandLine, layout: Layout, backend: str, *, opens: bool, shares: bool):
    if backend == "flashinfer_all2allv":
        yield "flashinfer_all2allv is deprecated: it is named flashinfer_nvlink_two_sided now"
    if opens and backend == "flashinfer_nvlink_two_sided" and layout.pcp > 1 and layout.dp == 1:
        yield "two-sided asserts dp_metadata is not None: with PCP > 1 and DP 1 it fails there"
    if opens and layout.tp > 1 and not shares:
        yield f"every TP rank sends its DP rank's whole batch: {layout.tp} times the rows (no SP-MoE with this backend)"
    if shares:
        yield "SP-MoE: a TP rank sends its share, but the workspace is sized for the whole batch"
    if line.count("dcp", 1) > 1:
        yield "decode context parallelism reuses TP ranks and changes nothing here"
    if (redundant := _redundant(line)) or line.on("eplb"):
        yield f"EPLB with {redundant} redundant experts: plan with that many more experts"


def _redundant(line: CommandLine) -> int:
    if "redundant" in line.values or "eplb_config" not in line.values:
        return line.count("redundant", 0)
    try:
        count = json.loads(line.text("eplb_config")).get("num_redundant_experts", 0)
    except (ValueError, AttributeError) as reason:
        raise Refused(
            f"--eplb-config is {line.text('eplb_config')!r}: it must be a JSON object; correct it"
        ) from reason
    return require_count("num_redundant_experts", count, least=0)


def _named(words: Sequence[str]) -> str:
    """The model of `vllm serve MODEL`."""
    rest = [word for word in words if word not in ("vllm", "serve", "python", "python3")]
    return rest[0] if rest else ""

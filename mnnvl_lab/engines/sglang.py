"""SGLang's flags (0.5.23): TP counts all GPUs of a pipeline stage, and DP attention divides them.

Read in `python/sglang/srt/server_args.py` and `layers/moe/token_dispatcher/flashinfer.py`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from types import MappingProxyType

from mnnvl_lab.arguments import whole_in
from mnnvl_lab.engines.flags import SWITCH, TEXT, CommandLine, Flag, read
from mnnvl_lab.engines.setup import EngineSetup
from mnnvl_lab.errors import Refused, choose, require_count
from mnnvl_lab.layout import Layout

ENGINE, VERSION = "SGLang", "0.5.23"
DEFAULT_CHUNK = 8192  # chunked_prefill_size on GPUs of 60 GiB to 90 GiB; it depends on the GPU's memory
LEAST_CAPACITY = 4096
CAPACITY = "SGLANG_FLASHINFER_NUM_MAX_DISPATCH_TOKENS_PER_RANK"
BACKENDS: Mapping[str, str | None] = MappingProxyType(
    {
        "none": None,
        "flashinfer": "one_sided",
        "deepep": None,
        "deepep_v2": None,
        "mooncake": None,
        "nixl": None,
        "mori": None,
        "megamoe": None,
        "ascend_fuseep": None,
    }
)
FLAGS = (
    Flag(name="tp", spellings=("--tp-size", "--tensor-parallel-size", "--tp")),
    Flag(name="dp", spellings=("--dp-size", "--data-parallel-size", "--dp")),
    Flag(name="ep", spellings=("--ep-size", "--expert-parallel-size", "--ep")),
    Flag(name="pp", spellings=("--pp-size", "--pipeline-parallel-size", "--pp")),
    Flag(name="nodes", spellings=("--nnodes",)),
    Flag(name="dp_attention", spellings=("--enable-dp-attention",), kind=SWITCH),
    Flag(name="backend", spellings=("--moe-a2a-backend",), kind=TEXT),
    Flag(name="chunk", spellings=("--chunked-prefill-size",), least=-1),
    Flag(name="model", spellings=("--model-path", "--model"), kind=TEXT),
)
OTHERS = (
    "--moe-dense-tp-size",
    "--attn-cp-size",
    "--model-impl",
    "--moe-runner-backend",
    "--model-loader-extra-config",
)


def read_sglang(text: str | Sequence[str]) -> EngineSetup:
    """Flags of `sglang serve` or `python -m sglang.launch_server`.

    Raises:
        Refused: names the flag, the rule and the remedy.
    """
    line = read(text, engine=ENGINE, flags=FLAGS, others=OTHERS)
    backend = choose(line.text("backend", "none"), BACKENDS, "--moe-a2a-backend")
    layout = _layout(line, backend)
    opens, why = _opens(layout, backend)
    capacity = _capacity(line, layout)
    return EngineSetup(
        engine=ENGINE,
        version=VERSION,
        layout=layout,
        expert_parallel=backend != "none" or line.count("ep", 1) > 1,
        backend=backend,
        mode=BACKENDS[backend] if opens else None,
        opens_all_to_all=opens,
        why=why,
        capacity=capacity,
        tokens_per_rank=-(-capacity // layout.tp),
        sequence_parallel=layout.tp > 1,
        model=line.text("model"),
        notes=tuple(_notes(line, layout, backend)),
        unread=line.unread,
    )


def _layout(line: CommandLine, backend: str) -> Layout:
    gpus, dp, pp = (line.count(name, 1) for name in ("tp", "dp", "pp"))
    if gpus % dp:
        raise Refused(
            f"--dp-size is {dp}: in SGLang DP attention divides --tp-size, which is {gpus} and counts all GPUs; choose "
            f"a divisor of {gpus}"
        )
    ep = line.count("ep", 1)
    if ep not in (1, gpus):
        raise Refused(
            f"--ep-size is {ep}: this package knows experts dealt out to all {gpus} GPUs of a stage, or to none; use "
            f"--ep-size {gpus}, or leave it out (--moe-a2a-backend sets it)"
        )
    if backend == "flashinfer" and dp != gpus:
        raise Refused(
            f"--dp-size is {dp} with --tp-size {gpus}: SGLang says 'Flashinfer MoE A2A is only supported with dp_size "
            f"== tp_size and --enable-dp-attention'; use --dp-size {gpus}"
        )
    world, nodes = gpus * pp, line.count("nodes", 1)
    if world % nodes:
        raise Refused(f"--nnodes is {nodes}: it must divide the {world} GPUs; choose a divisor")
    per_node = world // nodes if "nodes" in line.values else 8
    return Layout(tp=gpus // dp, dp=dp, pp=pp, gpus_per_node=per_node)


def _opens(layout: Layout, backend: str) -> tuple[bool, str]:
    if backend == "none":
        return False, "--moe-a2a-backend none: every rank computes its experts for all tokens, collectives add up"
    if layout.ep_size == 1:
        return False, "one GPU: nothing to exchange"
    return True, f"--moe-a2a-backend {backend}; prefill may still use all-gather / reduce-scatter"


def _capacity(line: CommandLine, layout: Layout) -> int:
    """Of FlashInfer's workspace: the environment's, or the larger of a rank's prefill chunk and 4,096."""
    if CAPACITY in line.environment:
        return require_count(CAPACITY, whole_in(line.environment[CAPACITY]))
    chunk = line.count("chunk", DEFAULT_CHUNK)
    return max(chunk // layout.dp if layout.dp > 1 else chunk, LEAST_CAPACITY)


def _notes(line: CommandLine, layout: Layout, backend: str):
    if layout.dp > 1 and not line.on("dp_attention"):
        yield (
            f"--dp-size divides the GPUs with --enable-dp-attention alone: without it SGLang starts {layout.dp} "
            f"independent replicas of {line.count('tp', 1)} GPUs each; add the flag"
        )
    if backend == "flashinfer":
        yield "FP8 models dispatch and combine in bf16 here; nvfp4 and mxfp8 travel quantised"

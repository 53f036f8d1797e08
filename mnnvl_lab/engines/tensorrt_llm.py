"""TensorRT-LLM's flags (main, November 2026): TP counts all GPUs, attention DP makes each of them a DP rank.

Read in `tensorrt_llm/_torch/modules/fused_moe/communication/`: `CommunicationFactory.create_strategy`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from types import MappingProxyType

from mnnvl_lab.engines.flags import SWITCH, TEXT, CommandLine, Flag, read
from mnnvl_lab.engines.setup import EngineSetup
from mnnvl_lab.errors import Refused, choose
from mnnvl_lab.layout import Layout

ENGINE, VERSION = "TensorRT-LLM", "main, November 2026"
DEFAULT_TOKENS = 8192  # max_num_tokens
FORCED = "TRTLLM_FORCE_COMM_METHOD"
METHODS: Mapping[str, str | None] = MappingProxyType(
    {
        "NVLINK_ONE_SIDED": "one_sided",
        "NVLINK_TWO_SIDED": "two_sided",
        "ALLGATHER": "allgather_reducescatter",
        "NCCLEP": None,
        "DEEPEP": None,
        "DEEPEPLOWLATENCY": None,
    }
)
FLAGS = (
    Flag(name="tp", spellings=("--tp-size", "--tensor-parallel-size", "--tp")),
    Flag(name="pp", spellings=("--pp-size", "--pipeline-parallel-size", "--pp")),
    Flag(name="ep", spellings=("--ep-size", "--moe-expert-parallel-size", "--ep")),
    Flag(name="moe_tp", spellings=("--moe-tensor-parallel-size",)),
    Flag(name="cp", spellings=("--cp-size", "--context-parallel-size")),
    Flag(name="attention_dp", spellings=("--enable-attention-dp",), kind=SWITCH),
    Flag(name="tokens", spellings=("--max-num-tokens",)),
    Flag(name="gpus_per_node", spellings=("--gpus-per-node",)),
    Flag(name="model", spellings=("--model",), kind=TEXT),
)
OTHERS = ("--max-seq-len", "--max-batch-size", "--max-beam-width", "--moe-cluster-parallel-size")


def read_tensorrt_llm(text: str | Sequence[str]) -> EngineSetup:
    """Flags of `trtllm-serve`; `--enable_attention_dp` stands for the key of the same name in its YAML options.

    Raises:
        Refused: names the flag, the rule and the remedy.
    """
    line = read(text, engine=ENGINE, flags=FLAGS, others=OTHERS)
    gpus, ep = line.count("tp", 1), _expert_parallel_size(line)
    layout = _layout(line, gpus)
    method = choose(line.environment.get(FORCED, "NVLINK_ONE_SIDED"), METHODS, FORCED)
    opens, why, backend = _opens(line, layout, moe_tp=gpus // ep, method=method)
    tokens = line.count("tokens", DEFAULT_TOKENS)
    return EngineSetup(
        engine=ENGINE,
        version=VERSION,
        layout=layout,
        expert_parallel=ep > 1,
        backend=backend,
        mode=METHODS.get(backend) if opens else None,
        opens_all_to_all=opens,
        why=why,
        capacity=tokens,
        tokens_per_rank=tokens,
        model=line.text("model") or _named(line.words),
        notes=tuple(_notes(line, opens=opens)),
        unread=line.unread,
    )


def _expert_parallel_size(line: CommandLine) -> int:
    """`ep_size` times MoE TP is `tp_size`."""
    gpus = line.count("tp", 1)
    moe_tp = line.count("moe_tp", 1 if "ep" in line.values else gpus)
    ep = line.count("ep", gpus // moe_tp if gpus % moe_tp == 0 else 1)
    if "moe_tp" not in line.values and gpus % ep == 0:
        moe_tp = gpus // ep
    if ep * moe_tp != gpus:
        raise Refused(
            f"--ep_size is {ep} and MoE TP {moe_tp}: their product must be --tp_size {gpus}; use --ep_size {gpus}, "
            "which deals experts out to all GPUs"
        )
    return ep


def _layout(line: CommandLine, gpus: int) -> Layout:
    """With attention DP every GPU of a stage is a DP rank, else a TP rank."""
    if line.count("cp", 1) > 1:
        raise Refused("--cp_size is above 1: this package does not know Helix context parallelism; leave it out")
    sizes = {"dp": gpus} if line.on("attention_dp") else {"tp": gpus}
    return Layout(**sizes, pp=line.count("pp", 1), gpus_per_node=line.count("gpus_per_node", 8))


def _opens(line: CommandLine, layout: Layout, *, moe_tp: int, method: str) -> tuple[bool, str, str]:
    if not line.on("attention_dp") or layout.ep_size == 1:
        return False, "no attention DP: 'no MoE communication is needed', an all-reduce adds up", "none"
    if moe_tp > 1:
        return True, f"MoE TP is {moe_tp}: 'AlltoAll cannot support MoE TP', all-gather / reduce-scatter", "ALLGATHER"
    forced = FORCED in line.environment
    if layout.pp > 1 and method == "NVLINK_ONE_SIDED":
        if forced:
            raise Refused(
                f"{FORCED} is {method} with --pp_size {layout.pp}: TensorRT-LLM says 'Currently NVLinkOneSided only "
                "supports pure EP for MoE.'; use --pp_size 1, or NVLINK_TWO_SIDED"
            )
        return (
            True,
            "pipeline stages: 'NVLinkOneSided only supports pure EP for MoE', the next method",
            "NVLINK_TWO_SIDED",
        )
    return True, f"{FORCED}={method}" if forced else "attention DP: the first method of its list that works", method


def _notes(line: CommandLine, *, opens: bool):
    if opens and FORCED not in line.environment:
        yield "order of its list: NVLinkOneSided, NVLinkTwoSided, NCCL EP, DeepEP, DeepEPLowLatency, all-gather"
    if not line.on("attention_dp"):
        yield "enable_attention_dp is a key of its YAML options: write --enable_attention_dp here to say it"


def _named(words: Sequence[str]) -> str:
    rest = [word for word in words if word not in ("trtllm-serve", "serve", "python", "python3")]
    return rest[0] if rest else ""

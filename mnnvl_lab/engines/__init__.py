"""Engines' flags: from the command line of vLLM, SGLang or TensorRT-LLM to the layout that it makes."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType

from mnnvl_lab.engines.setup import EngineSetup
from mnnvl_lab.engines.sglang import read_sglang
from mnnvl_lab.engines.tensorrt_llm import read_tensorrt_llm
from mnnvl_lab.engines.vllm import read_vllm
from mnnvl_lab.errors import Refused, choose, named_arguments, shown

READERS: Mapping[str, Callable[[str | Sequence[str]], EngineSetup]] = MappingProxyType(
    {"vllm": read_vllm, "sglang": read_sglang, "tensorrt_llm": read_tensorrt_llm}
)

__all__ = ["READERS", "EngineSetup", "read_engine"]


@named_arguments
def read_engine(engine: str, flags: str | Sequence[str] = "") -> EngineSetup:
    """What an engine makes of its flags.

    Args:
        engine: `vllm`, `sglang` or `tensorrt_llm` (also `trtllm`), in any case.
        flags: its command line, or the words of it; environment assignments may come first.

    Raises:
        Refused: an unknown engine; or a flag, with the rule and the remedy.
    """
    if not isinstance(flags, str | Sequence):
        raise Refused(f"flags is {shown(flags)}: it must be a command line, or a list of its words; pass a string")
    named = {"trtllm": "tensorrt_llm", "trt_llm": "tensorrt_llm", "tensorrtllm": "tensorrt_llm"}
    folded = engine.strip().lower().replace("-", "_") if isinstance(engine, str) else engine
    return READERS[choose(named.get(folded, engine) if isinstance(folded, str) else engine, READERS, "engine")](flags)

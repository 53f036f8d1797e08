"""FlashInfer's `moe_prepare` built with one condition changed, so that a full last step is published once.

The module is compiled at first use from the sources of the installed package, which are read, changed in one place and
written to FlashInfer's own cache; nothing of them is kept here. Compile it ahead with `python -m tools.findings
two_sided_prepare --build FOLDER` for a machine without compiler or sources, and name the library in `LIBRARY`.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from functools import cache
from pathlib import Path

from mnnvl_lab.errors import LabError

LIBRARY = "MNNVL_LAB_MENDED_PREPARE"
CONDITION = "if (packetId > 0 && threadIdx.x == 0) {"
MENDED = "if (packetId > 0 && packetId < PipelineConfig::PACKET_PER_STEP && threadIdx.x == 0) {"
SOURCE = "trtllm_alltoall_prepare.cu"


@cache
def mended_prepare() -> Callable:
    """`flashinfer.comm.trtllm_alltoall.moe_prepare` over the mended kernels. Compiles them at the first call.

    Raises:
        LabError: no sources, or other ones than those of FlashInfer 0.7.2.
    """
    import tvm_ffi
    from flashinfer.comm import trtllm_alltoall

    module = tvm_ffi.load_module(os.environ.get(LIBRARY) or str(_compiled()))
    found = trtllm_alltoall.get_comm_alltoall_module.__wrapped__
    mended = type(found)(found.__code__, {**found.__globals__, "gen_comm_alltoall_module": lambda: _Loaded(module)})
    return mended().moe_prepare


class _Loaded:
    """What FlashInfer's wrapper calls to get its module."""

    def __init__(self, module: object):
        self._module = module

    def build_and_load(self) -> object:
        return self._module


def _compiled() -> Path:
    from flashinfer.jit import env
    from flashinfer.jit.core import gen_jit_spec

    sources, folder = env.FLASHINFER_CSRC_DIR, env.FLASHINFER_JIT_DIR / "comm_mended"
    if not (sources / SOURCE).exists():
        raise LabError(
            f"{sources / SOURCE} does not exist: mended_prepare compiles FlashInfer's sources; install "
            f"flashinfer-python with its sources, or name a library that was compiled elsewhere in {LIBRARY}"
        )
    folder.mkdir(parents=True, exist_ok=True)
    (folder / SOURCE).write_text(mend((sources / SOURCE).read_text()))
    spec = gen_jit_spec("comm_mended", [sources / "trtllm_alltoall.cu", folder / SOURCE])
    spec.build(verbose=False, need_lock=True)
    return spec.jit_library_path


def mend(source: str) -> str:
    """The source with the one condition changed.

    Raises:
        LabError: the condition is not there exactly once.
    """
    if source.count(CONDITION) != 1:
        raise LabError(
            f"{SOURCE} holds {CONDITION!r} {source.count(CONDITION)} times: it must be there once, as in FlashInfer "
            "0.7.2; another version may have mended it already, then leave mended_prepare out"
        )
    return source.replace(CONDITION, MENDED)

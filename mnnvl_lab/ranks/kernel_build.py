"""FlashInfer's kernel modules: which are compiled, and compiling the others before ranks start.

At its first use FlashInfer compiles a module, which takes minutes. In a rank that would fall into a call with a limit,
or into what is timed; so it is done ahead, in one process, where one can see how far it is.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from importlib import metadata, util
from pathlib import Path
from types import MappingProxyType

from mnnvl_lab.errors import LabError
from mnnvl_lab.progress import Progress

MAKERS = MappingProxyType({"mnnvl_moe_alltoall": "gen_moe_alltoall_module", "comm": "gen_comm_alltoall_module"})
"""Modules of the one-sided and of the two-sided kernels, and what makes them (`flashinfer/jit/comm.py`)."""
LAST_LINES = 12


def compiled_kernels() -> dict[str, str]:
    """Library of each module that has one: FlashInfer's ahead-of-time directory, else its cache (`jit/env.py`)."""
    places = [*_ahead_of_time(), *_cached()]
    found = {}
    for module in MAKERS:
        libraries = (place / module / f"{module}.so" for place in places)
        if library := next(filter(Path.is_file, libraries), None):
            found[module] = str(library)
    return found


def compile_missing(*, progress: bool = True) -> None:
    """Compile what is not compiled, a module after the other.

    Raises:
        LabError: the compiler failed; with the end of what it said.
    """
    compiled = compiled_kernels()
    missing = [module for module in MAKERS if module not in compiled]
    for number, module in enumerate(missing, 1):
        text = f"compiling FlashInfer's kernels, which takes minutes: {module}, {number} of {len(missing)}"
        with Progress(text, done=f"compiled {module}", enabled=progress):
            _compile(module)


def _compile(module: str) -> None:
    with tempfile.TemporaryFile("w+") as said:  # a pipe that nobody reads would fill, and the compiler wait for ever
        process = subprocess.Popen(_command(module), stdout=said, stderr=subprocess.STDOUT)
        try:
            process.wait()
        except BaseException:  # interrupted: nobody waits for it any more
            process.kill()
            raise
        said.seek(0)
        end = "".join(said.readlines()[-LAST_LINES:])
    if process.returncode:
        raise LabError(
            f"FlashInfer's module {module} could not be compiled (exit code {process.returncode}): it needs nvcc and "
            f"CUDA's headers; install the CUDA toolkit and set CUDA_HOME\n{end}"
        )


def _command(module: str) -> list[str]:
    code = f"from flashinfer.jit.comm import {MAKERS[module]} as make; make().build(verbose=False)"
    return [sys.executable, "-c", code]


def _ahead_of_time() -> Iterator[Path]:
    for package, inside in (("flashinfer", "data/aot"), ("flashinfer_jit_cache", "jit_cache")):
        spec = util.find_spec(package)
        for folder in spec.submodule_search_locations or () if spec else ():
            yield Path(folder) / inside


def _cached() -> list[Path]:
    base = Path(os.environ.get("FLASHINFER_WORKSPACE_BASE") or Path.home())
    return sorted((base / ".cache" / "flashinfer").glob(f"{_version()}/*/cached_ops"))


def _version() -> str:
    try:
        return metadata.version("flashinfer-python")
    except metadata.PackageNotFoundError:
        return "*"

"""vLLM's files on all-to-all, loaded by path: its managers run without the rest of vLLM, over groups of a layout.

vLLM 0.33.0 keeps both FlashInfer managers in `distributed/device_communicators/all2all.py`, with `mnnvl_compat.py` and
`base_device_communicator.py` beside it. What those import of vLLM besides is a logger, settings and the groups: small
modules stand in for them for as long as `vllm_modules` lasts. Either vLLM is installed (`pip install --no-deps vllm` is
enough), or `MNNVL_LAB_VLLM` names the folder of its package.
"""

from __future__ import annotations

import importlib
import logging
import os
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

from mnnvl_lab.errors import Refused

VARIABLE = "MNNVL_LAB_VLLM"
COMMUNICATORS = "distributed/device_communicators"
FILES = tuple(f"{COMMUNICATORS}/{name}.py" for name in ("all2all", "base_device_communicator", "mnnvl_compat"))
PREPARE = "model_executor/layers/fused_moe/prepare_finalize"


def find_vllm() -> Path | None:
    """Folder of vLLM's package, by the environment or as installed; None without one. Imports nothing of it."""
    named = os.environ.get(VARIABLE)
    spec = None if named else find_spec("vllm")
    root = Path(named) if named else Path(spec.origin).parent if spec and spec.origin else None
    return root if root and all((root / name).is_file() for name in FILES) else None


def require_vllm() -> Path:
    """Folder of vLLM's package.

    Raises:
        Refused: there is none, or it lacks the files.
    """
    if (root := find_vllm()) is not None:
        return root
    raise Refused(
        f"vLLM's files are not at hand: its managers are run from {', '.join(FILES)}; pip install --no-deps "
        f"vllm==0.33.0, or set {VARIABLE} to the folder of its package"
    )


class _Anything(ModuleType):
    """A module in which every name is a class of its own: enough for base classes and annotations."""

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        made = type(name, (), {})
        setattr(self, name, made)
        return made


def group_of(group: Any) -> SimpleNamespace:
    """A group as vLLM's `GroupCoordinator` shows it: `cpu_group`, `rank_in_group`, `world_size`, `ranks`."""
    return SimpleNamespace(
        cpu_group=group.process_group, rank_in_group=group.rank, world_size=group.size, ranks=list(group.ranks)
    )


def _logger(name: str) -> logging.Logger:
    logger = logging.getLogger(name)
    logger.info_once = logger.warning_once = logger.debug_once = logger.debug  # type: ignore[attr-defined]
    return logger


def _module(name: str, **contents: Any) -> ModuleType:
    made = _Anything(name)
    vars(made).update(contents)
    return made


def _package(name: str, path: Path | None = None) -> ModuleType:
    """A package whose files are vLLM's own; without a path it has none."""
    return _module(name, __path__=[] if path is None else [str(path)])


def _has_modules(*names: str) -> Callable[[], bool]:
    return lambda: all(find_spec(name) is not None for name in names)


def _shims(root: Path, groups: Mapping[str, Any], dp_metadata: Any) -> dict[str, ModuleType]:
    """What stands in for the rest of vLLM, by name."""
    getters = {f"get_{name}_group": lambda group=group: group_of(group) for name, group in groups.items()}
    same_node = {"in_the_same_node_as": lambda group, source_rank=0: [True] * group.size()}
    context = SimpleNamespace(dp_metadata=dp_metadata)
    has = {
        "has_flashinfer_nvlink_one_sided": _has_modules("flashinfer", "flashinfer.moe_ep"),
        "has_flashinfer_nvlink_two_sided": _has_modules("flashinfer", "flashinfer.comm"),
    }
    layers = "vllm.model_executor.layers"
    return {
        "vllm": _package("vllm", root),
        "vllm.envs": _module("vllm.envs", VLLM_FLASHINFER_MOE_A2A_LOW_PRECISION_COMBINE=False),
        "vllm.config": _module("vllm.config"),
        "vllm.logger": _module("vllm.logger", init_logger=_logger),
        "vllm.forward_context": _module("vllm.forward_context", get_forward_context=lambda: context),
        "vllm.distributed": _module("vllm.distributed", __path__=[str(root / "distributed")], **getters),
        "vllm.distributed.utils": _module("vllm.distributed.utils"),
        "vllm.distributed.parallel_state": _module("vllm.distributed.parallel_state", **getters, **same_node),
        "vllm.utils": _package("vllm.utils"),
        "vllm.utils.flashinfer": _module("vllm.utils.flashinfer", **has),
        "vllm.utils.import_utils": _module("vllm.utils.import_utils"),
        "vllm.model_executor": _package("vllm.model_executor", root / "model_executor"),
        layers: _package(layers, root / "model_executor/layers"),
        f"{layers}.fused_moe": _package(f"{layers}.fused_moe", root / "model_executor/layers/fused_moe"),
        f"{layers}.fused_moe.modular_kernel": _module(f"{layers}.fused_moe.modular_kernel"),
        f"{layers}.fused_moe.config": _module(f"{layers}.fused_moe.config"),
        f"{layers}.fused_moe.utils": _module(f"{layers}.fused_moe.utils"),
        f"{layers}.fused_moe.prepare_finalize": _package(f"{layers}.fused_moe.prepare_finalize", root / PREPARE),
    }


def _linked(modules: dict[str, ModuleType]) -> dict[str, ModuleType]:
    """Each module is also an attribute of its package, as after an import."""
    for name, module in modules.items():
        package, _, last = name.rpartition(".")
        if package:
            setattr(modules[package], last, module)
    return modules


@contextmanager
def vllm_modules(
    groups: Mapping[str, Any], *, dp_metadata: Any = None, root: str = ""
) -> Iterator[Callable[[str], ModuleType]]:
    """For as long as this lasts, vLLM's files find these groups.

    Args:
        groups: by name (`dp`, `tp`, `ep`, `pcp`), each with `process_group`, `rank`, `size` and `ranks`.
        dp_metadata: what vLLM's forward context says of it; None with PCP and DP 1.
        root: folder of vLLM's package; looked for by default.

    Yields:
        Loads a module of vLLM by its name after `vllm.`.

    Raises:
        Refused: vLLM's files are not at hand, or vLLM itself is loaded in this process.
    """
    folder = Path(root) if root else require_vllm()
    if "vllm" in sys.modules:
        raise Refused("vllm is loaded in this process: its managers need a process without it; use fresh ranks")
    sys.modules.update(_linked(_shims(folder, groups, dp_metadata)))
    try:
        yield lambda name: importlib.import_module(f"vllm.{name}")
    finally:
        for name in [name for name in sys.modules if name == "vllm" or name.startswith("vllm.")]:
            del sys.modules[name]


def load_managers(load: Callable[[str], ModuleType], *, handles_over: Any = None) -> ModuleType:
    """vLLM's module of managers.

    Args:
        load: of `vllm_modules`.
        handles_over: the group over which they exchange memory handles; None for the EP group, as vLLM does since pull
            request 40893. Before it this was the DP group, whatever group the manager is for.
    """
    if handles_over is not None:
        compat = load("distributed.device_communicators.mnnvl_compat")
        current = compat.CustomCommunicator
        chosen = handles_over.process_group
        compat.CustomCommunicator = type(
            "CustomCommunicator", (current,), {"__init__": lambda self, group: current.__init__(self, chosen)}
        )
    return load("distributed.device_communicators.all2all")

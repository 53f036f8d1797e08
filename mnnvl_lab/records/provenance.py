"""Where a table comes from: what every record file carries beside its rows."""

from __future__ import annotations

import os
import platform
import subprocess
import sys
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path

from mnnvl_lab import __version__
from mnnvl_lab.records.columns import SCHEMA
from mnnvl_lab.records.machine import (
    cores,
    cpu_model,
    find_gpus,
    host_label,
    memory_copy_gigabytes_per_s,
    version_of,
)

REQUIRED = ("schema", "created_at", "device", "topology")
"""Without these a figure could not say what it shows."""


def provenance(
    *,
    fabric: str,
    clocks: Sequence[str] = (),
    warmup: int | None = None,
    samples: int | None = None,
    seed: int | None = None,
    **further: object,
) -> dict[str, object]:
    """Everything that a reader of the table may ask about the run, as plain JSON values. Measures nothing.

    Args:
        fabric: says which device was measured: the processor for `host`, else the GPUs.
        clocks, warmup, samples, seed: of the sweep; None where it does not say.
        further: fields that the caller knows better, such as `device`, or has measured (`measured_rates`); they replace
            those found here.
    """
    return {
        "schema": SCHEMA,
        "created_at": datetime.now(UTC).isoformat(timespec="seconds"),
        "command": command(sys.argv),
        **_source(),
        "package": __version__,
        "python": platform.python_version(),
        "torch": version_of("torch"),
        "flashinfer": version_of("flashinfer-python"),
        "nccl": version_of("nvidia-nccl-cu13", "nvidia-nccl-cu12"),
        "cpu": cpu_model(),
        "cores": cores(),
        **_device(fabric),
        "clocks": list(clocks),
        "warmup": warmup,
        "samples": samples,
        "seed": seed,
    } | further


def measured_rates(fabric: str) -> dict[str, float]:
    """Rates of this machine from which a bound follows, as fields for `provenance`. Keeps all cores busy for a moment.

    Returns:
        `memory_copy_gigabytes_per_s` for `host`; nothing for GPUs, whose links `measure_links` measures.
    """
    return {"memory_copy_gigabytes_per_s": round(memory_copy_gigabytes_per_s(), 2)} if fabric == "host" else {}


def command(argv: Sequence[str]) -> str:
    """What was typed, without the paths that Python puts in its place."""
    program, words = Path(argv[0]), argv[1:]
    if program.name.startswith("ipykernel"):
        return "notebook"
    name = f"python -m {program.parent.name}" if program.name == "__main__.py" else program.name
    return " ".join([name, *words])


def describe(provenance: Mapping[str, object]) -> str:
    """The provenance as lines of `field: value`, for a terminal or a notebook."""
    width = max(map(len, provenance))
    return "\n".join(f"{field:>{width}}: {value}" for field, value in provenance.items())


def _device(fabric: str) -> dict[str, object]:
    if fabric == "host":
        return {
            "device": host_label(),
            "driver": "",
            "topology": "shared memory of one machine",
        }
    gpus = find_gpus()
    return {"device": gpus.label or "unknown GPU", "driver": gpus.driver, "topology": gpus.topology}


COMMIT = "MNNVL_LAB_COMMIT"
"""Environment variable that names the commit where the package runs from a copy without history."""


def _source() -> dict[str, object]:
    """Commit of the checkout that this package runs from; empty when it was installed otherwise."""
    if named := os.environ.get(COMMIT):
        return {"commit": named.removesuffix("+"), "dirty": named.endswith("+")}
    root = Path(__file__).resolve().parents[2]
    commit = _git(root, "rev-parse", "HEAD") if (root / ".git").exists() else None
    changes = _git(root, "status", "--porcelain", "--untracked-files=no") if commit else None
    return {"commit": commit or "", "dirty": bool(changes)}


def _git(root: Path, *words: str) -> str | None:
    try:
        done = subprocess.run(["git", "-C", str(root), *words], capture_output=True, text=True, timeout=10, check=True)
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip()

"""The kept results of the reproducers, as tables: those of the package."""

from mnnvl_lab.analysis.findings import (
    FOLDER,
    PER,
    kept,
    lost_steps,
    machines,
    poisson_interval,
    prepares,
    sizes,
    wrong_rounds,
)

__all__ = [
    "FOLDER",
    "PER",
    "kept",
    "lost_steps",
    "machines",
    "poisson_interval",
    "prepares",
    "sizes",
    "wrong_rounds",
]

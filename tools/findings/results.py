"""The kept results of the reproducers, as tables: those of the package."""

from mnnvl_lab.analysis.findings import FOLDER, kept, machines, poisson_interval, prepares, sizes

__all__ = ["FOLDER", "kept", "machines", "poisson_interval", "prepares", "sizes"]

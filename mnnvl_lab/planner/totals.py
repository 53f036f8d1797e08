"""What several MNNVL windows take, added up."""

from __future__ import annotations

from mnnvl_lab.workspace import Window


class Totals:
    """Sums for whatever has `windows`, in bytes of one rank."""

    windows: tuple[Window, ...]

    @property
    def allocated_bytes(self) -> int:
        """Memory that is gone: every allocation, rounded up."""
        return sum(window.allocated_bytes for window in self.windows)

    @property
    def mapped_bytes(self) -> int:
        return sum(window.mapped_bytes for window in self.windows)

    @property
    def reserved_bytes(self) -> int:
        return sum(window.reserved_bytes for window in self.windows)

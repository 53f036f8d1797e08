"""Modules that only some tests need and that take seconds to import: every process collects all tests."""

from typing import Any

import pytest


class Lazy:
    """A module that is imported when a test first uses it; where it is missing that test is skipped.

    Modules of tests that share one belong in one xdist group, so that only one process imports it.
    """

    def __init__(self, name: str, *, reason: str | None = None):
        self._name, self._reason = name, reason

    def __getattr__(self, attribute: str) -> Any:
        if attribute.startswith(("_", "pytest")):  # what pytest looks for in everything that it collects
            raise AttributeError(attribute)
        return getattr(pytest.importorskip(self._name, reason=self._reason), attribute)

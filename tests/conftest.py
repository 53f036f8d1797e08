"""Rank processes that all tests share: starting them costs seconds."""

import pytest

from mnnvl_lab.layout import Layout
from mnnvl_lab.ranks import Ranks


@pytest.fixture(scope="session")
def host_ranks():
    """Four warm ranks on `host`, at first TP 2 x DP 2. A test may `use` another layout, and `kill`: the next call renews."""
    with Ranks(Layout(tp=2, dp=2)) as ranks:
        yield ranks

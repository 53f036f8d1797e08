"""What all tests share: rank processes, whose start costs seconds, and hypothesis without deadlines."""

import pytest
from hypothesis import settings

from mnnvl_lab.layout import Layout
from mnnvl_lab.ranks import Ranks

settings.register_profile("lab", deadline=None)  # a busy machine is no failure
settings.load_profile("lab")


@pytest.fixture(scope="session")
def host_ranks():
    """Four warm ranks on `host`, at first TP 2 x DP 2; a test may `use` another layout, or `kill`: the next renews."""
    with Ranks(Layout(tp=2, dp=2)) as ranks:
        yield ranks

"""The least of every campaign on warm ranks, so that a change of what they call is noticed in time."""

from contextlib import contextmanager

import pytest

from tools import soak


@pytest.mark.parametrize("name", ["kills", "hangs", "fuzz", "variants"])
def test_a_campaign_runs_and_tells_what_came_of_it(host_ranks, monkeypatch, name):
    @contextmanager
    def warm(layout, fabric):
        assert fabric == "host"
        host_ranks.use(layout)
        yield host_ranks

    monkeypatch.setattr(soak, "Ranks", warm)
    monkeypatch.setattr(soak, "VARIANTS", soak.VARIANTS[:1])
    rows = list(soak.CAMPAIGNS[name]("host", 4, 1e-6, 0))
    assert rows
    assert all(row["mode"] and row["fault"] for row in rows)

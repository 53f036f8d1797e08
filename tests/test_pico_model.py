"""Pico's protocol under every interleaving and delayed store: sound as it is, wrong in every broken variant."""

import pytest

from mnnvl_lab.errors import LabError
from mnnvl_lab.model_check import PICO_MISTAKES, Pico, search

BOTH = ((True, True), (True, True))
ONE_WAY = ((False, False), (True, True))  # rank 0 sends nothing, rank 1 sends to both
ROUNDS = (ONE_WAY, BOTH)


@pytest.mark.parametrize("push", [False, True], ids=["pull", "push"])
@pytest.mark.parametrize("rounds", [(BOTH, BOTH), ROUNDS, (BOTH, ONE_WAY)], ids=["full", "idle first", "idle last"])
def test_the_protocol_is_sound(rounds, push):
    result = search(Pico(rounds=rounds, push=push).protocol)
    assert result.violation is None
    assert result.complete


@pytest.mark.parametrize("push", [False, True], ids=["pull", "push"])
@pytest.mark.parametrize("mistake", PICO_MISTAKES)
def test_each_mistake_is_found(mistake, push):
    result = search(Pico(rounds=ROUNDS, push=push, mistake=mistake).protocol)
    assert result.violation is not None
    assert result.trace[-1].label.split(": ")[1] in ("read rows and counts", "bring back the sums", "add up")


def test_an_overtaking_flag_shows_as_a_stale_row():
    result = search(Pico(rounds=(BOTH,), mistake="flag without release").protocol)
    assert "stale" in result.violation


def test_an_unknown_mistake_is_refused():
    with pytest.raises(
        LabError, match="mistake 'no luck' is not known: choose one of flag without release, missing epoch"
    ):
        Pico(rounds=(BOTH,), mistake="no luck")

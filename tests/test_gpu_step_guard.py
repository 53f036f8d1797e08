"""On two GPUs: rounds stay right where a step of prepare may be published twice, and records say so."""

from dataclasses import replace

import pytest

from mnnvl_lab.exchange import Exchange
from mnnvl_lab.hardware import count_visible_gpus
from mnnvl_lab.layout import Layout
from mnnvl_lab.measure import Sampling
from mnnvl_lab.measure.point import Point
from mnnvl_lab.measure.run import measure
from mnnvl_lab.ranks import Ranks
from mnnvl_lab.routing import Load, Uniform
from tests import guard_helpers

GPUS = count_visible_gpus()
pytestmark = [pytest.mark.gpu, pytest.mark.skipif(GPUS < 2, reason=f"{GPUS} NVIDIA GPUs are visible: nvlink needs 2")]
PAIR = Layout(dp=2)


@pytest.fixture(scope="module")
def ranks():
    with Ranks(PAIR, fabric="nvlink") as warm:
        yield warm


def point(tokens, *, clock="graph", **more):
    exchange = Exchange(mode="two_sided", layout=PAIR, max_tokens=tokens, hidden=1024, experts=256, top_k=8, **more)
    sampling = Sampling(warmup=2, min_samples=20, max_samples=20)
    return Point(exchange=exchange, load=Load(routing=Uniform(), tokens=tokens), clock=clock, sampling=sampling)


@pytest.mark.parametrize("clock", ["graph", "eager", "kernel"])
def test_a_sweep_over_the_boundary_says_what_it_did(ranks, clock):
    tables = {tokens: measure(point(tokens, clock=clock), ranks) for tokens in (1900, 2048, 3000)}
    assert {tokens for tokens, table in tables.items() if table["note"].str.contains("publishes it twice").any()} == {
        2048
    }
    assert set(tables[1900]["note"]) == {""}


def test_a_lost_step_is_set_back_by_the_guard(ranks):
    for wrong, note in ranks.run(guard_helpers.with_a_lost_step, point(2048), guarded=True):
        assert wrong == []
        assert "steps lost and set back: 1 to ep_rank" in note


def test_without_the_guard_the_error_explains_a_lost_step(ranks):
    said = [one for wrong, _ in ranks.run(guard_helpers.with_a_lost_step, point(2048), guarded=False) for one in wrong]
    assert said
    assert all("ids and weights" in one and "published twice" in one for one in said), said


def test_the_mended_kernel_is_right_and_is_named(ranks):
    mended = replace(point(2048), exchange=replace(point(2048).exchange, mended_prepare=True))
    table = measure(mended, ranks)
    assert set(table["note"]) == {"prepare by the kernel that publishes no step twice"}
    assert table["mended_prepare"].all()

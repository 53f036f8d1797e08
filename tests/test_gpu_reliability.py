"""Hangs, deaths and bad input on real GPUs.

The long version: `python -m tools.soak kills hangs fuzz --fabric nvlink --ranks 2`.
"""

import time

import pytest

from mnnvl_lab.errors import Hang, RankError
from mnnvl_lab.faults import crashes, hangs
from mnnvl_lab.faults.crashes import Crash, crash_while_measuring
from mnnvl_lab.faults.fuzz import FuzzCase, run_fuzz_cases
from mnnvl_lab.faults.invalid_inputs import BOTH, invalid_inputs
from mnnvl_lab.hardware import count_visible_gpus
from mnnvl_lab.layout import Layout
from mnnvl_lab.measure.run import measure_point
from mnnvl_lab.ranks import Ranks
from tests.test_fuzz import require_due

GPUS = count_visible_gpus()
pytestmark = [pytest.mark.gpu, pytest.mark.timeout(600)]
PAIR = Layout(dp=2)
FABRIC = "nvlink" if GPUS > 1 else "shared_gpu"
FIRST_S = 400  # the kernels may have to be compiled
LIMIT_S = 3.0
NAMED_WITHIN_S = 5.0
SLACK_BYTES = 64 << 20  # what a driver keeps for itself comes and goes


@pytest.fixture(scope="module")
def ranks():
    with Ranks(PAIR, fabric=FABRIC) as ranks:
        yield ranks


def used_bytes() -> int:
    """Memory in use on all visible GPUs, seen from a process that has no CUDA context."""
    import pynvml

    pynvml.nvmlInit()
    handles = [pynvml.nvmlDeviceGetHandleByIndex(index) for index in range(GPUS)]
    return sum(pynvml.nvmlDeviceGetMemoryInfo(handle).used for handle in handles)


@pytest.mark.parametrize("phase", ["dispatch", "combine"])
@pytest.mark.parametrize("mode", BOTH)
def test_a_rank_that_stays_away_is_named_beside_the_spinning_kernel(ranks, mode, phase):
    point = hangs.small_point(PAIR, mode=mode)
    ranks.run(measure_point, point, timeout_s=FIRST_S)
    began_s = time.monotonic()
    with pytest.raises(Hang) as caught:
        ranks.run(hangs.stay_away, point, culprits=1, phase=phase, round_limit_s=LIMIT_S)
    assert time.monotonic() - began_s < LIMIT_S + 1 + 1  # a second for the rounds before it
    report = caught.value.hang_report
    assert report.culprits == (1,)
    assert [snapshot.trouble for snapshot in report.snapshots.values()] == ["", ""]
    if mode == "one_sided":
        epoch = {"dispatch": 7, "combine": 8}[phase]
        assert report.snapshots[0].epoch == epoch
        assert report.snapshots[0].flags[f"{phase}_completion_flags"].tolist() == [epoch, epoch - 2]
    assert "in stay_away" in caught.value.report
    assert len(ranks.run(measure_point, point, timeout_s=FIRST_S)) == 2


@pytest.mark.parametrize(
    ("mode", "target"),
    [
        ("one_sided", Crash(rank=1, phase="dispatch", cause="SIGKILL")),
        ("two_sided", Crash(rank=0, phase="combine", cause="exit")),
        ("one_sided", Crash(rank=1, phase="after dispatch", cause="cuda")),
        ("two_sided", Crash(rank=1, phase="timing", cause="SIGKILL")),
        ("one_sided", Crash(rank=0, phase="close", cause="exit")),
        ("two_sided", Crash(rank=0, phase="open", cause="memory")),
        ("one_sided", Crash(rank=0, phase="after dispatch", cause="memory")),
    ],
    ids=lambda value: f"{value.cause} in {value.phase}" if isinstance(value, Crash) else value,
)
def test_a_death_is_named_and_the_next_call_works(ranks, mode, target):
    point = hangs.small_point(PAIR, mode=mode)
    ranks.run(measure_point, point, timeout_s=FIRST_S)
    began_s = time.monotonic()
    with pytest.raises(RankError, match=crashes.WORDS[target.cause]) as caught:
        ranks.run(crash_while_measuring, point, target)
    assert time.monotonic() - began_s < NAMED_WITHIN_S
    assert caught.value.rank == target.rank
    assert caught.value.phase.startswith(target.phase)
    assert len(ranks.run(measure_point, point, timeout_s=FIRST_S)) == 2


@pytest.mark.parametrize("mode", BOTH)
def test_a_rank_that_fails_beside_its_spinning_kernel_is_named_and_replaced(ranks, mode):
    point = hangs.small_point(PAIR, mode=mode)
    ranks.run(measure_point, point, timeout_s=FIRST_S)
    began_s = time.monotonic()
    with pytest.raises(RankError, match="failed beside its own kernel") as caught:
        ranks.run(hangs.fail_beside_kernel, point, failing=1)
    assert time.monotonic() - began_s < NAMED_WITHIN_S
    assert caught.value.rank == 1
    assert len(ranks.run(measure_point, point, timeout_s=FIRST_S)) == 2


def test_memory_of_killed_ranks_comes_back():
    before = used_bytes()
    point = hangs.small_point(PAIR)
    with Ranks(PAIR, fabric=FABRIC) as ranks:
        ranks.run(measure_point, point, timeout_s=FIRST_S)
        with pytest.raises(Hang):
            ranks.run(hangs.stay_away, point, culprits=0, phase="dispatch", round_limit_s=LIMIT_S)
    deadline_s = time.monotonic() + 5
    while used_bytes() > before + SLACK_BYTES and time.monotonic() < deadline_s:
        time.sleep(0.1)
    assert used_bytes() <= before + SLACK_BYTES


@pytest.mark.parametrize("mode", BOTH)
def test_every_hazard_is_refused_and_the_transport_goes_on(ranks, mode):
    chosen = [
        FuzzCase(
            mode=mode, tokens=(5, 3), experts=16, top_k=4, hidden=64, invalid_input=invalid_input.name, target=index % 2
        )
        for index, invalid_input in enumerate(invalid_inputs(mode))
    ]
    require_due(chosen, ranks.run(run_fuzz_cases, chosen, timeout_s=FIRST_S))


def test_the_living_go_on_without_the_dead(ranks):
    point = hangs.small_point(PAIR, enable_rank_mask=True)
    ranks.run(hangs.open_and_keep, point, timeout_s=FIRST_S)
    ranks.kill(1)
    [latencies_us] = ranks.run(hangs.live_on, point, (0,), only=[0])
    assert len(latencies_us) == 3
    ranks.kill(0)  # so that both start afresh
    assert len(ranks.run(measure_point, hangs.small_point(PAIR), timeout_s=FIRST_S)) == 2

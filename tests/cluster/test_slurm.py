"""Ranks in a Slurm cluster of two nodes: start, rounds, deaths, and all that a queue may do to a job."""

import os
import re
import signal
import subprocess
import sys
import threading
import time

import pytest

from mnnvl_lab.__main__ import main
from mnnvl_lab.errors import Interrupted, RankDied, RankTimeout, Refused
from mnnvl_lab.exchange import MODES, Exchange
from mnnvl_lab.layout import Layout
from mnnvl_lab.ranks import Ranks
from mnnvl_lab.routing import Load, Uniform
from tests import ranks_helpers as on
from tests import transport_helpers as transports
from tests.cluster.conftest import await_empty_queue, await_gone

FULL = Layout(tp=2, dp=2, gpus_per_node=2)  # all four processors of the cluster, two of each node
LOADS = [Load(routing=Uniform(), tokens=tokens, seed=seed) for seed, tokens in enumerate((24, 12))]


def start(layout=FULL, **more):
    return Ranks(layout, launcher="slurm", **more)


def job_of(cluster):
    [job] = [job for job in cluster.jobs if "COMPLETING" not in job]
    return job.split()[0]


@pytest.fixture
def holder(slurm):
    """A job of someone else's that has all processors."""
    job = slurm.command("sbatch", "--parsable", "--nodes=2", "--ntasks=4", "--output=/dev/null", "--wrap=sleep 600")
    while f"{job} RUNNING" not in slurm.jobs[0]:
        time.sleep(0.1)
    yield job
    slurm.command("scancel", job)


@pytest.fixture(scope="class")
def ranks(shared_slurm):
    with start() as ranks:
        yield ranks
    await_empty_queue(shared_slurm)


class TestWarmRanks:
    """Four ranks that all of these tests share: each finds them usable, whatever the one before did to the job."""

    def test_ranks_over_both_nodes_in_the_layouts_order(self, ranks):
        assert ranks.run(on.environment, "SLURMD_NODENAME") == ["n1", "n1", "n2", "n2"]
        assert ranks.run(on.groups, ["ep"])[2] == {"ep": ((0, 1, 2, 3), (0, 1, 2, 3), 2)}
        assert list(ranks.to_frame()["interface"]) == ["lo"] * 4

    @pytest.mark.parametrize("mode", MODES)
    def test_rounds_agree_with_the_oracle(self, ranks, mode):
        exchange = Exchange(mode=mode, layout=FULL, max_tokens=24, hidden=256, experts=16, top_k=4)
        assert ranks.run(transports.rounds, exchange, LOADS) == [2] * 4

    def test_a_dead_rank_is_replaced_inside_the_full_allocation(self, ranks, shared_slurm):
        job, before = job_of(shared_slurm), ranks.run(on.pid)
        ranks.kill(1)
        after = ranks.run(on.pid)
        assert [a == b for a, b in zip(after, before, strict=True)] == [True, False, True, True]
        assert ranks.run(on.environment, "SLURMD_NODENAME") == ["n1", "n1", "n2", "n2"]
        with pytest.raises(RankDied, match="rank 2 in dispatch: exit code 3"):
            ranks.run(on.exit_hard, 2, 3)
        assert len(ranks.run(on.pid)) == 4
        assert job_of(shared_slurm) == job

    @pytest.mark.parametrize(
        ("command", "words"),
        [
            (("scancel", "JOB"), r"cancelled after 00:\d\d:\d\d of \S+ on n\[1-2\]"),
            (("scontrol", "update", "JobId=JOB", "EndTime=now"), r"timeout \(TimeLimit\) after 00:\d\d:\d\d of \S+ on"),
        ],
    )
    def test_a_job_that_ended_is_named_and_the_next_call_gets_another(self, ranks, shared_slurm, command, words):
        """Slurm looks every 30 s for jobs whose time is over."""
        ranks.run(on.pid)
        job = job_of(shared_slurm)
        threading.Timer(
            1.0, shared_slurm.command, [job if w == "JOB" else w.replace("JOB", job) for w in command]
        ).start()
        with pytest.raises(RankDied, match=rf"Slurm's job {job} {words}"):
            ranks.run(on.sleep_on, 0, 60)
        assert len(ranks.run(on.pid)) == 4
        assert job_of(shared_slurm) != job

    def test_a_lost_node_is_named_and_until_it_is_back_the_next_call_says_why_not(self, ranks, shared_slurm):
        """Slurm needs some 25 s to miss a node."""
        job = job_of(shared_slurm)
        shared_slurm.kill_node("n2")
        try:
            with pytest.raises(RankDied, match=rf"Slurm's job {job} node_fail.* on n\[1-2\]"):
                ranks.run(on.sleep_on, 0, 60)
            ranks._cluster._start_timeout_s = 4
            with pytest.raises(RankTimeout, match=r"pending \(.*(Nodes|NODE).*\) still waits"):
                ranks.run(on.pid)
        finally:
            ranks._cluster._start_timeout_s = 60
            shared_slurm.start_node("n2")
            shared_slurm.await_nodes()
        assert len(ranks.run(on.pid)) == 4


def test_another_layout_gets_a_larger_job(slurm, shown):
    with start(Layout(tp=2, gpus_per_node=2)) as ranks:
        first = job_of(slurm)
        ranks.use(FULL)
        assert len(ranks.run(on.pid)) == 4
        assert job_of(slurm) != first
        ranks.use(Layout(tp=2, gpus_per_node=2))
        assert len(ranks.run(on.pid)) == 2
    assert any(re.match(r"starting 2 ranks: [01] of 2 ranks registered", text) for text in shown)


def test_a_full_queue_is_shown_and_named_and_nothing_stays_in_it(slurm, holder, shown):
    with pytest.raises(RankTimeout, match=r"Slurm's job \d+ pending \((Resources|Priority)\) still waits") as caught:
        start(start_timeout_s=6)
    assert "raise start_timeout_s" in str(caught.value)
    assert any(re.fullmatch(r"starting 4 ranks: job \d+ pending \(Resources\), \d+ s", text) for text in shown)
    await_empty_queue(slurm, but=[holder])


def test_an_interrupt_cancels_the_waiting_job(slurm, holder):
    threading.Timer(3.0, os.kill, (os.getpid(), signal.SIGINT)).start()
    with pytest.raises(Interrupted, match="starting 4 ranks: stopped"):
        start()
    await_empty_queue(slurm, but=[holder])


@pytest.mark.parametrize("waiting", [False, True])
def test_a_killed_notebook_leaves_no_job_and_no_process(slurm, waiting):
    holder = slurm.command("sbatch", "--parsable", "-N2", "-n4", "--output=/dev/null", "--wrap=sleep 600")
    if not waiting:
        slurm.command("scancel", holder)
    command = [sys.executable, "-u", "-m", "tests.cluster.notebook"]
    script = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    if waiting:
        while not any("mnnvl" in name for name in slurm.command("squeue", "--noheader", "--format=%j").split()):
            time.sleep(0.1)
        pids = []
    else:
        pids = [int(pid) for pid in script.stdout.readline().split()]
    script.kill()
    script.communicate()
    await_gone(pids)
    await_empty_queue(slurm, but=[holder])
    slurm.command("scancel", holder)


def test_inside_an_allocation_no_second_job_is_submitted(slurm):
    command = ["salloc", "--quiet", "--nodes=2", "--ntasks=4", sys.executable, "-m", "tests.cluster.notebook", "jobs"]
    told = slurm.command(*command).splitlines()
    assert told[0] == "n1 n1 n2 n2"
    assert re.fullmatch(r"\d+ RUNNING None", told[1])
    assert told[2] == f"job {told[1].split()[0]} still runs"


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"queue": "nowhere"}, "Slurm does not take the job: .*invalid partition"),
        ({"partition": "lab"}, "SlurmEngineSetLauncher has no 'partition': choose from queue, account"),
    ],
)
def test_what_slurm_does_not_take_is_refused_at_once(slurm, options, words):
    with pytest.raises(Refused, match=words):
        start(launcher_options={"SlurmEngineSetLauncher": options})


def test_a_job_that_can_never_start_is_refused_at_once_and_cancelled(slurm):
    with pytest.raises(
        Refused, match=r"pending \(PartitionConfig\) can never start: it asks for 4 nodes of partition lab"
    ):
        start(Layout(tp=2, dp=2, gpus_per_node=1))
    await_empty_queue(slurm)


def test_the_doctor_finds_the_cluster_without_a_job(slurm, capsys):
    assert main(["doctor", "--launcher", "slurm"]) == 0
    told = capsys.readouterr().out
    assert re.search(r"cluster +lab\*: 2 nodes idle with 2 processors", told)
    assert re.search(r"address +nodes reach this machine at 127\.0\.0\.1 \(lo\)", told)
    assert re.search(r"job +outside of a job: ranks get one of their own\. .*Job \d+ to start at", told)
    assert not slurm.jobs

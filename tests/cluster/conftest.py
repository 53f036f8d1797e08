"""One Slurm cluster, and two hosts over SSH, for all tests here; each test finds an empty queue and leaves one."""

import os
import time

import pytest

from mnnvl_lab import progress
from tools import clusters

EMPTY_LIMIT_S = 20


@pytest.fixture(scope="session")
def _slurm():
    if reason := clusters.missing("slurm"):
        pytest.skip(reason)
    with clusters.slurm(cpus=2) as cluster:
        yield cluster


@pytest.fixture(scope="session")
def shared_slurm(_slurm):
    """The cluster, for tests that share ranks, and so leave a job to each other."""
    with pytest.MonkeyPatch.context() as patch:
        for name, value in _slurm.env.items():
            patch.setenv(name, value)
        yield _slurm


@pytest.fixture
def slurm(shared_slurm):
    """A cluster of the nodes n1 and n2 with two processors each; the queue must be empty after the test."""
    yield shared_slurm
    await_empty_queue(shared_slurm)


@pytest.fixture(scope="session")
def ssh():
    """Two hosts over SSH."""
    if reason := clusters.missing("ssh"):
        pytest.skip(reason)
    with clusters.ssh() as cluster:
        yield cluster


@pytest.fixture
def shown(monkeypatch):
    """Texts that a progress line showed, as a notebook would."""
    texts = []

    class Screen:
        def show(self, text):
            texts.append(text)

        end = show

    monkeypatch.setattr(progress, "_screen", Screen)
    monkeypatch.setattr(progress, "TICK_S", 0.2)
    return texts


def await_empty_queue(cluster, *, but=()):
    """Jobs need a moment to end; whatever stays longer was left behind."""
    deadline = time.monotonic() + EMPTY_LIMIT_S
    while (left := [job for job in cluster.jobs if job.split()[0] not in but]) and time.monotonic() < deadline:
        time.sleep(0.2)
    assert not left


def await_gone(pids):
    deadline = time.monotonic() + EMPTY_LIMIT_S
    while (left := [pid for pid in pids if os.path.exists(f"/proc/{pid}")]) and time.monotonic() < deadline:
        time.sleep(0.2)
    assert not left

"""Two nodes with a network, a host name and a /dev/shm each: what spans them works, what cannot is refused by name."""

import json
import os
import subprocess
import sys

import pytest

from tools import clusters

WHERE = "rank 0 on n1, rank 1 on n1, rank 2 on n2, rank 3 on n2"


@pytest.fixture(scope="module")
def machines():
    try:
        with clusters.machines() as three:
            yield three
    except (clusters.ClusterError, OSError) as error:
        pytest.skip(f"no network namespaces here: {error}")


def seen_from(login, launcher, options, env):
    command = [*login.prefix, sys.executable, "-m", "tests.cluster.two_machines", launcher, json.dumps(options)]
    done = subprocess.run(command, capture_output=True, text=True, env=os.environ | env, timeout=110)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def require_as_expected(seen):
    nodes = {"rank": [0, 1, 2, 3], "node": [0, 0, 1, 1], "host": ["n1", "n1", "n2", "n2"]}
    assert seen["grid"] == nodes | {"interface": ["lab0"] * 4}
    for mode in ("one_sided", "two_sided"):
        assert seen["modes"][mode].startswith(f"mode {mode} on fabric host with {WHERE}: its workspace is memory")
    for mode in ("allgather_reducescatter", "all_to_all"):
        assert seen["modes"][mode] == [2] * 4
    assert seen["same"] == [True, True, True, False]
    assert seen["stages"] == [2] * 4, "each stage is on one machine, whose ranks do share memory"


@pytest.mark.skipif(bool(clusters.missing("ssh")), reason=clusters.missing("ssh") or "never")
def test_over_ssh(machines):
    login, *nodes = machines
    with clusters.ssh(machines=nodes) as cluster:
        require_as_expected(seen_from(login, "ssh", cluster.options(2), {}))


@pytest.mark.skipif(bool(clusters.missing("slurm")), reason=clusters.missing("slurm") or "never")
def test_under_slurm(machines):
    with clusters.slurm(cpus=2, machines=machines) as cluster:
        require_as_expected(seen_from(machines[0], "slurm", {}, cluster.env))
        assert not [job for job in cluster.jobs if "COMPLETING" not in job]

"""The clusters that the other tests run on: they come up, run something on each node, and leave nothing behind."""

import signal
import subprocess
import sys
from pathlib import Path

import psutil
import pytest

from tools import clusters


def left_behind():
    names = {"slurmctld", "slurmd", "slurmstepd", "munged", "sshd"}
    return {
        process.pid
        for process in psutil.process_iter(["name", "status"])
        if process.info["name"] in names and process.info["status"] != psutil.STATUS_ZOMBIE
    }


@pytest.mark.skipif(bool(clusters.missing("slurm")), reason=clusters.missing("slurm") or "never")
def test_slurm_runs_a_task_on_each_node_and_goes_entirely():
    before = left_behind()
    with clusters.slurm() as cluster:
        told = cluster.command("srun", "--nodes=2", "--ntasks=2", "--label", "printenv", "SLURMD_NODENAME")
        assert sorted(told.splitlines()) == ["0: n1", "1: n2"]
        cluster.command("sbatch", "--nodes=2", "--ntasks=8", "--output=/dev/null", "--wrap", "sleep 600")
    assert left_behind() <= before
    assert not cluster.directory.exists()


@pytest.mark.skipif(bool(clusters.missing("ssh")), reason=clusters.missing("ssh") or "never")
def test_two_hosts_answer_over_ssh_to_their_key_alone():
    before = left_behind()
    with clusters.ssh() as cluster:
        for host in cluster.hosts:
            address, port = host.split(":")
            command = ["ssh", *cluster.arguments, "-p", port, address, "echo here"]
            assert subprocess.run(command, capture_output=True, text=True).stdout == "here\n"
            command[command.index("-i") + 1] = "/dev/null"
            assert subprocess.run(command, capture_output=True, text=True).returncode == 255
    assert left_behind() <= before


@pytest.mark.skipif(bool(clusters.missing("slurm")), reason=clusters.missing("slurm") or "never")
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM], ids=lambda number: number.name)
def test_the_command_ends_its_cluster_on_either_signal(number):
    before = left_behind()
    command = [sys.executable, "-m", "tools.clusters", "slurm"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as started:
        told = [started.stdout.readline(), started.stdout.readline()]
        assert left_behind() - before
        started.send_signal(number)
        assert started.wait(30) == 0
    directory = Path(told[0].strip().partition("=")[2]).parent
    assert left_behind() <= before
    assert not directory.exists()

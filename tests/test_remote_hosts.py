"""What needs no cluster: words for Slurm, states of jobs in words, and which host a rank is on."""

import os
from types import SimpleNamespace

import pytest

from mnnvl_lab import transport
from mnnvl_lab.__main__ import main
from mnnvl_lab.errors import Refused
from mnnvl_lab.layout import Layout
from mnnvl_lab.ranks import arguments, network, slurm
from mnnvl_lab.ranks.gpu_placement import place_on_hosts
from mnnvl_lab.ranks.remote import Host, placed
from mnnvl_lab.ranks.slurm import Allocation, JobState, count_ids, parsed
from mnnvl_lab.ranks.ssh import SshHosts


def hosts(**slots):
    return [Host(name=name, slots=count, command=("run",)) for name, count in slots.items()]


@pytest.fixture
def allocation(monkeypatch):
    """A function that gives an `Allocation`, on a machine that seems to have Slurm."""
    monkeypatch.setattr(slurm, "require_commands", lambda: None)
    monkeypatch.delenv("SLURM_JOB_ID", raising=False)
    return lambda **settings: Allocation("mnnvl_lab-x", settings)


@pytest.mark.parametrize(
    ("slots", "gpus_per_node", "expected"),
    [
        ({"a": 2, "b": 2}, 8, "aabb"),
        ({"a": 8, "b": 8}, 2, "aabb"),
        ({"a": 8, "b": 8}, 8, "aaaa"),
        ({"a": 1, "b": 1, "c": 4}, 8, "abcc"),
    ],
)
def test_ranks_fill_hosts_in_the_layouts_order(slots, gpus_per_node, expected):
    layout = Layout(tp=2, dp=2, gpus_per_node=gpus_per_node)
    assert "".join(host.name for host in placed(hosts(**slots), layout)) == expected


def test_a_rank_has_the_gpu_of_its_place_on_its_host():
    placement = place_on_hosts(Layout(dp=4), fabric="nvlink")
    assert [placement.gpu(rank, ("a", "a", "b", "b")) for rank in range(4)] == [0, 1, 0, 1]
    assert [placement.gpu(rank, ("a", "a", "a", "a")) for rank in range(4)] == [0, 1, 2, 3]
    assert place_on_hosts(Layout(dp=4), fabric="host").gpu(3, ("a",) * 4) is None
    with pytest.raises(Refused, match="MPS is started on this machine alone"):
        place_on_hosts(Layout(dp=4), fabric="shared_gpu")


class FarRanks:
    """A rank of an NVLink EP group whose two ranks are on two machines; both GPUs are in a domain."""

    fabric, hosts, device = "nvlink", ("a", "b"), SimpleNamespace(index=0)

    def __init__(self, *domains):
        self._group = SimpleNamespace(ranks=(0, 1), allgather=lambda _, call: list(domains))

    def group(self, name):
        return self._group

    def shares_memory(self, ranks):
        return False


@pytest.mark.parametrize("domains", [("", ""), ("x-0", ""), ("x-0", "x-1")])
def test_nvlink_workspaces_span_machines_of_one_domain_alone(domains):
    transport._require_span(FarRanks("x-0", "x-0"), "one_sided")
    transport._require_span(FarRanks(*domains), "all_to_all")
    with pytest.raises(Refused, match=r"on fabric nvlink with rank 0 on a, rank 1 on b: .*no common NVLink domain"):
        transport._require_span(FarRanks(*domains), "one_sided")


def test_hosts_without_room_are_refused_by_name():
    with pytest.raises(Refused, match=r"4 ranks on hosts with 2 places \(a: 8, b: 8; gpus_per_node is 1\)"):
        placed(hosts(a=8, b=8), Layout(dp=4, gpus_per_node=1))


@pytest.mark.parametrize(
    ("settings", "nodes", "words"),
    [
        ({}, 2, ["--nodes=2", "--ntasks=16", "--ntasks-per-node=8"]),
        ({"options": "--nodes=4"}, 2, ["--ntasks=16", "--ntasks-per-node=4", "--nodes=4"]),
        ({"options": "-N 4"}, 2, ["--ntasks=16", "--ntasks-per-node=4", "-N", "4"]),
        ({"options": "--ntasks-per-node=2"}, 8, ["--nodes=8", "--ntasks=16", "--ntasks-per-node=2"]),
        ({"queue": "gpu", "timelimit": "5"}, 2, ["--partition=gpu", "--time=5", "--nodes=2"]),
    ],
)
def test_a_job_is_asked_for_in_the_layouts_shape_unless_options_say_otherwise(allocation, settings, nodes, words):
    request = allocation(**settings).request(16, nodes=nodes)
    assert [word for word in request if word in words] == words
    assert sum(word.startswith(("--nodes", "-N")) for word in request) == 1
    assert "--export=NONE" in request


def test_a_job_around_this_process_is_used_and_never_cancelled(allocation, monkeypatch):
    monkeypatch.setenv("SLURM_JOB_ID", "17")
    inside = allocation()
    assert (inside.job, inside.own, inside.cancel_command) == ("17", False, [])


def test_steps_do_not_inherit_what_describes_another_step(monkeypatch):
    monkeypatch.setenv("SLURM_NTASKS", "3")
    monkeypatch.setenv("SLURM_CONF", "/etc/slurm.conf")
    environment = slurm.client_environment()
    assert "SLURM_NTASKS" not in environment
    assert environment["SLURM_CONF"] == "/etc/slurm.conf"
    assert environment["PATH"] == os.environ["PATH"]


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ("JobState=PENDING Reason=Resources", "job 17 pending (Resources)"),
        ("JobState=RUNNING Reason=None", "job 17 running"),
        (
            "JobState=TIMEOUT Reason=TimeLimit RunTime=00:01:02 TimeLimit=00:01:00 NodeList=n[1-2]",
            "job 17 timeout (TimeLimit) after 00:01:02 of 00:01:00 on n[1-2]",
        ),
        ("JobState=UNKNOWN", "job 17 unknown"),
    ],
)
def test_states_in_words(fields, words):
    told = parsed(fields)
    known = told if told["JobState"] != "UNKNOWN" else {}
    assert str(JobState(job="17", state=told["JobState"], fields=known)) == words


def test_lists_of_processors_are_counted():
    assert [count_ids(ids) for ids in ("0", "0-3", "0-3,8", "1,3,5-6")] == [1, 4, 5, 4]


def test_without_slurm_the_doctor_says_what_is_missing(monkeypatch, capsys, tmp_path):
    monkeypatch.setenv("PATH", str(tmp_path))
    assert main(["doctor", "--launcher", "slurm"]) == 1
    assert "no   commands    launcher slurm without sbatch, srun, scancel, scontrol" in capsys.readouterr().out


def test_an_unknown_host_needs_the_address_of_this_machine():
    options = {"engines": {"no-such-host.invalid": 2}, "ssh_cmd": ["true"]}
    with pytest.raises(Refused, match=r"no route to host no-such-host\.invalid .*controller_ip"):
        SshHosts(options).address()


def test_the_way_to_this_machine_is_loopback():
    assert network.address_towards("127.0.0.1") == "127.0.0.1"
    assert network.interface_of("127.0.0.1").startswith("lo")
    assert network.interface_of("203.0.113.1") == ""


def test_more_ranks_than_memory_are_refused_before_anything_starts(monkeypatch):
    monkeypatch.setattr(arguments.psutil, "virtual_memory", lambda: SimpleNamespace(available=1 << 30))
    arguments.require_memory(17)
    with pytest.raises(Refused, match="1024 MiB of memory are available, but 128 more ranks need 7680"):
        arguments.require_memory(128)

"""How ranks would share memory, on machines that are made up; the errors that people met; and ranks of this machine."""

import json
from dataclasses import replace

import pytest

from mnnvl_lab import doctor
from mnnvl_lab.__main__ import main
from mnnvl_lab.doctor.places import Place, place_problems
from mnnvl_lab.doctor.sharing import FABRIC, POSIX_FD, Sharing, branch_of, obstacles, sharing_facts, sharing_notes
from mnnvl_lab.errors import Refused
from mnnvl_lab.records.provenance import Gpu, Gpus

CHANNEL = "/dev/nvidia-caps-imex-channels/channel0"
RACK = Sharing(
    fabric_attribute=(True,) * 4,
    fabric_states=("completed 3f2a-1",) * 4,
    imex_driver=True,
    imex_channels=(CHANNEL,),
    imex_readable=(CHANNEL,),
    temporary_identity="8:1",
    hostname="tray-1",
    network_namespace="net:[4026531840]",
)
HGX = replace(RACK, fabric_states=("completed",) * 4, imex_channels=(), imex_readable=())
"""NVSwitch on one host: the attribute says yes, but no GPU is in a cluster."""


@pytest.mark.parametrize(
    ("sharing", "handles"),
    [
        (RACK, FABRIC),
        (HGX, POSIX_FD),
        (replace(RACK, fabric_attribute=(True, True, True, False)), POSIX_FD),
        (replace(RACK, fabric_states=("completed 3f2a-1",) * 3 + ("in progress 3f2a-1",)), POSIX_FD),
        (Sharing(), POSIX_FD),
    ],
)
def test_the_handle_type_is_what_flashinfer_takes(sharing, handles):
    """Fabric only where every GPU has the attribute, has completed, and has a cluster's UUID."""
    assert sharing.handle_type == handles


def test_a_fabric_without_a_channel_is_an_obstacle():
    """DeepEP #487, mscclpp #467: the attribute is set, cuMemCreate is not permitted."""
    (no_file,) = obstacles(replace(RACK, imex_channels=(), imex_readable=()))
    assert "operation not permitted" in no_file
    assert "mknod" in no_file
    (closed,) = obstacles(replace(RACK, imex_readable=()))
    assert f"let this user open {CHANNEL}" in closed
    (old,) = obstacles(replace(RACK, imex_driver=False, imex_channels=(), imex_readable=()))
    assert "load a driver" in old
    assert not list(obstacles(RACK))
    assert not list(obstacles(HGX))  # file descriptors need no channel


def test_sockets_need_a_directory_that_can_be_written_and_is_short():
    (closed,) = obstacles(replace(HGX, temporary_writable=False))
    assert "set TMPDIR" in closed
    (long,) = obstacles(replace(HGX, temporary_directory="/scratch/" + "x" * 80))
    assert "a Unix socket takes at most 107" in long
    assert not list(obstacles(replace(RACK, temporary_directory="/scratch/" + "x" * 80)))


def test_the_longest_directory_still_binds(tmp_path):
    """The limit is the system's: a path of 107 bytes is bound, one of 108 is refused."""
    import os
    import socket

    for length, fits in ((107, True), (108, False)):
        with socket.socket(socket.AF_UNIX) as bound:
            path = "/tmp/" + "y" * (length - 5)
            try:
                bound.bind(path)
                os.unlink(path)
                assert fits
            except OSError:
                assert not fits


def test_notes_name_containers_peers_and_the_driver_branch():
    pairs = [(i, j) for j in range(4) for i in range(j)]
    containers, old, older = sharing_notes(HGX, driver="570.86.15", p2p=pairs)
    assert "--hostname" in containers
    assert "580 or newer" in old
    assert "615 or newer" in older
    assert sharing_notes(RACK, driver="615.10", p2p=pairs) == ()
    (unreached,) = sharing_notes(RACK, driver="615.10", p2p=pairs[1:])
    assert "GPUs 0-1 do not reach each other" in unreached


@pytest.mark.parametrize(("driver", "branch"), [("580.82.07", 580), ("615", 615), ("", None), ("none", None)])
def test_the_branch_is_the_first_number(driver, branch):
    assert branch_of(driver) == branch


def test_facts_say_why():
    facts = sharing_facts(HGX, driver="580.82.07", p2p=[(0, 1)])
    assert facts["handles"] == "POSIX file descriptor: GPUs are in no fabric cluster (completed)"
    assert facts["IMEX channels"] == "0 of 0 can be opened (driver lists them)"
    assert facts["peers"] == "0-1"
    assert facts["driver branch"] == "580"
    assert "every GPU supports them" in sharing_facts(RACK, driver="", p2p=())["handles"]


def machine(sharing):
    cards = tuple(Gpu(index=i, name="NVIDIA GB200", memory_bytes=2**37, links_up=18) for i in range(4))
    gpus = Gpus(cards=cards, driver="580.1", p2p=tuple((i, j) for j in range(4) for i in range(j)))
    return doctor.Machine(
        python="3.12.1",
        system="Linux aarch64",
        cpu="Test",
        cores=2,
        memory_bytes=2**33,
        shared_memory_bytes=2**32,
        torch="2.13.0",
        flashinfer="0.7.2",
        ipyparallel="9.2.0",
        gpus=gpus,
        visible_gpus=4,
        nvcc="/usr/bin/nvcc",
        mps="/usr/bin/nvidia-cuda-mps-control",
        kernels={"comm": "/x/comm.so", "mnnvl_moe_alltoall": "/x/m.so"},
        sharing=sharing,
    )


def test_the_report_of_a_rack_without_a_channel_refuses_the_gpu_fabrics():
    found = machine(replace(RACK, imex_channels=(), imex_readable=()))
    report = doctor.Report(machine=found, verdicts=doctor.check_fabrics(found))
    answer = json.loads(json.dumps(report.to_dict()))
    assert [answer["fabrics"][name]["usable"] for name in ("host", "shared_gpu", "nvlink")] == [True, False, False]
    assert "no IMEX channel" in answer["fabrics"]["nvlink"]["why"]
    assert answer["sharing"]["handles"].startswith("fabric")
    assert "How ranks share GPU memory" in str(report)
    assert "IMEX channels" in report._repr_html_()


def test_without_gpus_nothing_is_said_of_handles():
    found = replace(machine(Sharing()), visible_gpus=0)
    report = doctor.Report(machine=found, verdicts=doctor.check_fabrics(found))
    assert report.sharing == {}
    assert report.sharing_notes == ()
    assert "How ranks share" not in str(report)


def test_this_process_is_looked_at():
    found = doctor.read_sharing()
    assert found.hostname
    assert found.temporary_writable
    assert found.temporary_identity.count(":") == 1
    assert found.fabric_attribute == ()


class TestPlaces:
    HERE = Place(hostname="a", temporary_directory="/tmp", temporary_identity="8:1", network_namespace="net:[1]")

    def test_one_place_is_fine(self):
        assert place_problems([self.HERE] * 4) == ()

    @pytest.mark.parametrize(
        ("change", "words"),
        [
            ({"hostname": "b"}, "ranks 0 and 2 have different host names"),
            ({"temporary_identity": "9:7"}, "the exchange ends after 30 s"),
            ({"network_namespace": "net:[2]"}, "--network host"),
        ],
    )
    def test_what_differs_is_named_with_its_consequence(self, change, words):
        (problem,) = place_problems([self.HERE, self.HERE, replace(self.HERE, **change)])
        assert words in problem

    def test_ranks_of_one_machine_share_a_place(self, host_ranks):
        assert doctor.check_ranks(host_ranks) == ()


class TestKnownErrors:
    @pytest.mark.parametrize(
        ("text", "cause"),
        [
            ("call='cuMemCreate(&handle, size, &fabric_prop_, 0)' Reason=operation not permitted", "IMEX channel"),
            ("NvlinkTransport: cuMemCreate failed: 800", "IMEX channel"),
            ("[CUDA_ERROR_NOT_PERMITTED] operation not permitted in expression cuMemCreate(", "IMEX channel"),
            ("RuntimeError: pidfd_getfd(pidfd=164, fd=183) failed with errno 1: Operation not permitted.", "trace"),
            (
                "[MnnvlMemory] POSIX fd exchange via SCM_RIGHTS requires all ranks to share the same host, but got "
                "differing hostnames: ['a', 'b']",
                "different host names",
            ),
            ("[fd_exchange] timed out connecting to /tmp/cuda_fd_xchg_7_1_ab/fd.sock", "another container"),
            ("NVLink backends are not supported on EP ranks [0, 1]; see their logs for the reason", "B300"),
            ("MNNVL communicator has 2 ranks but the EP group has world_size=4", "DP group"),
            ("Not all rank allocating same size", "different sizes"),
        ],
    )
    def test_the_texts_that_people_posted_are_explained(self, text, cause):
        (error,) = doctor.explain(text)
        assert cause in error.cause
        assert error.remedy
        assert all(link.startswith("https://github.com/") for link in error.reports)

    def test_every_error_is_found_by_its_own_text(self):
        for error in doctor.KNOWN_ERRORS:
            assert error in doctor.explain(error.said)

    def test_a_text_may_span_lines_and_show_nothing_known(self):
        assert doctor.explain("cuMemCreate failed:\n  operation not permitted")
        assert doctor.explain("CUDA out of memory") == ()
        for nothing in ("", "  ", None, 3):
            with pytest.raises(Refused, match="pass what was printed"):
                doctor.explain(nothing)

    def test_the_command_explains(self, capsys):
        assert main(["doctor", "--explain", "cuMemCreate: operation not permitted"]) == 0
        assert "remedy:" in capsys.readouterr().out
        assert main(["doctor", "--explain", "CUDA out of memory"]) == 1
        assert "Not among the known errors" in capsys.readouterr().out
        assert main(["doctor", "--explain", "pidfd_getfd failed", "--json"]) == 0
        assert json.loads(capsys.readouterr().out)[0]["reports"]
        assert main(["doctor", "--explain", ""]) == 2

"""The doctor's verdicts on machines that are made up, and its report on this one."""

import json
from dataclasses import replace

import pytest

from mnnvl_lab import doctor
from mnnvl_lab.records.provenance import Gpu, Gpus

GIB = 2**30
PAIR = Gpus(
    cards=tuple(Gpu(index=i, name="NVIDIA H100", memory_bytes=80 * GIB, links_up=18) for i in range(2)),
    driver="580.1",
    p2p=((0, 1),),
)
COMPLETE = doctor.Machine(
    python="3.12.1",
    system="Linux x86_64",
    cpu="Test Processor",
    cores=2,
    memory_bytes=8 * GIB,
    shared_memory_bytes=4 * GIB,
    torch="2.13.0",
    flashinfer="0.7.2",
    ipyparallel="9.2.0",
    gpus=PAIR,
    visible_gpus=2,
    nvcc="/usr/bin/nvcc",
    mps="/usr/bin/nvidia-cuda-mps-control",
    kernels={"comm": "/x/comm.so", "mnnvl_moe_alltoall": "/x/m.so"},
)


def verdicts(**change):
    return {verdict.fabric: verdict for verdict in doctor.check_fabrics(replace(COMPLETE, **change))}


class TestVerdicts:
    def test_a_complete_machine_carries_every_fabric(self):
        assert all(verdict.usable for verdict in verdicts().values())
        assert verdicts()["nvlink"].why == "a rank on each of 2 x NVIDIA H100: NVLink x 18, 1 of 1 pairs peer to peer"

    @pytest.mark.parametrize(
        ("change", "unusable", "words"),
        [
            ({"gpus": Gpus(why_none="no driver"), "visible_gpus": 0}, {"shared_gpu", "nvlink"}, "no driver"),
            ({"visible_gpus": 0}, {"shared_gpu", "nvlink"}, "CUDA_VISIBLE_DEVICES"),
            ({"visible_gpus": 1}, {"nvlink"}, "needs two"),
            ({"gpus": replace(PAIR, p2p=())}, {"nvlink"}, "no two GPUs"),
            ({"mps": ""}, {"shared_gpu"}, "mps-control"),
            ({"flashinfer": ""}, {"shared_gpu", "nvlink"}, "pip install flashinfer-python"),
            ({"torch": "2.13.0+cpu"}, {"shared_gpu", "nvlink"}, "built without CUDA"),
            ({"nvcc": "", "kernels": {}}, {"shared_gpu", "nvlink"}, "no nvcc"),
            ({"torch": ""}, {"host", "shared_gpu", "nvlink"}, "pip install torch"),
        ],
    )
    def test_each_lack_stops_the_fabrics_that_need_it(self, change, unusable, words):
        judged = verdicts(**change)
        assert {name for name, verdict in judged.items() if not verdict.usable} == unusable
        assert all(words in judged[name].why for name in unusable)

    def test_kernels_not_yet_compiled_are_a_note_where_they_can_be(self):
        verdict = verdicts(kernels={})["nvlink"]
        assert verdict.usable
        assert "compile mnnvl_moe_alltoall, comm before they start" in verdict.notes[0]

    def test_little_shared_memory_is_a_note(self):
        verdict = verdicts(shared_memory_bytes=64 * 2**20)["host"]
        assert verdict.usable
        assert "64 MiB" in verdict.notes[0]
        assert not verdicts(shared_memory_bytes=None)["host"].notes


class TestReport:
    REPORT = doctor.Report(machine=COMPLETE, verdicts=doctor.check_fabrics(replace(COMPLETE, mps="")))

    def test_text_answers_for_each_fabric(self):
        text = str(self.REPORT)
        assert "yes  host" in text
        assert "no   shared_gpu" in text
        assert "2 x NVIDIA H100" in text

    def test_json_is_plain_and_complete(self):
        found = json.loads(json.dumps(self.REPORT.to_dict()))
        assert {name: entry["usable"] for name, entry in found["fabrics"].items()} == {
            "host": True,
            "shared_gpu": False,
            "nvlink": True,
        }
        assert found["facts"]["driver"] == "580.1"

    def test_html_escapes_what_the_machine_says(self):
        report = replace(self.REPORT, machine=replace(COMPLETE, cpu="<b>&"))
        assert "&lt;b&gt;&amp;" in report._repr_html_()


def test_this_machine_runs_the_host_fabric():
    report = doctor.check_machine()
    assert report.to_dict()["fabrics"]["host"]["usable"]
    assert report.machine.cores >= 1
    assert report.machine.memory_bytes > GIB


def test_compiled_kernels_are_found_in_the_cache(tmp_path, monkeypatch):
    from mnnvl_lab.records.provenance import version_of

    folder = tmp_path / ".cache" / "flashinfer" / (version_of("flashinfer-python") or "0") / "90a" / "cached_ops"
    (folder / "comm").mkdir(parents=True)
    (folder / "comm" / "comm.so").touch()
    monkeypatch.setenv("FLASHINFER_WORKSPACE_BASE", str(tmp_path))
    assert doctor.read_machine().kernels["comm"].endswith("comm.so")

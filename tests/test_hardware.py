"""The table of GPUs."""

import math
from dataclasses import replace

import pytest

from mnnvl_lab.errors import Refused
from mnnvl_lab.hardware import GPUS, domain_problems, require_gpu
from mnnvl_lab.layout import Layout


def test_the_table_has_the_gpus_that_plans_are_for():
    assert set(GPUS) == {"h100", "h200", "h20", "b200", "b300", "gb200", "gb300"}


@pytest.mark.parametrize(
    ("name", "multiprocessors", "memory_gib", "nvlink", "hbm"),
    [
        ("h100", 132, 80, 450, 3350),
        ("h200", 132, 140, 450, 4800),
        ("b200", 148, 179, 900, 8000),
        ("gb200", 152, 185, 900, 8000),
        ("h20", 78, 96, 450, 4000),
        ("b300", 148, 269, 900, 8000),
        ("gb300", 152, 278, 900, 8000),
    ],
)
def test_numbers_of_the_datasheets(name, multiprocessors, memory_gib, nvlink, hbm):
    gpu = require_gpu(name)
    assert (gpu.multiprocessors, round(gpu.memory_bytes / 2**30)) == (multiprocessors, memory_gib)
    assert (gpu.nvlink_gigabytes_per_s, gpu.hbm_gigabytes_per_s) == (nvlink, hbm)
    assert gpu.source


def test_an_unknown_gpu_is_refused_with_the_nearest():
    with pytest.raises(Refused, match=r"'H-100'.*did you mean h100.*h200"):
        require_gpu("H-100")


def test_a_gpu_is_found_in_any_case_and_may_be_one():
    assert require_gpu("H100") is require_gpu(GPUS["h100"]) is GPUS["h100"]
    with pytest.raises(Refused, match="a name is a string"):
        require_gpu(None)


@pytest.mark.parametrize(
    ("gpu", "layout", "domains"),
    [
        ("h100", Layout(dp=8), 1),
        ("h100", Layout(dp=16), 2),
        ("b200", Layout(tp=4, dp=4), 2),
        ("h200", Layout(dp=16, gpus_per_node=16), 2),  # NVLink domains of HGX have eight GPUs, whatever shares a host
        ("h100", Layout(dp=8, gpus_per_node=4), 2),  # and end at the node
        ("h100", Layout(tp=8, pp=2), 1),  # a stage per node
        ("h100", Layout(tp=4, dp=2, pp=2), 2),  # stages that interleave: DP is the slowest axis
        ("h100", Layout(dp=4, pp=3), 2),
        ("gb200", Layout(dp=72, gpus_per_node=4), 1),
        ("gb200", Layout(dp=73), 2),
        ("gb200", Layout(tp=4, dp=36), 2),
    ],
)
def test_an_ep_group_lies_in_one_nvlink_domain_or_is_refused(gpu, layout, domains):
    size = 72 if gpu == "gb200" else min(8, layout.gpus_per_node)
    assert max(len({rank // size for rank in group}) for group in layout.groups("ep")) == domains
    problems = list(domain_problems(layout, GPUS[gpu]))
    assert len(problems) == (domains > 1)
    assert all(f"spans {domains} NVLink domains of {size} GPUs" in problem for problem in problems)


def test_the_refusal_of_a_second_node_gives_reason_and_remedies():
    (problem,) = domain_problems(Layout(tp=4, dp=4), GPUS["b200"])
    for words in ("16 ranks", "B200 SXM", "one node, where NVLink ends", "at most 8", "gb200", "allgather"):
        assert words in problem
    (problem,) = domain_problems(Layout(dp=144), GPUS["gb200"])
    assert "one NVLink domain (MNNVL)" in problem
    assert "plan for" not in problem


def test_what_is_no_layout_or_gpu_is_refused():
    with pytest.raises(Refused, match="pass a Layout"):
        list(domain_problems("tp2", GPUS["h100"]))
    with pytest.raises(Refused, match="pass a Gpu"):
        list(domain_problems(Layout(), "h100"))


@pytest.mark.parametrize("field", ["multiprocessors", "memory_bytes", "nvlink_domain", "hbm_gigabytes_per_s"])
@pytest.mark.parametrize("value", [0, -1, math.nan, math.inf, "8", None])
def test_a_gpu_of_impossible_numbers_is_refused(field, value):
    with pytest.raises(Refused, match=f"{field} is"):
        replace(GPUS["h100"], **{field: value})

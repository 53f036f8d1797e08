"""The table of GPUs."""

import pytest

from mnnvl_lab.errors import Refused
from mnnvl_lab.hardware import GPUS, require_gpu


def test_the_table_has_the_gpus_that_plans_are_for():
    assert set(GPUS) == {"h100", "h200", "b200", "gb200"}


@pytest.mark.parametrize(
    ("name", "multiprocessors", "memory_gib", "nvlink", "hbm"),
    [
        ("h100", 132, 80, 450, 3350),
        ("h200", 132, 140, 450, 4800),
        ("b200", 148, 179, 900, 8000),
        ("gb200", 152, 185, 900, 8000),
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

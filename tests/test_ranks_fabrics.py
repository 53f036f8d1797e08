"""Ranks on GPUs: which device each has, its collectives, and the MPS daemon that is there only while it is needed."""

import shutil

import psutil
import pytest

from mnnvl_lab.hardware import count_visible_gpus
from mnnvl_lab.layout import Layout
from mnnvl_lab.processes.ownership import alive
from mnnvl_lab.ranks import Ranks
from mnnvl_lab.ranks.mps import CONTROL
from tests import ranks_helpers as on

GPUS = count_visible_gpus()

pytestmark = pytest.mark.gpu


def mps_processes():
    found = [process for process in psutil.process_iter() if process.name().startswith("nvidia-cuda-mps")]
    return [process.pid for process in found if alive(process)]  # the dead wait for a parent that is not ours


@pytest.mark.skipif(GPUS < 2, reason=f"nvlink needs 2 GPUs, {GPUS} visible")
def test_on_nvlink_each_rank_has_a_gpu_and_nccl():
    with Ranks(Layout(tp=2), fabric="nvlink") as ranks:
        assert ranks.run(on.sum_on_device) == [("cuda:0", 1.0), ("cuda:1", 1.0)]
        ranks.kill(1)
        assert ranks.run(on.sum_on_device) == [("cuda:0", 1.0), ("cuda:1", 1.0)]


@pytest.mark.skipif(GPUS < 1 or not shutil.which(CONTROL), reason=f"shared_gpu needs a GPU and {CONTROL}")
def test_on_a_shared_gpu_the_share_follows_the_layout():
    before = mps_processes()
    with Ranks(Layout(tp=2 * GPUS), fabric="shared_gpu") as ranks:
        expected = [(f"cuda:{rank // 2}", 64.0, "50") for rank in range(2 * GPUS)]
        assert ranks.run(on.multiply_on_device) == expected
        pids = ranks.run(on.pid)
        ranks.use(Layout(dp=2 * GPUS))
        assert ranks.run(on.pid) == pids
        ranks.use(Layout(dp=4 * GPUS))
        assert {share for *_, share in ranks.run(on.multiply_on_device)} == {"25"}
    assert mps_processes() == before

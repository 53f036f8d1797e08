"""Ranks on GPUs: which device each has, its collectives, and the MPS daemon that is there only while it is needed."""

import shutil

import psutil
import pytest

from mnnvl_lab.errors import Hang
from mnnvl_lab.faults import hangs
from mnnvl_lab.hardware import count_visible_gpus
from mnnvl_lab.layout import Layout
from mnnvl_lab.measure.run import measure_point
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


needs_sharing = pytest.mark.skipif(
    GPUS < 1 or not shutil.which(CONTROL), reason=f"shared_gpu needs a GPU and {CONTROL}"
)


@needs_sharing
@pytest.mark.parametrize("mode", ["one_sided", "two_sided"])
def test_on_a_shared_gpu_ranks_go_on_after_peers_were_killed_beside_spinning_kernels(mode):
    layout = Layout(dp=2)
    point = hangs.small_point(layout, mode=mode)
    with Ranks(layout, fabric="shared_gpu") as ranks:
        for phase in ("dispatch", "combine"):
            with pytest.raises(Hang):
                ranks.run(hangs.stay_away, point, culprits=1, phase=phase, round_limit_s=3)
            assert len(ranks.run(measure_point, point)) == 2


@needs_sharing
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
    assert set(mps_processes()) <= set(before)  # another program's daemon may have ended meanwhile

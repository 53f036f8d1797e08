"""GPUs of ranks and their MPS daemon, without a GPU: arithmetic, and a daemon that only pretends."""

import os
import stat
import time

import psutil
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mnnvl_lab.errors import RankError, Refused
from mnnvl_lab.hardware import comes_to_rest, visible
from mnnvl_lab.layout import Layout
from mnnvl_lab.ranks.gpu_placement import nearest_layout, place
from mnnvl_lab.ranks.group import Group
from mnnvl_lab.ranks.mps import GpuSharing, MpsDaemon

FOUR = Layout(tp=2, dp=2)
UUIDS = ["GPU-aa1", "GPU-aa2", "GPU-bb3"]


class Stream:
    """Has work for so many more questions; None for ever."""

    def __init__(self, questions):
        self.questions = questions

    def query(self):
        if self.questions is None:
            return False
        self.questions -= 1
        return self.questions < 0


@pytest.mark.parametrize(("questions", "rests"), [(0, True), (5, True), (None, False)])
def test_a_gpu_comes_to_rest_or_not(monkeypatch, questions, rests):
    torch = pytest.importorskip("torch")
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device: Stream(questions))
    assert comes_to_rest(torch.device("cuda", 0), limit_s=0.05) is rests


def test_a_lost_gpu_does_not_come_to_rest(monkeypatch):
    torch = pytest.importorskip("torch")

    def lost(device):
        raise torch.AcceleratorError("CUDA error: an illegal memory access was encountered")

    monkeypatch.setattr(torch.cuda, "current_stream", lost)
    assert not comes_to_rest(torch.device("cuda", 0))


def test_on_host_nobody_has_a_gpu():
    placement = place(FOUR, fabric="host", visible_gpus=8)
    assert [placement.gpu(rank) for rank in range(4)] == [None] * 4


def test_on_nvlink_each_rank_has_its_own_gpu():
    placement = place(FOUR, fabric="nvlink", visible_gpus=8)
    assert (placement.gpus, placement.ranks_per_gpu) == ((0, 1, 2, 3), 1)


@pytest.mark.parametrize(
    ("ranks", "gpus", "expected", "per_gpu"),
    [(4, 2, (0, 0, 1, 1), 2), (8, 2, (0, 0, 0, 0, 1, 1, 1, 1), 4), (4, 1, (0, 0, 0, 0), 4), (3, 2, (0, 0, 1), 2)],
)
def test_on_shared_gpu_ranks_lie_in_contiguous_blocks(ranks, gpus, expected, per_gpu):
    placement = place(Layout(dp=ranks), fabric="shared_gpu", visible_gpus=gpus)
    assert (placement.gpus, placement.ranks_per_gpu) == (expected, per_gpu)


@pytest.mark.parametrize(
    ("fabric", "gpus", "words"),
    [
        (
            "nvlink",
            2,
            r"4 ranks .* on 2 visible GPUs: fabric nvlink needs one GPU per rank; .*TP 2 x DP 1 x .*shared_gpu",
        ),
        ("nvlink", 0, r"4 ranks .* on 0 visible GPUs: fabric nvlink needs one GPU per rank; fabric host needs no GPU"),
        (
            "shared_gpu",
            0,
            r"4 ranks .* on 0 visible GPUs: fabric shared_gpu takes at most 48 ranks per GPU; fabric host",
        ),
        ("wool", 1, "host, nvlink, shared_gpu"),
    ],
)
def test_what_the_machine_cannot_carry_is_refused(fabric, gpus, words):
    with pytest.raises(Refused, match=words):
        place(FOUR, fabric=fabric, visible_gpus=gpus)


sizes = st.integers(1, 6)


@given(tp=sizes, dp=sizes, pcp=sizes, pp=sizes, capacity=st.integers(1, 64))
def test_the_nearest_layout_fits_divides_and_is_the_largest(tp, dp, pcp, pp, capacity):
    layout = Layout(tp=tp, dp=dp, pcp=pcp, pp=pp)
    nearest = nearest_layout(layout, capacity=capacity)
    assert nearest.world_size <= capacity
    for name in ("tp", "dp", "pcp", "pp"):
        assert getattr(layout, name) % getattr(nearest, name) == 0
    if layout.world_size <= capacity:
        assert nearest == layout
    elif dp % 2 == 0 and layout.world_size // 2 <= capacity:
        assert nearest.world_size >= layout.world_size // 2


@pytest.mark.parametrize(
    ("listed", "expected"),
    [
        (None, UUIDS),
        ("", []),
        ("2,0", ["GPU-bb3", "GPU-aa1"]),
        ("1,-1,0", ["GPU-aa2"]),
        ("0,7,1", ["GPU-aa1"]),
        ("GPU-bb,GPU-aa2", ["GPU-bb3", "GPU-aa2"]),
        ("GPU-aa", []),  # ambiguous
    ],
)
def test_visible_gpus_are_those_that_cuda_would_show(listed, expected):
    assert visible(UUIDS, listed) == expected


def test_nccl_is_refused_where_ranks_share_a_gpu():
    group = Group(name="ep", ranks=(0, 1), member=0, fabric="shared_gpu")
    with pytest.raises(Refused, match="NCCL on fabric shared_gpu: it refuses two ranks on one GPU"):
        group.device_group  # noqa: B018 - a property


@pytest.fixture
def daemon_program(tmp_path, monkeypatch):
    """A stand-in for NVIDIA's daemon: stays in the background with -d, and says what it was told."""
    path = tmp_path / "bin" / "nvidia-cuda-mps-control"
    path.parent.mkdir()
    monkeypatch.setenv("PATH", f"{path.parent}:{os.environ['PATH']}")

    def write(*, quits: bool = True, starts: bool = True):
        trap = "trap 'exit 0' TERM" if quits else "trap '' TERM"
        path.write_text(
            "#!/bin/bash\n"
            f'if [ "$1" = -d ]; then {"" if starts else "echo no driver >&2; exit 1"}\n'
            f'  ( {trap}; echo $BASHPID > "$CUDA_MPS_PIPE_DIRECTORY/pid"; while true; do sleep 0.05; done ) '
            "> /dev/null 2>&1 < /dev/null &\n"
            '  while [ ! -s "$CUDA_MPS_PIPE_DIRECTORY/pid" ]; do sleep 0.01; done\n'
            f'else cat > {tmp_path}/told; kill "$(cat "$CUDA_MPS_PIPE_DIRECTORY/pid")"; fi\n'
        )
        path.chmod(0o755)
        return tmp_path / "told"

    return write


def test_the_daemon_has_private_directories_and_a_share_for_each_rank(daemon_program):
    told = daemon_program()
    with MpsDaemon(ranks_per_gpu=3) as daemon:
        [process] = daemon.processes
        assert daemon.env["CUDA_MPS_ACTIVE_THREAD_PERCENTAGE"] == "33"
        for name in ("CUDA_MPS_PIPE_DIRECTORY", "CUDA_MPS_LOG_DIRECTORY"):
            assert stat.S_IMODE(os.stat(daemon.env[name]).st_mode) == 0o700
        assert process.environ()["CUDA_MPS_PIPE_DIRECTORY"] == daemon.env["CUDA_MPS_PIPE_DIRECTORY"]
    assert told.read_text().startswith("quit")
    assert not psutil.pid_exists(process.pid) or process.status() == psutil.STATUS_ZOMBIE
    assert not daemon.directory.exists()


def test_a_daemon_that_does_not_quit_is_killed(daemon_program):
    daemon_program(quits=False)
    daemon = MpsDaemon(ranks_per_gpu=2)
    [process] = daemon.processes
    start = time.monotonic()
    daemon.close()
    daemon.close()  # idempotent
    assert time.monotonic() - start < 10
    assert not psutil.pid_exists(process.pid) or process.status() == psutil.STATUS_ZOMBIE
    assert not daemon.directory.exists()


def test_a_daemon_that_does_not_start_says_why(daemon_program):
    daemon_program(starts=False)
    with pytest.raises(RankError, match="exit code 1") as caught:
        MpsDaemon(ranks_per_gpu=2)
    assert "no driver" in caught.value.report


def test_without_the_daemon_sharing_is_refused(monkeypatch, tmp_path):
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(Refused, match="nvidia-cuda-mps-control is not on PATH"):
        MpsDaemon(ranks_per_gpu=2)


class Guard:
    """What the reaper is told: of a directory before it exists, of the daemon's processes once they run."""

    def __init__(self):
        self.told = []

    def watch(self, processes=(), *, directories=(), marked=()):
        if directories:
            assert [directory.path.exists() for directory in directories] == [False]
            assert [name for name, _ in marked] == ["CUDA_MPS_PIPE_DIRECTORY"]
        self.told.append(("before" if directories else "after", list(processes)))


def test_another_share_is_another_daemon(daemon_program):
    daemon_program()
    guard = Guard()
    sharing = GpuSharing(guard)
    assert sharing.env == {}
    sharing.change(4)
    first = sharing.env
    assert sharing.suits(4)
    assert not sharing.suits(2)
    sharing.change(2)
    assert first["CUDA_MPS_ACTIVE_THREAD_PERCENTAGE"] == "25"
    assert sharing.env["CUDA_MPS_ACTIVE_THREAD_PERCENTAGE"] == "50"
    assert sharing.env["CUDA_MPS_PIPE_DIRECTORY"] != first["CUDA_MPS_PIPE_DIRECTORY"]
    assert [kind for kind, _ in guard.told] == ["before", "after"] * 2
    assert all(len(processes) == 1 for kind, processes in guard.told if kind == "after")
    for process in sharing._processes:
        process.kill()
        process.wait(5)
    assert not sharing.suits(2)  # it died: the next layout starts another
    sharing.close()

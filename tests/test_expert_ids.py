"""Expert ids out of range: the kernel's own arithmetic, truncating as C does, and what a refusal says of it."""

import ctypes
import re
import shutil
import subprocess
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch

from mnnvl_lab.exchange import Batch, Exchange
from mnnvl_lab.layout import Layout, expert_owner, expert_range
from mnnvl_lab.transport.validation import batch_problem, ids_problem, kernel_target

SHAPES = [(experts, ep_size) for ep_size in range(1, 9) for experts in (*range(ep_size, 3 * ep_size + 2), 256, 384)]


def exchange(experts, ep_size, mode="one_sided"):
    return Exchange(mode=mode, layout=Layout(dp=ep_size), max_tokens=8, hidden=64, experts=experts, top_k=2)


@pytest.fixture(scope="module")
def compiled(tmp_path_factory):
    """`compute_target_rank_id` cut out of the installed FlashInfer and compiled for the host."""
    installed, compiler = find_spec("flashinfer"), shutil.which("c++")
    if installed is None or compiler is None:
        pytest.skip("needs FlashInfer's sources and a C++ compiler")
    (source,) = Path(installed.submodule_search_locations[0]).glob("data/csrc/**/moeAlltoAllKernels.cu")
    function = re.search(
        r"__device__ __forceinline__ (int compute_target_rank_id\(.*?\n}\n)", source.read_text(), re.DOTALL
    )
    path = tmp_path_factory.mktemp("kernel")
    (path / "target.cpp").write_text(f'extern "C" {function.group(1)}')
    subprocess.run([compiler, "-shared", "-fPIC", "-o", path / "target.so", path / "target.cpp"], check=True)
    return ctypes.CDLL(str(path / "target.so")).compute_target_rank_id


@pytest.mark.parametrize(("experts", "ep_size"), SHAPES)
def test_targets_are_those_of_the_installed_kernel(compiled, experts, ep_size):
    base, remainder = divmod(experts, ep_size)
    for expert_id in (*range(-3 * experts, 3 * experts), -(2**31), 2**31 - 1):
        expected = compiled(expert_id, base, remainder)
        assert kernel_target(expert_id, experts=experts, ep_size=ep_size) == expected, expert_id


@pytest.mark.parametrize(("experts", "ep_size"), SHAPES)
def test_ids_in_range_go_to_their_owner_and_those_above_to_no_rank(experts, ep_size):
    for expert_id in range(experts):
        owner = expert_owner([expert_id], experts=experts, ep_size=ep_size)[0]
        assert kernel_target(expert_id, experts=experts, ep_size=ep_size) == owner
    assert kernel_target(experts, experts=experts, ep_size=ep_size) == ep_size


@pytest.mark.parametrize(("experts", "ep_size"), SHAPES)
def test_negative_ids_go_to_rank_0_down_to_its_share_and_then_to_no_rank(experts, ep_size):
    share = len(expert_range(experts=experts, ep_size=ep_size, ep_rank=0))
    to_rank_0 = [i for i in range(-2 * share, 0) if kernel_target(i, experts=experts, ep_size=ep_size) == 0]
    assert to_rank_0 == list(range(-share + 1, 0))
    assert kernel_target(-share, experts=experts, ep_size=ep_size) == -1


@pytest.mark.parametrize(
    ("experts", "ep_size", "mode", "low", "high", "says"),
    [
        (16, 4, "one_sided", -1, 15, "-1 / 4 is 0 in C, which truncates, so they would send such choices to ep_rank 0"),
        (16, 4, "two_sided", -3, 2, "-3 / 4 is 0 in C, which truncates, so they would send such choices to ep_rank 0"),
        (18, 4, "one_sided", -4, 2, "-4 / 5 is 0 in C, which truncates, so they would send such choices to ep_rank 0"),
        (18, 4, "one_sided", -5, 2, "id -5 gives target rank -1 of 4, so they would write through a wild pointer"),
        (16, 4, "two_sided", -4, 2, "id -4 gives target rank -1 of 4, so they would drop the choice without a word"),
        (4, 4, "one_sided", -1, 2, "id -1 gives target rank -1 of 4, so they would write through a wild pointer"),
        (16, 4, "one_sided", -1, 16, "id 16 gives target rank 4 of 4, so they would write through a wild pointer"),
        (16, 4, "two_sided", 0, 99, "id 99 gives target rank 24 of 4, so they would drop the choice without a word"),
    ],
)
def test_a_refusal_says_what_the_kernels_would_do(experts, ep_size, mode, low, high, says):
    problem = ids_problem(exchange(experts, ep_size, mode), low, high)
    assert problem.startswith(f"expert ids span {low} to {high}: they must lie in [0, {experts}) (the kernels do not")
    assert says in problem
    assert problem.endswith("leave tokens that only pad out of the batch, and remap ids to physical experts first")


def test_modes_without_a_kernel_of_flashinfer_blame_none():
    assert "kernels" not in ids_problem(exchange(16, 4, "all_to_all"), -1, 15)


def test_padding_in_a_batch_is_refused_with_that_reason():
    ids = torch.tensor([[0, 5], [-1, -1]], dtype=torch.int32)
    rows = torch.zeros(2, 64, dtype=torch.bfloat16)
    batch = Batch(payloads=(rows,), experts_TK=ids, weights_TK=torch.zeros(2, 2), runtime_max_tokens=2)
    assert "to ep_rank 0 without a word" in batch_problem(exchange(16, 4), batch, ep_rank=1)
    assert batch_problem(exchange(16, 4), Batch(**vars(batch) | {"experts_TK": ids.clamp(min=0)}), ep_rank=1) is None

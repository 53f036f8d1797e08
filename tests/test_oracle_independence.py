"""The oracle and the transports share no arithmetic: a mistake in one must show in the other."""

import ast
import re
from importlib.util import find_spec
from itertools import chain
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest
import torch

from mnnvl_lab.layout import expert_owner
from mnnvl_lab.measure.expected import rounded_to_e4m3
from mnnvl_lab.oracle import kernel_rules, reduce_slots
from mnnvl_lab.transport.base import as_e4m3
from mnnvl_lab.transport.host.combine_sum import kernel_sum

ROOT = Path(__file__).parents[1]
INTERFACE = {"mnnvl_lab.transport", "mnnvl_lab.exchange"}  # batches and what is received: data without code
TOP_K = (1, 2, 4, 6, 8, 10, 12, 14, 16, 18, 22)


def modules_of(folder):
    return {".".join(path.relative_to(ROOT).with_suffix("").parts) for path in (ROOT / folder).glob("*.py")}


def source_of(module):
    path = ROOT.joinpath(*module.split("."))
    return path / "__init__.py" if path.is_dir() else path.with_suffix(".py")


def imports_of(module):
    """Modules of the package that a module imports when its code runs, inside functions too."""
    tree = ast.parse(source_of(module).read_text())
    ifs = [node for node in ast.walk(tree) if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test)]
    for_types = {id(node) for block in ifs for node in ast.walk(block)}
    for node in ast.walk(tree):
        if (
            isinstance(node, ast.ImportFrom)
            and id(node) not in for_types
            and (node.module or "").startswith("mnnvl_lab")
        ):
            yield node.module
            inner = (f"{node.module}.{alias.name}" for alias in node.names)
            yield from (name for name in inner if source_of(name).exists())
        if isinstance(node, ast.Import) and id(node) not in for_types:
            yield from (alias.name for alias in node.names if alias.name.startswith("mnnvl_lab."))


def reached_from(*modules):
    """These modules and all that they import, directly or not."""
    found, open_ends = set(), set(modules)
    while open_ends:
        module = open_ends.pop()
        found.add(module)
        open_ends |= set(imports_of(module)) - found
    return found


def inside(modules, package):
    return {module for module in modules if module == package or module.startswith(f"{package}.")}


def test_the_search_sees_imports_of_either_kind():
    assert {"mnnvl_lab.oracle.kernel_rules", "mnnvl_lab.errors"} <= set(imports_of("mnnvl_lab.oracle.oracle"))
    assert "mnnvl_lab.faults.broken_protocols" in set(imports_of("mnnvl_lab.faults.races"))
    assert "mnnvl_lab.transport.base" not in set(imports_of("mnnvl_lab.measure.check"))


@pytest.mark.parametrize("module", sorted(modules_of("mnnvl_lab/oracle")))
def test_the_oracle_knows_no_transport(module):
    assert not inside(reached_from(module), "mnnvl_lab.transport")


def test_the_check_after_a_round_knows_no_transport_but_for_the_interface():
    assert inside(reached_from("mnnvl_lab.measure.check"), "mnnvl_lab.transport") <= INTERFACE
    assert not inside(set(imports_of("mnnvl_lab.exchange")), "mnnvl_lab.transport")


@pytest.mark.parametrize("module", sorted(modules_of("mnnvl_lab/transport")))
def test_no_transport_knows_the_oracle(module):
    reached = reached_from(module)
    assert not inside(reached, "mnnvl_lab.oracle")
    assert not inside(reached, "mnnvl_lab.measure")


def test_the_oracle_takes_owners_from_nobody_else():
    """`routing` makes the input, and so both sides have to take it from there."""
    direct = set(chain.from_iterable(map(imports_of, modules_of("mnnvl_lab/oracle") | {"mnnvl_lab.measure.check"})))
    assert {name.split(".")[1] for name in direct if "." in name} <= {"errors", "oracle", "routing", "measure"}


# Two formulations of the same thing: they must agree where both are right.


@pytest.mark.parametrize("ep_size", range(1, 9))
def test_owners_are_those_of_the_layout(ep_size):
    for experts in range(ep_size, 40):
        ids = np.arange(experts)
        ours, theirs = (f(ids, experts=experts, ep_size=ep_size) for f in (kernel_rules.owners, expert_owner))
        np.testing.assert_array_equal(ours, theirs)


class Term(str):
    """A symbol whose sum spells out its grouping."""

    def __add__(self, other):
        return Term(f"({self} {other})")


@pytest.mark.parametrize("top_k", range(1, 23))
def test_additions_are_grouped_alike(top_k):
    slots = [Term(i) for i in range(top_k)]
    assert reduce_slots(slots) == kernel_sum(slots)


def kernel_statements():
    """For each top_k the additions `acc[i] += acc[j]` of the installed FlashInfer's own source; None for its loop."""
    installed = find_spec("flashinfer")
    if installed is None:
        pytest.skip("FlashInfer is not installed")
    (source,) = Path(installed.submodule_search_locations[0]).glob("data/csrc/**/moeAlltoAllKernels.cu")
    text = source.read_text()
    body = text[text.index("void vectorized_combine_impl(") : text.index("// Epilogue: store the float accumulator")]
    branches = re.split(r"if constexpr \(TOP_K == (\d+)\)", body)[1:]
    return {
        int(top_k): re.findall(r"acc\[(\d+)\]\[j\] \+= acc\[(\d+)\]\[j\]", branch)
        for top_k, branch in zip(branches[::2], branches[1::2], strict=True)
    }


@pytest.mark.parametrize("grouped", [reduce_slots, kernel_sum])
@pytest.mark.parametrize("top_k", TOP_K)
def test_additions_are_grouped_as_the_installed_kernel_does(top_k, grouped):
    written = kernel_statements()
    acc = [Term(i) for i in range(top_k)]
    for left, right in written.get(top_k) or ([] if top_k == 1 else [(0, k) for k in range(1, top_k)]):
        acc[int(left)] = acc[int(left)] + acc[int(right)]
    assert grouped([Term(i) for i in range(top_k)]) == acc[0]
    assert (top_k in written) == (top_k not in (12, 14, 18))


def test_every_bf16_and_fp16_value_rounds_to_the_same_fp8():
    """Three ways: `ml_dtypes` (the oracle), arithmetic (the check), torch's cast (the host transport)."""
    words = np.arange(65536, dtype=np.uint16)
    values = np.concatenate([words.view(half).astype(np.float32) for half in (ml_dtypes.bfloat16, np.float16)])
    values = values[np.isfinite(values)]
    oracle = np.clip(values, -448, 448).astype(ml_dtypes.float8_e4m3fn).astype(np.float32)
    check, host = rounded_to_e4m3(torch.from_numpy(values)), as_e4m3(torch.from_numpy(values)).float()
    for ours in (check, host):
        np.testing.assert_array_equal(ours.numpy().view(np.uint32), oracle.view(np.uint32))

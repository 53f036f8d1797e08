"""Python in pages names what the package has: every import and every `lab.` attribute of a code block exists."""

import ast
import re
import textwrap
from importlib import import_module
from pathlib import Path

import pytest

import mnnvl_lab

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", *(ROOT / "docs").rglob("*.md"), *(ROOT / "data").rglob("*.md")]
BLOCK = re.compile(r"^( *)```python\n(.*?)^ *```", re.DOTALL | re.MULTILINE)


def missing(code):
    """Names of the package in `code` that do not exist."""
    tree = ast.parse(textwrap.dedent(code))
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and node.module.split(".")[0] == "mnnvl_lab":
            module = import_module(node.module)
            yield from (f"{node.module}.{name.name}" for name in node.names if not hasattr(module, name.name))
        if isinstance(node, ast.Attribute) and (names := dotted(node)) and names[0] == "lab":
            found = mnnvl_lab
            for name in names[1:]:
                if (found := getattr(found, name, None)) is None:
                    yield ".".join(names)
                    break


def dotted(node):
    """`["lab", "plots", "latency"]` of such an expression; None where a call or an index stands between."""
    names = []
    while isinstance(node, ast.Attribute):
        names.append(node.attr)
        node = node.value
    return [node.id, *reversed(names)] if isinstance(node, ast.Name) else None


BLOCKS = [
    pytest.param(block[2], id=f"{page.relative_to(ROOT)}:{number}")
    for page in PAGES
    for number, block in enumerate(BLOCK.finditer(page.read_text()))
]


@pytest.mark.parametrize("code", BLOCKS)
def test_every_name_exists(code):
    assert list(missing(code)) == []


def test_a_name_that_does_not_exist_is_seen():
    code = (
        "from mnnvl_lab import plots, recorded\nimport mnnvl_lab as lab\nlab.plots.latency(lab.nowhere, lab.plots.none)"
    )
    assert sorted(missing(code)) == ["lab.nowhere", "lab.plots.none", "mnnvl_lab.recorded"]

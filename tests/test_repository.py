"""Promises about the repository as a whole that a machine can keep."""

import ast
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "mnnvl_lab"
MODULES = sorted(PACKAGE.rglob("*.py"))
FLOW = (
    ("errors", "arguments", "checkout", "exercise", "order_statistics", "processes", "progress", "show"),
    ("layout",),
    ("model",),
    ("hardware", "routing", "need"),
    ("workspace", "limits", "bounds", "link_rates", "oracle"),
    ("planner",),
    ("ranks", "postmortem"),
    ("transport",),
    ("measure",),
    ("records",),
)
"""From the first to the last; what is not named comes after all of these."""
PURE = ("layout", "model", "routing", "workspace", "bounds", "oracle", "planner", "hardware")


def pyproject():
    return tomllib.loads((ROOT / "pyproject.toml").read_text())


def name_of(requirement):
    return re.match(r"[A-Za-z0-9_.-]+", requirement).group().lower().replace("_", "-")


def run_python(code):
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT).stdout


def test_the_conda_environment_is_this_package_at_the_tested_pins():
    environment = yaml.safe_load((ROOT / "environment.yml").read_text())
    plain = [d for d in environment["dependencies"] if isinstance(d, str)]
    (nested,) = [d["pip"] for d in environment["dependencies"] if isinstance(d, dict)]
    assert nested == ["--constraint constraints.txt", "--editable .[test]"]
    assert {name_of(d) for d in plain} == {"python", "pip"}
    minor = int(next(d for d in plain if d.startswith("python=")).removeprefix("python=3."))
    low, high = map(int, re.match(r">=3\.(\d+),<3\.(\d+)", pyproject()["project"]["requires-python"]).groups())
    assert low <= minor < high


def test_every_dependency_has_a_tested_pin():
    project = pyproject()["project"]
    pins = {name_of(line) for line in (ROOT / "constraints.txt").read_text().splitlines() if "==" in line}
    asked = {name_of(d) for d in [*project["dependencies"], *project["optional-dependencies"]["test"]]}
    assert asked <= pins


PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md")), *sorted((ROOT / "data").rglob("*.md"))]


def anchor(heading):
    """As GitHub makes it."""
    return re.sub(r"[^\w -]", "", heading).strip().lower().replace(" ", "-")


@pytest.mark.parametrize("page", PAGES, ids=lambda path: str(path.relative_to(ROOT)))
def test_what_a_page_links_to_exists(page):
    """Files and folders of the repository, and headings within a page."""
    links = re.findall(r"\]\((?!https?:|mailto:)([^)\s]+)\)", page.read_text())
    assert links or page.parent != ROOT, "the front page leads nowhere"
    for link in links:
        path, _, heading = link.partition("#")
        target = page.parent / path if path else page
        assert target.exists(), link
        assert not heading or heading in map(anchor, re.findall(r"^#+ (.*)", target.read_text(), re.MULTILINE)), link


def test_importing_the_package_starts_nothing_and_loads_little():
    heavy = {"torch", "flashinfer", "ipyparallel", "matplotlib", "numpy", "pandas"}
    code = f"import sys, threading, mnnvl_lab; print({heavy!r} & set(sys.modules), threading.active_count())"
    assert run_python(code).split() == ["set()", "1"]


def test_the_pure_half_needs_numpy_and_pandas_alone():
    heavy = {"torch", "flashinfer", "ipyparallel", "matplotlib", "pyarrow", "jupyterlab"}
    imports = "; ".join(f"import mnnvl_lab.{name}" for name in PURE)
    allowed = "{'pyarrow'}"  # pandas takes it along where it is installed
    assert run_python(f"import sys; {imports}; print({heavy!r} & set(sys.modules) - {allowed})").strip() == "set()"


def place(module):
    """Index in the flow; what is not named comes last."""
    first = module.split(".")[1] if "." in module else ""
    return next((i for i, names in enumerate(FLOW) if first in names), len(FLOW))


def imported(tree):
    """Modules of the package that are imported when the code runs, not for type checking alone."""
    checking = {
        id(node)
        for block in ast.walk(tree)
        if isinstance(block, ast.If) and ast.unparse(block.test) == "TYPE_CHECKING"
        for node in ast.walk(block)
    }
    for node in ast.walk(tree):
        if id(node) in checking:
            continue
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("mnnvl_lab."):
            yield node.module
        elif isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names if alias.name.startswith("mnnvl_lab."))


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(ROOT)))
def test_imports_point_backwards_along_the_flow(path):
    own = ".".join(path.relative_to(ROOT).with_suffix("").parts)
    if place(own) == len(FLOW):
        return
    for module in imported(ast.parse(path.read_text())):
        assert place(module) <= place(own), f"{own} imports {module}, which comes later"


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(ROOT)))
def test_modules_and_functions_stay_small(path):
    text = path.read_text()
    assert len(text.splitlines()) <= 400
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            body = [s for s in node.body if not (isinstance(s, ast.Expr) and isinstance(s.value, ast.Constant))]
            lines = body[-1].end_lineno - body[0].lineno + 1 if body else 0
            assert lines <= 40, f"{node.name} has {lines} lines"


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(ROOT)))
def test_dataclasses_are_frozen_and_keyword_only(path):
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ClassDef):
            for decorator in map(ast.unparse, node.decorator_list):
                if decorator.startswith("dataclass"):
                    fields = sum(isinstance(s, ast.AnnAssign) and "ClassVar" not in ast.unparse(s) for s in node.body)
                    assert "frozen=True" in decorator, node.name
                    assert "kw_only=True" in decorator or fields == 1, node.name


def test_nothing_names_a_machine():
    tracked = subprocess.run(["git", "ls-files", "-z"], capture_output=True, text=True, cwd=ROOT)
    if tracked.returncode:
        pytest.skip("not a checkout: no list of tracked files")
    words = re.compile(r"(^|[^\w.])/(work|root)/\w|https?://[\w.-]*(pypi|npm)", re.MULTILINE)
    for name in filter(None, tracked.stdout.split("\0")):
        path = ROOT / name
        if path.suffix in {".py", ".md", ".ipynb", ".toml", ".yml", ".txt", ".json", ""} and path.is_file():
            found = words.search(path.read_text(errors="ignore"))
            assert not found, f"{name}: {found and found.group()}"

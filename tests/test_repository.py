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
    "errors",
    "arguments",
    "progress",
    "notebook",
    "layout",
    "model",
    "hardware",
    "exchange",
    "workspace",
    "routing",
    "bounds",
    "link_rates",
    "oracle",
    "planner",
    "records",
    "datasets",
    "terms",
    "published",
    "analysis",
    "prediction",
    "placement",
    "engines",
    "serving",
    "simulate",
    "serving",
    "plots",
    "model_check",
    "processes",
    "hang",
    "ranks",
    "transport",
    "measure",
    "explorer",
    "wrong_group",
    "faults",
    "reports",
    "doctor",
    "course",
    "cli",
    "__main__",
)
"""Packages and top-level modules in the order of imports: each may import those before it, and itself."""
PURE = ("layout", "model", "routing", "workspace", "bounds", "oracle", "planner", "hardware", "exchange")
TABLES = ("records", "datasets", "analysis", "plots", "reports")
"""What only reads and writes tables: needs neither ranks nor transports nor torch."""
MOST_LINES = 400


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


TORCH_PINS = {"triton"}
"""What torch's builds for GPUs pin themselves, each to another version: here only a range."""


def test_every_dependency_has_a_tested_pin():
    project = pyproject()["project"]
    lines = (ROOT / "constraints.txt").read_text().splitlines()
    pins = {name_of(line) for line in lines if "==" in line} | TORCH_PINS
    extras = [d for extra in project["optional-dependencies"].values() for d in extra]
    asked = {name_of(d) for d in [*project["dependencies"], *extras]}
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


def part_of(module):
    """The entry of the flow to which a module belongs; "" for the package itself."""
    return module.split(".")[1] if "." in module else ""


def imported(tree):
    """Every name that an import statement binds or loads, of any form, wherever it stands, as dotted names."""
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom):
            yield from (f"{node.module}.{alias.name}" for alias in node.names)
        elif isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)


def parts_imported(tree):
    return {part_of(name) for name in imported(tree) if name.startswith("mnnvl_lab.")} - {"__version__"}


def test_the_flow_names_every_part_of_the_package():
    parts = {path.stem for path in PACKAGE.glob("*.py")} | {path.parent.name for path in PACKAGE.glob("*/__init__.py")}
    assert parts - {"__init__"} == set(FLOW)


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(ROOT)))
def test_imports_point_backwards_along_the_flow(path):
    own = part_of(".".join(path.relative_to(ROOT).with_suffix("").parts))
    if own == "__init__":
        return
    later = {part for part in parts_imported(ast.parse(path.read_text())) if FLOW.index(part) > FLOW.index(own)}
    assert not later, f"{own} imports {', '.join(sorted(later))}, which come later"


@pytest.mark.parametrize(
    "statement",
    [
        "from mnnvl_lab import plots",
        "from mnnvl_lab.plots import style",
        "import mnnvl_lab.plots.style as look",
        "def f():\n    from mnnvl_lab.plots.style import strokes",
        "if TYPE_CHECKING:\n    from mnnvl_lab import plots",
    ],
)
def test_every_form_of_import_is_seen(statement):
    assert parts_imported(ast.parse(statement)) == {"plots"}


def test_no_two_modules_import_each_other():
    graph = {module_name(path): imports_of(path) for path in MODULES}
    seen: dict[str, int] = {}

    def visit(module, trail):
        assert module not in trail, " -> ".join([*trail[trail.index(module) :], module])
        if seen.get(module):
            return
        for other in sorted(graph.get(module, ())):
            visit(other, [*trail, module])
        seen[module] = 1

    for module in graph:
        visit(module, [])


def module_name(path):
    return ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")


def imports_of(path):
    """Modules of the package that are loaded when this one is; what is for type checking or inside functions is not."""
    tree = ast.parse(path.read_text())
    late = (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda)
    skipped = {
        id(inner)
        for node in ast.walk(tree)
        if isinstance(node, late) or (isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING")
        for inner in ast.walk(node)
    }
    known = {module_name(each) for each in MODULES}
    names = set(imported(ast.Module(body=[n for n in tree.body if id(n) not in skipped], type_ignores=[])))
    own = module_name(path)
    return {next((n for n in (name, name.rpartition(".")[0]) if n in known), own) for name in names} - {
        own,
        "mnnvl_lab",
    }


@pytest.mark.parametrize("part", TABLES)
def test_what_reads_tables_needs_neither_ranks_nor_torch(part):
    code = f"import sys, mnnvl_lab.{part}; print([m for m in sys.modules if m.startswith({UNWANTED!r})])"
    assert run_python(code).strip() == "[]"


@pytest.mark.parametrize("part", ["measure", "measure.run", "ranks", "explorer", "cli.sweep"])
def test_what_starts_a_sweep_leaves_torch_to_the_ranks(part):
    """Importing it takes longer than all else that a notebook waits for."""
    assert run_python(f"import sys, mnnvl_lab.{part}; print('torch' in sys.modules)").strip() == "False"


UNWANTED = ("torch", "flashinfer", "ipyparallel", "mnnvl_lab.ranks", "mnnvl_lab.transport", "mnnvl_lab.processes")


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


def test_the_architecture_page_names_what_exists():
    page = (ROOT / "docs" / "architecture.md").read_text()
    paths = set(re.findall(r"`([a-z_/]+\.py)`", page))
    package = [str(path.relative_to(ROOT / "mnnvl_lab")) for path in (ROOT / "mnnvl_lab").rglob("*.py")]
    assert {path for path in paths if not any(f"/{each}".endswith(f"/{path}") for each in package)} == {
        path for path in paths if path.startswith("tests/") and (ROOT / path).is_file()
    }
    functions = set(re.findall(r"`(_[a-z_]+)`", page))
    assert len(functions) >= 6
    sources = "".join(path.read_text() for path in (ROOT / "mnnvl_lab").rglob("*.py"))
    assert [name for name in functions if f"def {name}(" not in sources] == []


@pytest.mark.parametrize("init", sorted((ROOT / "mnnvl_lab").rglob("__init__.py")), ids=lambda path: path.parent.name)
def test_no_public_name_is_hidden_by_a_module_that_is_imported_later(init):
    modules = {path.stem for path in init.parent.glob("*.py")}
    for node in ast.parse(init.read_text()).body:
        if isinstance(node, ast.ImportFrom):
            names = {alias.asname or alias.name for alias in node.names} & modules
            origin = (node.module or "").rpartition(".")[2]  # the package itself gives its modules
            assert origin == init.parent.name or names <= {origin}, (node.module, names)


def test_no_public_name_is_a_module_of_the_package_unless_that_module_is_meant():
    """Python sets a package's attribute to a module once it is imported: a function of that name would then be gone."""
    import mnnvl_lab as lab

    modules = {path.stem for path in (ROOT / "mnnvl_lab").iterdir() if path.suffix == ".py" or path.is_dir()}
    assert modules & set(lab._NAMES) == set()
    assert {name for name in modules & set(lab._MODULES) if lab._MODULES[name] != f"mnnvl_lab.{name}"} == set()

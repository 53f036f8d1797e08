"""What docs/security.md promises, as far as a test can see it."""

import ast
import json
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from tests.ranks_helpers import pid

ROOT = Path(__file__).parents[1]
CODE = [path for folder in ("mnnvl_lab", "tools") for path in sorted((ROOT / folder).rglob("*.py"))]
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))
EXECUTING = {"application/javascript", "application/vnd.jupyter.widget-view+json"}
# Messages between this package's own processes: signed and encrypted, or in memory of this user's, or over Gloo
# (group.py), which docs/security.md says is neither; nothing else may unpickle.
MESSAGES = {"mnnvl_lab/ranks/engine.py", "mnnvl_lab/ranks/cluster.py", "mnnvl_lab/ranks/group.py"}
UNPICKLING = {("pickle", "load"), ("pickle", "loads"), ("torch", "load"), ("pd", "read_pickle"), ("yaml", "load")}


def calls(tree):
    """Dotted names of what is called, with the keywords given."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Call):
            yield ast.unparse(node.func), {keyword.arg: ast.unparse(keyword.value) for keyword in node.keywords}


def dangers(source: str) -> list[str]:
    found = []
    for name, keywords in calls(ast.parse(source)):
        if tuple(name.rpartition(".")[::2]) in UNPICKLING or name in ("eval", "exec"):
            found.append(name)
        if keywords.get("allow_pickle") == "True" or keywords.get("shell") == "True":
            found.append(f"{name}({keywords})")
        if name in ("np.load", "numpy.load") and keywords.get("allow_pickle") != "False":
            found.append(name)
    return found


@pytest.mark.parametrize("path", CODE, ids=lambda path: str(path.relative_to(ROOT)))
def test_nothing_unpickles_or_executes_data(path):
    allowed = {"pickle.loads"} if str(path.relative_to(ROOT)) in MESSAGES else set()
    assert set(dangers(path.read_text())) <= allowed


def test_that_test_can_see_dangers():
    source = "import pickle\npickle.load(f)\nnp.load(p)\nnp.load(p, allow_pickle=False)\nsubprocess.run(c, shell=True)"
    assert [danger.split("(")[0] for danger in dangers(source)] == ["pickle.load", "np.load", "subprocess.run"]


def active_outputs(notebook: dict) -> list[str]:
    """Outputs that a browser would execute."""
    bundles = [output.get("data", {}) for cell in notebook["cells"] for output in cell.get("outputs", [])]
    html = ["".join(bundle.get("text/html", [])) for bundle in bundles]
    return [kind for bundle in bundles for kind in bundle if kind in EXECUTING] + [
        text
        for text in html
        if any(sign in text.lower() for sign in ("<script", "javascript:", "<iframe", " onerror="))
    ]


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.name)
def test_no_notebook_has_outputs_that_run_code(path):
    assert active_outputs(json.loads(path.read_text())) == []


def test_that_test_can_see_active_outputs():
    outputs = [
        {"data": {"text/html": ["<div><SCRIPT>", "alert(1)</script></div>"]}},
        {"data": {"application/javascript": "alert(1)"}},
        {"data": {"text/html": "<table></table>"}},
    ]
    assert len(active_outputs({"cells": [{"outputs": outputs}]})) == 2


def test_all_that_ranks_leave_on_disk_is_the_owner_s(host_ranks):
    """Directories 0700, so whatever lies inside is out of reach; the pipe and the keys are 0600 besides."""
    host_ranks.run(pid)
    cluster = host_ranks._cluster
    assert {stat.S_IMODE(path.stat().st_mode) for path in (cluster.run_dir, cluster.segment_dir)} == {0o700}
    pipes, keys = list(cluster.run_dir.glob("ask-*")), list(cluster.run_dir.rglob("ipcontroller-*.json"))
    assert pipes
    assert keys
    keys += [cluster.run_dir / "ipcontroller_config.py"]
    assert {stat.S_IMODE(path.stat().st_mode) for path in (*pipes, *keys)} == {0o600}


def test_jupyterlab_stays_on_loopback_with_its_token():
    makefile = (ROOT / "Makefile").read_text()
    assert "--ServerApp.ip=127.0.0.1" in makefile
    assert "token=" not in makefile
    assert "allow_origin" not in makefile


def test_the_installed_dependencies_agree():
    done = subprocess.run([sys.executable, "-m", "pip", "check"], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout

"""What the README tells a newcomer to type: the five lines as a script, the commands, `make lab` with its arguments."""

import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from mnnvl_lab.__main__ import COMMANDS
from tests.test_cli import parsers_of

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()


@pytest.mark.parametrize(
    ("lines", "leaves"),
    [
        (5, {"latency.png"}),
        (
            15,
            {"host.parquet", "course-progress.json"}
            | {f"{n}.{f}" for n in ("host", "h100") for f in ("svg", "pdf", "png")},
        ),
    ],
)
def test_the_lines_of_the_readme_leave_their_files_when_run_as_a_script(tmp_path, lines, leaves):
    codes = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
    (code,) = [code for code in codes if len([line for line in code.splitlines() if line.strip()]) == lines]
    script = tmp_path / "lines.py"
    script.write_text(code)
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    environment.pop("MPLBACKEND", None)
    done = subprocess.run(
        [sys.executable, script], cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr
    assert {path.name for path in tmp_path.iterdir()} == {"lines.py", *leaves}
    for figure in tmp_path.glob("*.png"):
        assert figure.read_bytes().startswith(b"\x89PNG")


def test_the_commands_of_the_readme_parse():
    parsers = {command.__name__.rpartition(".")[2]: next(iter(parsers_of(command))) for command in COMMANDS}
    lines = re.findall(r"^\.venv/bin/python -m mnnvl_lab (.*)$", README, re.MULTILINE)
    assert len(lines) >= 4
    for line in lines:
        name, *words = shlex.split(line, comments=True)
        parsers[name].parse_args(words)


@pytest.fixture
def make_lab(tmp_path):
    """Runs `make lab` with programs that only say what they were called with; the environment is not touched."""
    if not shutil.which("make"):
        pytest.skip("make is not installed")
    tools = tmp_path / "bin"
    tools.mkdir()
    (tmp_path / ".ready").touch()  # newer than what it depends on: nothing is installed

    def run(*words, uid=1000):
        for name, code in (("jupyter", 'printf "%s\\n" "$@"'), ("id", f"echo {uid}")):
            (tools / name).write_text(f"#!/bin/sh\n{code}\n")
            (tools / name).chmod(0o755)
        command = ["make", "--no-print-directory", "-s", "lab", f"VENV={tmp_path}", f"BIN={tools}", *words]
        environment = {**os.environ, "PATH": f"{tools}:{os.environ['PATH']}"}
        return subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=60)

    return run


def test_make_lab_passes_its_arguments_on(make_lab):
    done = make_lab("ARGS=--no-browser --port 8890")
    assert done.returncode == 0, done.stderr
    words = done.stdout.splitlines()
    assert words[0] == "lab"
    assert "--ServerApp.ip=127.0.0.1" in words
    assert words[-4:] == ["--no-browser", "--port", "8890", "notebooks/00-quickstart.ipynb"]
    assert "--allow-root" not in words


def test_make_lab_refuses_root_with_the_remedy(make_lab):
    done = make_lab(uid=0)
    assert done.returncode == 2
    assert done.stdout == ""
    assert "you are root" in done.stderr
    assert "make lab ROOT=1" in done.stderr


@pytest.mark.parametrize("words", [["ROOT=1"], ["ARGS=--allow-root"], ["ROOT=1", "ARGS=--no-browser"]])
def test_make_lab_runs_as_root_on_request(make_lab, words):
    done = make_lab(*words, uid=0)
    assert done.returncode == 0, done.stderr
    assert "--allow-root" in done.stdout.splitlines()


def test_the_readme_says_how_to_reach_a_remote_machine_and_to_save_a_figure():
    for words in ("ssh -L 8890:127.0.0.1:8890", "make lab ROOT=1", 'ARGS="--no-browser --port 8890"', "savefig"):
        assert words in README

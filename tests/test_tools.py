"""The tools' command lines: --help helps and changes nothing, bad words are refused in one line."""

import importlib
import subprocess
import sys
from pathlib import Path

import pytest

from tools.__main__ import tools
from tools.arguments import run_tool

ROOT = Path(__file__).parents[1]
TOOLS = [name for name, _ in tools()]


def files():
    """Every file that a tool may write, with the time and size of its last change."""
    kept = [path for folder in ("data", "docs", "notebooks") for path in (ROOT / folder).rglob("*")]
    return {path: (path.stat().st_mtime_ns, path.stat().st_size) for path in kept if path.is_file()}


def main_of(name):
    return importlib.import_module(f"tools.{name}").main


def stopped(name, words, capsys):
    """Exit status, stdout and stderr of a tool that stops at its words."""
    with pytest.raises(SystemExit) as stop:
        main_of(name)(words)
    return stop.value.code, *capsys.readouterr()


def test_there_are_the_tools_that_the_pages_name():
    assert {"figures", "evaluate", "latency_report", "notebooks", "predict", "record", "reliability", "soak"} <= set(
        TOOLS
    )


@pytest.mark.parametrize("name", TOOLS)
def test_help_helps_and_changes_nothing(name, capsys):
    before = files()
    status, out, err = stopped(name, ["--help"], capsys)
    assert (status, err) == (0, "")
    assert out.startswith(f"usage: python -m tools.{name}")
    assert files() == before


@pytest.mark.parametrize("name", TOOLS)
def test_unknown_words_are_refused_and_change_nothing(name, capsys):
    before = files()
    status, _, err = stopped(name, ["--never-heard-of"], capsys)
    assert status == 2
    assert f"python -m tools.{name}" in err
    assert files() == before


def test_help_of_a_tool_run_as_a_user_runs_it():
    """Once as a process: what only an import would do, or a missing `__main__`, shows here."""
    before = files()
    for words in (["tools.latency_report", "--help"], ["tools"]):
        done = subprocess.run([sys.executable, "-m", *words], cwd=ROOT, capture_output=True, text=True, timeout=100)
        assert (done.returncode, done.stderr) == (0, "")
        assert "latency_report" in done.stdout
    assert files() == before


@pytest.mark.parametrize(
    ("name", "words", "said"),
    [
        ("soak", ["--ranks", "-1"], "-1 is out of range"),
        ("soak", ["--share", "nan"], "'nan' is no number in"),
        ("soak", ["--seed", str(2**64)], "is out of range"),
        ("soak", ["--out", ""], "names no path"),
        ("soak", ["sleep"], "no campaign sleep"),
        ("reliability", ["--share", "0"], "'0' is no number in"),
        ("predict", ["x.parquet", "--tokens", "0"], "0 is out of range"),
        ("record", ["links", "--fabric", "host", "--ranks", "two", "--out", "x"], "'two' is no whole number"),
        ("evaluate", [], "FILE"),
    ],
)
def test_bad_values_are_refused_before_anything_starts(name, words, said, capsys):
    status, _, err = stopped(name, words, capsys)
    assert status == 2
    assert said in err
    assert err.count("\n") == 1


def test_what_the_package_refuses_is_one_line(capsys, tmp_path):
    for name in ("evaluate", "predict"):
        status = run_tool(main_of(name), [str(tmp_path / "nowhere.parquet")])
        err = capsys.readouterr().err
        assert status == 1
        assert "nowhere.parquet" in err or "nothing to fit" in err
        assert "Traceback" not in err


def test_arguments_carry_the_same_words_in_every_tool():
    """Tools that start ranks take `--fabric` and `--ranks`; none spells them otherwise."""
    for name in TOOLS:
        text = (ROOT / "tools" / f"{name}.py").read_text()
        assert "ArgumentParser(" not in text or name == "notebooks", f"{name} has a parser of its own"

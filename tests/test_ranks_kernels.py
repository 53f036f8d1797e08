"""Kernels that are not compiled are compiled ahead of the ranks, one after the other, and a failure says why."""

import sys
from types import SimpleNamespace

import pytest

from mnnvl_lab.errors import LabError
from mnnvl_lab.ranks import kernel_build


@pytest.fixture
def cache(tmp_path, monkeypatch):
    """FlashInfer's cache in a place of its own, with nothing compiled ahead of time."""
    monkeypatch.setenv("FLASHINFER_WORKSPACE_BASE", str(tmp_path))
    monkeypatch.setattr(kernel_build, "_ahead_of_time", lambda: iter(()))
    folder = tmp_path / ".cache" / "flashinfer" / kernel_build._version().replace("*", "0") / "90a" / "cached_ops"
    folder.mkdir(parents=True)
    return folder


def pretend(monkeypatch, code):
    """Let a short program stand for the compiler; it gets the module's name."""
    monkeypatch.setattr(kernel_build, "_command", lambda module: [sys.executable, "-c", code, module])


def test_what_is_missing_is_compiled_and_then_found(cache, monkeypatch):
    place = f"import pathlib, sys; name = sys.argv[1]; folder = pathlib.Path({str(cache)!r}) / name"
    pretend(monkeypatch, f"{place}; folder.mkdir(); (folder / (name + '.so')).touch()")
    assert kernel_build.compiled_kernels() == {}
    kernel_build.compile_missing(progress=False)
    assert kernel_build.compiled_kernels() == {name: str(cache / name / f"{name}.so") for name in kernel_build.MAKERS}


def test_what_is_there_is_not_compiled_again(cache, monkeypatch):
    for name in kernel_build.MAKERS:
        (cache / name).mkdir()
        (cache / name / f"{name}.so").touch()
    pretend(monkeypatch, "raise SystemExit('called')")
    kernel_build.compile_missing(progress=False)


def test_progress_names_the_module(cache, monkeypatch):
    shown = []
    screen = SimpleNamespace(show=shown.append, end=shown.append)
    monkeypatch.setattr("mnnvl_lab.progress._screen", lambda: screen)
    pretend(monkeypatch, "import time; time.sleep(1.2)")
    kernel_build.compile_missing()
    for number, module in enumerate(kernel_build.MAKERS, 1):
        text = f"compiling FlashInfer's kernels, which takes minutes: {module}, {number} of 2"
        assert text in shown
        assert f"{text}, 1 s" in shown
        assert f"compiled {module}" in shown
    shown.clear()
    kernel_build.compile_missing(progress=False)
    assert not shown


def test_a_failure_names_module_code_remedy_and_the_last_words(cache, monkeypatch):
    pretend(monkeypatch, "import sys; print('x' * 200000); print('nvcc not found'); sys.exit(7)")
    with pytest.raises(LabError, match=r"module mnnvl_moe_alltoall .*exit code 7.*CUDA_HOME[\s\S]*nvcc not found"):
        kernel_build.compile_missing(progress=False)


def test_the_makers_are_flashinfers_own():
    pytest.importorskip("flashinfer", reason="FlashInfer is not installed here")
    from flashinfer.jit import comm

    assert all(callable(getattr(comm, maker)) for maker in kernel_build.MAKERS.values())

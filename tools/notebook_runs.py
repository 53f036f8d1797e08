"""Run a notebook as a reader does: Run All in a fresh kernel, then its cells once more in the same kernel."""

from __future__ import annotations

import ast
import copy
import re
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

import nbformat
from jupyter_client import AsyncKernelManager
from nbclient import NotebookClient
from nbclient.exceptions import CellExecutionError, CellTimeoutError
from nbformat.v4 import new_notebook

from mnnvl_lab import errors
from tools.notebook_outputs import compare_cells, differences, scrub, stderr_of

CELL_TIMEOUT_S = 300
AGAIN_TIMEOUT_S = 60
SWITCH = 'FABRIC = "host"  # or "shared_gpu", "nvlink"'
REFUSALS = (errors.Refused, errors.RecordError)
ANSI = re.compile(r"\x1b\[[0-9;]*m")
STARTS_RANKS = re.compile(r"\b(Ranks|lab\.run)\(")
CLOSED, NEW_RANKS = "ranks are closed", "Ranks("  # what is said of closed ranks, and how to go on


def execute(path: Path, workdir: Path, fabric: str = "host") -> nbformat.NotebookNode:
    """The notebook, executed top to bottom in a fresh kernel whose current directory is `workdir`.

    Args:
        fabric: takes the place of `host` in the notebook's one switch; a notebook without one starts no ranks.

    Raises:
        ValueError: another fabric is asked for, and the notebook starts ranks without a switch.
        nbclient.exceptions.CellExecutionError: a cell raised, with its source and traceback.
    """
    notebook = read(path, fabric)
    with started(notebook, workdir) as client:
        run_all(client)
    return notebook


def read(path: Path, fabric: str = "host") -> nbformat.NotebookNode:
    """The notebook with `fabric` in its switch; see `switch`."""
    notebook = nbformat.read(path, as_version=4)
    if fabric != "host":
        switch(notebook, fabric)
    return notebook


def switch(notebook: nbformat.NotebookNode, fabric: str) -> None:
    """Put `fabric` into the line `SWITCH` of the first code cell; a notebook that starts no ranks has no such line.

    Raises:
        ValueError: the line is missing although ranks are started, or is not once in the first code cell.
    """
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    found = [number for number, cell in enumerate(code) for line in cell.source.splitlines() if line == SWITCH]
    if found == [0]:
        code[0].source = code[0].source.replace('"host"', f'"{fabric}"', 1)
    elif found or any(STARTS_RANKS.search(cell.source) for cell in code):
        raise ValueError(
            f"code cells {found or 'none'} have the line {SWITCH}: a notebook that starts ranks has it once, in its "
            "first code cell"
        )


@contextmanager
def started(
    notebook: nbformat.NotebookNode, workdir: Path, timeout_s: float = CELL_TIMEOUT_S
) -> Iterator[NotebookClient]:
    """A client with a fresh kernel in `workdir`, with a limit for each cell; the kernel ends with the block."""
    workdir.mkdir(parents=True, exist_ok=True)
    kernel = AsyncKernelManager(kernel_name="python3", transport_encryption="auto")
    where = {"metadata": {"path": str(workdir)}}
    client = NotebookClient(notebook, km=kernel, timeout=timeout_s, resources=where)
    client.reset_execution_trackers()
    with client.setup_kernel(cleanup_kc=True):  # a kernel manager that was passed in is left running otherwise
        yield client


def run_all(client: NotebookClient) -> None:
    """Every cell of the client's notebook, in order; the first that raises ends the run with its error."""
    for number, cell in enumerate(client.nb.cells):
        client.execute_cell(cell, number)


def problems(path: Path, workdir: Path) -> list[str]:
    """What a reader would stumble on, one text each: none if all is well.

    The notebook runs once, and must write nothing to stderr and have the outputs that are kept in its file. Then, in
    the same kernel, every cell runs once more, in order; and at last the cells that use `ranks`, which are closed by
    then. Those must come out the same or be refused in words that say how to go on.
    """
    kept = nbformat.read(path, as_version=4)
    notebook = copy.deepcopy(kept)
    with started(notebook, workdir) as client:
        try:
            run_all(client)
        except (CellExecutionError, CellTimeoutError) as error:
            return [f"{path.name}: {ANSI.sub('', str(error))}"]
        fresh = scrub(copy.deepcopy(notebook))
        found = [*_red(notebook), *differences(scrub(kept), fresh)]
        code = [number for number, cell in enumerate(notebook.cells) if cell.cell_type == "code"]
        closed = [number for number in code if uses_ranks(notebook.cells[number].source)]
        for order, numbers in (("run again", code), ("run again after the end", closed)):
            found += [f"{text} ({order})" for text in _again(client, numbers, fresh)]
    return [f"{path.name}, {text}" for text in found]


def _red(notebook: nbformat.NotebookNode) -> Iterator[str]:
    for number, cell in enumerate(notebook.cells):
        if written := stderr_of(cell):
            yield f"cell {number}: wrote to stderr, which a reader sees in red:\n{written}"


def uses_ranks(source: str) -> bool:
    """Whether a cell uses the name `ranks` without making it, so that they are closed once the notebook has ended."""
    tree = ast.parse(source)
    stored = {n.id for n in ast.walk(tree) if isinstance(n, ast.Name) and isinstance(n.ctx, ast.Store)}
    loaded = {n.id for n in ast.walk(tree) if isinstance(n, ast.Name) and isinstance(n.ctx, ast.Load)}
    return "ranks" in loaded - stored


def _again(client: NotebookClient, numbers: Iterable[int], fresh: nbformat.NotebookNode) -> Iterator[str]:
    """What is wrong with cells that run once more; the first that does not end is the last."""
    client.timeout, client.allow_errors = AGAIN_TIMEOUT_S, True
    for number in numbers:
        cell = client.nb.cells[number]
        try:
            client.execute_cell(cell, number)
        except CellTimeoutError:
            client.shutdown_kernel = "immediate"  # it would not answer
            yield f"cell {number}: did not end within {AGAIN_TIMEOUT_S} s"
            return
        text = _refused_or_same(cell, fresh.cells[number])
        if text:
            yield f"cell {number}: {text}"


def _refused_or_same(cell: nbformat.NotebookNode, before: nbformat.NotebookNode) -> str:
    for output in cell.outputs:
        if output.output_type == "error":
            return "" if is_refusal(output.ename, output.evalue) else f"{output.ename}: {output.evalue}"
        if CLOSED in output.get("text", "") and NEW_RANKS in output.text:  # the cell prints the refusal
            return ""
    if written := stderr_of(cell):
        return f"wrote to stderr: {written}"
    return compare_cells(before, scrub(new_notebook(cells=[copy.deepcopy(cell)])).cells[0])


def is_refusal(name: str, message: str) -> bool:
    """Whether an error is one of the package's that says how to go on; for closed ranks, that new ones are needed."""
    known = getattr(errors, name, None)
    if not isinstance(known, type) or not issubclass(known, REFUSALS):
        return False
    return CLOSED not in message or NEW_RANKS in message

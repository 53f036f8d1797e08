"""Copies of notebooks: the students' without outputs and answers, the teacher's with every answer, those run on GPUs.

The answers are the package's (`mnnvl_lab.course`); no notebook holds any. In the students' edition the paragraphs that
follow a question, which discuss its answer, are folded until the student unfolds them.
"""

from __future__ import annotations

import copy
import os
import re
from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory

import nbformat

from mnnvl_lab.course import answer, require_exercise
from tools.notebook_outputs import scrub
from tools.notebook_runs import run_all, started
from tools.site.stage import LINK

CHECK = re.compile(r'lab\.check\("([^"]+)", guess\)')
NO_GUESS = "guess = None"
NEXT_PART = re.compile(r"^(?=## |\*\*(?:Question \d+|[A-Z])\b)", re.MULTILINE)
SUMMARY = "After your guess"
CLOSING = "## The answer"
HOME = Path(__file__).resolve().parents[1] / "notebooks"


def student_edition(notebook: nbformat.NotebookNode) -> nbformat.NotebookNode:
    """A copy without outputs, with `None` for every guess, and what discusses an answer folded."""
    copied = scrub(copy.deepcopy(notebook))
    asked = False
    for cell in copied.cells:
        if cell.cell_type == "code":
            cell.outputs = []
            asked = asked or bool(CHECK.search(cell.source))
        elif asked:
            cell.source, asked = _folded_beginning(cell.source), False
        if cell.cell_type == "markdown" and cell.source.startswith(CLOSING):
            cell.source = _folded_closing(cell.source)
    return copied


def _folded_beginning(text: str) -> str:
    """The part before the next heading or question is folded; all of it where neither follows."""
    discussed, following = _split(text)
    return "\n\n".join(filter(None, [_fold(discussed), following]))


def _split(text: str) -> tuple[str, str]:
    match = NEXT_PART.search(text)
    at = match.start() if match else len(text)
    return text[:at].strip(), text[at:].strip()


def _folded_closing(text: str) -> str:
    heading, _, rest = text.partition("\n")
    answer_text, following = _split(rest)
    return "\n\n".join(filter(None, [heading, _fold(answer_text), following]))


def _fold(text: str) -> str:
    """HTML that JupyterLab folds; the blank lines let Markdown within it be rendered."""
    return f"<details><summary>{SUMMARY}</summary>\n\n{text}\n\n</details>" if text else ""


def solved(notebook: nbformat.NotebookNode) -> nbformat.NotebookNode:
    """A copy in which every guess is the package's answer.

    Raises:
        ValueError: a cell asks without `guess = None`, so there is no place for the answer.
    """
    copied = copy.deepcopy(notebook)
    for cell, number in _asking(copied):
        if NO_GUESS not in cell.source:
            raise ValueError(f"the cell of exercise {number} has no line {NO_GUESS!r}: {cell.source!r}")
        cell.source = cell.source.replace(NO_GUESS, f"guess = {written(number)}")
    return copied


def _asking(notebook: nbformat.NotebookNode) -> Iterator[tuple[nbformat.NotebookNode, str]]:
    for cell in notebook.cells:
        if cell.cell_type == "code" and (match := CHECK.search(cell.source)):
            yield cell, match[1]


def written(number: str) -> str:
    """The answer of an exercise as Python; of several right ones the first."""
    found = answer(number)
    if require_exercise(number).any_of:
        return repr(min(found))
    return "{" + ", ".join(map(repr, sorted(found))) + "}" if isinstance(found, set) and found else repr(found)


def write_student(path: Path, out: Path) -> Path:
    """The students' edition of a notebook, in the folder `out`."""
    return _write(student_edition(nbformat.read(path, as_version=4)), out / path.name)


def write_solutions(path: Path, out: Path) -> Path:
    """The solved notebook, executed in a fresh kernel and an empty folder, in the folder `out`.

    Raises:
        nbclient.exceptions.CellExecutionError: a cell raised.
        ValueError: a filled-in answer was not accepted.
    """
    notebook = solved(nbformat.read(path, as_version=4))
    with TemporaryDirectory() as workdir, started(notebook, Path(workdir)) as client:
        run_all(client)
    for cell, number in _asking(notebook):
        if "Right: " not in str(cell.outputs):
            raise ValueError(f"{path.name}: the answer of exercise {number} was not accepted: {cell.outputs}")
    return _write(scrub(notebook), out / path.name)


def _write(notebook: nbformat.NotebookNode, path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    nbformat.write(notebook, path)
    return path


def gpu_copy(notebook: nbformat.NotebookNode, ran_on: str, *, home: Path, out: Path) -> nbformat.NotebookNode:
    """A copy of a notebook that was executed on GPUs, as it came out, to be kept elsewhere.

    Args:
        ran_on: the GPUs and the day, such as `four H100s over NVLink, 2026-11-26`; named in title and first lines.
        home: folder that its links start from. out: folder in which the copy is kept.
    """
    copied = scrub(copy.deepcopy(notebook))
    for cell in copied.cells:
        if cell.cell_type == "markdown":
            cell.source = LINK.sub(lambda m: m[0].replace(m[1], os.path.relpath(home / m[1], out), 1), cell.source)
    title, _, rest = copied.cells[0].source.partition("\n")
    note = f"*Executed on {ran_on}. Nothing else differs from the notebook of that name but `FABRIC`.*"
    copied.cells[0].source = f"{title} (on GPUs)\n\n{note}\n{rest}"
    return copied


def write_gpu_copy(path: Path, ran_on: str, out: Path) -> Path:
    """Write `gpu_copy` of an executed notebook into `out`, made where missing."""
    out.mkdir(parents=True, exist_ok=True)
    copied = gpu_copy(nbformat.read(path, as_version=4), ran_on, home=HOME, out=out.resolve())
    nbformat.write(copied, out / path.name)
    return out / path.name

"""From record files to a folder with a page: the template is run, converted and, where a browser is, printed."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING

from mnnvl_lab.errors import LabError, RecordError, Refused, named_arguments
from mnnvl_lab.reports.browser import find_chromium, print_to_pdf
from mnnvl_lab.reports.evidence import NEEDS, Evidence
from mnnvl_lab.reports.machine import page_command
from mnnvl_lab.reports.numbers import numbers
from mnnvl_lab.reports.page import page_of

if TYPE_CHECKING:
    import nbformat

TEMPLATE = Path(__file__).resolve().parents[2] / "notebooks" / "template-write-up.ipynb"
NAME = "write-up"
NUMBERS = "numbers.json"
FIGURES = Path("figures")
WRITTEN = FIGURES / ".mnnvl_lab-written.json"
"""Names of the figures that a report has left here, so that a later one takes away those that it does not have."""
NEEDS_TAG = "needs-"
CELL_TIMEOUT_S = 300


@dataclass(frozen=True, kw_only=True)
class WriteUp:
    """What `report` has written.

    Attributes:
        folder: that holds it.
        html, notebook, numbers: files that are always there.
        pdf: None where it was not asked for, no browser is there, or it did not print.
        note: why there is no PDF; empty otherwise.
    """

    folder: Path
    html: Path
    notebook: Path
    numbers: Path
    pdf: Path | None
    note: str

    @property
    def files(self) -> list[Path]:
        return [path for path in (self.html, self.pdf, self.notebook, self.numbers) if path is not None]


@named_arguments
def report(
    files: Sequence[str | os.PathLike] | str | os.PathLike,
    *,
    out: str | os.PathLike,
    question: str = "",
    force: bool = False,
    pdf: bool = True,
    template: str | os.PathLike | None = None,
) -> WriteUp:
    """Write a page of record files: `out/write-up.html`, the same as PDF and as executed notebook, its numbers, and
    every figure as SVG and PDF in `out/figures/`.

    Args:
        files: record files of sweeps; memory ledgers and link rates beside them.
        out: folder; made. What is in it stays, but for files of these names and figures of an earlier report.
        question: what the page asks; the template's own where empty.
        force: write into a folder that is there already and not empty.
        pdf: print the page too, if Chromium is there (`MNNVL_LAB_CHROMIUM` names another browser).
        template: a notebook of one's own in place of `notebooks/template-write-up.ipynb`. A cell tagged `needs-skew`
            (or another name of `evidence.NEEDS`) is left out where no file has such data.

    Raises:
        RecordError: a file is not sound, or a template is missing. Refused: the folder exists, or files do not make a
            write-up. LabError: a cell of the template failed. Nothing is written in any of these.
    """
    named = [files] if isinstance(files, str | os.PathLike) else list(files)
    paths, out = [os.fspath(path) for path in named], Path(out)
    require_free(out, force=force)
    evidence = Evidence.read(paths)
    notebook = prepared(_template(template), evidence)
    with TemporaryDirectory(prefix="mnnvl_lab-report-") as made:
        folder = Path(made)
        given = {"files": [str(Path(path).resolve()) for path in paths], "out": str(folder)}
        asked = page_command(paths, str(out), question=question, template=os.fspath(template or ""))
        given |= {"command": asked, **({"question": question} if question else {})}
        executed = _executed(notebook, given, folder / f"{NAME}.ipynb")
        page = _write_page(executed, evidence, folder)
        note = _printed(page, folder) if pdf else "not asked for"
        (folder / FIGURES).mkdir(exist_ok=True)
        (folder / WRITTEN).write_text(json.dumps(sorted(path.name for path in (folder / FIGURES).iterdir())))
        _move(folder, out)
    done = {name: out / file for name, file in (("html", f"{NAME}.html"), ("notebook", f"{NAME}.ipynb"))}
    return WriteUp(folder=out, **done, numbers=out / NUMBERS, pdf=None if note else out / f"{NAME}.pdf", note=note)


def require_free(out: Path, *, force: bool) -> None:
    """Refuse a folder that is in use.

    Raises:
        Refused: it exists and is not empty, or is a file.
    """
    if out.exists() and not out.is_dir():
        raise Refused(f"{out}: is a file; name a folder")
    if not force and out.is_dir() and any(out.iterdir()):
        raise Refused(f"{out}: exists and is not empty; name another folder, or overwrite it with --force (force=True)")


def _template(path: str | os.PathLike | None) -> nbformat.NotebookNode:
    path = Path(TEMPLATE if path is None else path)
    if not path.is_file():
        raise RecordError(
            f"{path}: no such template; it comes with the source checkout: clone the repository, or name a notebook "
            "with --template"
        )
    import nbformat  # 3 s, for the grammars of the library that checks notebooks

    try:
        return nbformat.read(path, as_version=4)
    except Exception as error:
        raise RecordError(f"{path}: not a notebook ({type(error).__name__}); name another template") from None


def prepared(notebook: nbformat.NotebookNode, evidence: Evidence) -> nbformat.NotebookNode:
    """The template without the cells whose data are not there.

    Raises:
        Refused: a tag names no section.
    """
    kept = deepcopy(notebook)
    kept.cells = [cell for cell in kept.cells if all(_holds(tag, evidence) for tag in cell.metadata.get("tags", []))]
    return kept


def _holds(tag: str, evidence: Evidence) -> bool:
    section = tag.removeprefix(NEEDS_TAG)
    if section == tag:
        return True
    if section not in NEEDS:
        raise Refused(f"tag {tag!r} of the template: no such section; use {', '.join(NEEDS_TAG + n for n in NEEDS)}")
    return evidence.has(section)


def _executed(notebook: nbformat.NotebookNode, given: Mapping[str, object], path: Path) -> nbformat.NotebookNode:
    """The notebook after papermill has run it with these parameters.

    Raises:
        LabError: a cell raised.
    """
    import papermill
    from papermill.exceptions import PapermillExecutionError
    from traitlets.config import Config

    sealed = Config({"KernelManager": {"transport_encryption": "auto"}})
    quiet = {"progress_bar": False, "log_output": False, "execution_timeout": CELL_TIMEOUT_S, "config": sealed}
    try:
        return papermill.execute_notebook(
            notebook, str(path), parameters=dict(given), kernel_name="python3", cwd=str(path.parent), **quiet
        )
    except PapermillExecutionError as error:
        raise LabError(
            f"cell {error.exec_count} of the template failed: {error.ename}: {error.evalue}; its source: {error.source}"
        ) from None


def _write_page(executed: nbformat.NotebookNode, evidence: Evidence, folder: Path) -> Path:
    question = next((c.source for c in executed.cells if c.cell_type == "markdown" and c.source.startswith("# ")), NAME)
    title = question.splitlines()[0].removeprefix("# ")
    found = numbers(evidence.sources, question=title)
    (folder / NUMBERS).write_text(json.dumps(found, allow_nan=False, ensure_ascii=False, indent=1), encoding="utf-8")
    page = folder / f"{NAME}.html"
    page.write_text(page_of(executed, found, title=title), encoding="utf-8")
    return page


def _printed(page: Path, folder: Path) -> str:
    """Print the page; why not, where it could not be."""
    browser = find_chromium()
    if browser is None:
        return "no Chromium on this machine: install one, or name a browser in MNNVL_LAB_CHROMIUM"
    try:
        print_to_pdf(page, folder / f"{NAME}.pdf", browser=browser)
    except LabError as reason:
        return str(reason)
    return ""


def _figures_of_earlier(out: Path) -> list[Path]:
    """Figures that an earlier report has left in this folder; whatever else lies there is its owner's."""
    try:
        names = json.loads((out / WRITTEN).read_text())
    except (OSError, ValueError):
        return []
    listed = [name for name in names if isinstance(name, str)] if isinstance(names, list) else []
    here = {path.name: path for path in (out / FIGURES).iterdir() if path.suffix in (".svg", ".pdf")}
    return [path for name, path in here.items() if name in listed and path.is_file()]


def _move(folder: Path, out: Path) -> None:
    """Everything that was made into the folder that was asked for, the page last."""
    out.mkdir(parents=True, exist_ok=True)
    for earlier in [out / f"{NAME}.pdf", *_figures_of_earlier(out)]:  # must not stand beside this page
        earlier.unlink(missing_ok=True)
    for path in sorted(folder.rglob("*"), key=lambda path: path.suffix == ".html"):
        if path.is_file():
            target = out / path.relative_to(folder)
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.move(path, target)

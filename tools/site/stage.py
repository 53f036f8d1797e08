"""The sources of the site: copies of pages and notebooks, a home page with the navigation, and a glossary of terms."""

from __future__ import annotations

import re
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import MappingProxyType

import nbformat

from mnnvl_lab.terms import ENTRY

ROOT = Path(__file__).resolve().parents[2]
PAGES: Mapping[str, tuple[str, ...]] = MappingProxyType(
    {
        "Notebooks": ("notebooks/[0-9]*.ipynb", "notebooks/explore.ipynb"),
        "On GPUs": ("docs/gpu/*.ipynb",),
        "Pages": ("docs/*.md",),
        "Faults found": ("docs/findings/*.md",),
        "Data": ("data/README.md", "data/*/README.md"),
    }
)
"""Captions of the navigation, and the files below each. A caption without files is left out."""
FILES = ("docs/figures/*", "docs/examples/*")
LIVE = (
    "```{note}\nThis page shows the cells only: the explorer needs a running kernel. "
    "`make explore` in a clone of the repository opens it.\n```"
)
LINK = re.compile(r"\]\((?!https?:|#)([^)#\s]+)(?:#[^)\s]*)?\)")


def stage(folder: Path, root: Path = ROOT) -> list[Path]:
    """Write the sources of the site into `folder`.

    Returns:
        The pages, relative to `folder`, the home page first.

    Raises:
        FileNotFoundError: a page links to a file that the repository does not have.
    """
    sections = {caption: list(_found(root, patterns)) for caption, patterns in PAGES.items()}
    pages = [page for section in sections.values() for page in section]
    for path in [*pages, *_found(root, FILES)]:
        _copy(root, folder, path)
    (folder / "index.md").write_text((root / "README.md").read_text() + "\n" + navigation(sections, root))
    (folder / "docs" / "glossary.md").write_text(terms((root / "docs" / "glossary.md").read_text()))
    _mark_live(folder / "notebooks" / "explore.ipynb")
    for page in [Path("README.md"), *pages]:
        for linked in links(root / page):
            _copy(root, folder, (root / page.parent / linked).resolve().relative_to(root))
    return [Path("index.md"), *pages]


def navigation(sections: Mapping[str, list[Path]], root: Path = ROOT) -> str:
    """The pages in order, as lists that Sphinx makes the sidebar of."""
    lists = []
    for caption, paths in sections.items():
        entries = [f"{_title(root / path)} <{path.with_suffix('')}>" for path in paths]
        if entries:
            lists.append("\n".join(["```{toctree}", ":hidden:", f":caption: {caption}", "", *entries, "```"]))
    return "\n\n".join(lists) + "\n"


def terms(page: str) -> str:
    """The glossary's page with its entries as terms, which search lists with their meaning."""
    entries = [_term(found) for found in ENTRY.finditer(page)]
    start = next(ENTRY.finditer(page)).start()
    return "\n".join([page[:start].rstrip(), "", ":::{glossary}", *entries, ":::", ""])


def _term(found: re.Match[str]) -> str:
    full = f" ({found['full']})" if found["full"] else ""
    return f"{found['name']}{full}\n  {' '.join(found['meaning'].split())} *Source: {found['source']}.*\n"


def links(path: Path) -> list[str]:
    """Files of the repository to which a page or notebook links."""
    return list(dict.fromkeys(LINK.findall(_prose(path))))


def _prose(path: Path) -> str:
    if path.suffix != ".ipynb":
        return path.read_text()
    cells = nbformat.read(path, as_version=4).cells
    return "\n".join(cell.source for cell in cells if cell.cell_type == "markdown")


def _title(path: Path) -> str:
    """The first heading, after the number of a notebook."""
    heading = re.search(r"^# (.+)$", _prose(path), re.MULTILINE)[1].replace("`", "")
    number = re.match(r"\d+(?=-)", path.name)
    return f"{number[0]} {heading}" if number else heading


def _found(root: Path, patterns: tuple[str, ...]) -> Iterator[Path]:
    for pattern in patterns:
        yield from (path.relative_to(root) for path in sorted(root.glob(pattern)) if path.is_file())


def _copy(root: Path, folder: Path, path: Path) -> None:
    """Once; what a page links to need not be a page."""
    target = folder / path
    if target.exists() or (root / path).is_dir():
        return
    target.parent.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(root / path, target)


def _mark_live(path: Path) -> None:
    """Say on a page without outputs why it has none."""
    notebook = nbformat.read(path, as_version=4)
    notebook.cells[0].source += f"\n\n{LIVE}"
    nbformat.write(notebook, path)

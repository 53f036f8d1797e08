"""The site's sources: every page in the navigation, every term, every linked file; and the scan of what is built."""

import re
from pathlib import Path

import nbformat
import pytest

from mnnvl_lab.terms import ENTRY
from tools.site.offline import loaded_from_elsewhere
from tools.site.stage import ROOT, links, stage, terms


@pytest.fixture(scope="module")
def sources(tmp_path_factory):
    folder = tmp_path_factory.mktemp("sources")
    return folder, stage(folder)


def test_every_page_and_notebook_is_in_the_navigation(sources):
    folder, _ = sources
    shown = set(re.findall(r"<(\S+)>$", (folder / "index.md").read_text(), re.MULTILINE))
    pages = [*ROOT.glob("docs/**/*.md"), *ROOT.glob("notebooks/[0-9]*.ipynb"), ROOT / "notebooks" / "explore.ipynb"]
    assert {str(page.relative_to(ROOT).with_suffix("")) for page in pages} <= shown


def test_a_notebook_is_named_by_its_number_and_question(sources):
    folder, _ = sources
    assert "\n07 What is a latency? <notebooks/07-what-is-a-latency>\n" in (folder / "index.md").read_text()


def test_outputs_are_those_that_are_committed(sources):
    folder, pages = sources
    for page in (page for page in pages if page.suffix == ".ipynb" and page.stem != "explore"):
        assert nbformat.read(folder / page, as_version=4) == nbformat.read(ROOT / page, as_version=4)


def test_what_a_page_links_to_is_copied_beside_it(sources):
    folder, pages = sources
    for page in pages[1:]:
        for linked in links(ROOT / page):
            origin = (ROOT / page.parent / linked).resolve()
            assert origin.is_dir() or (folder / origin.relative_to(ROOT)).is_file(), (page, linked)


def test_the_glossary_keeps_every_term_meaning_and_source():
    page = (ROOT / "docs" / "glossary.md").read_text()
    made, found = terms(page), list(ENTRY.finditer(page))
    assert len(found) == page.count("*Source: ") > 50
    blocks = made.split(":::")[1].removeprefix("{glossary}").strip("\n").split("\n\n")
    assert len(blocks) == len(found)
    for block, term in zip(blocks, found, strict=True):
        name, meaning = block.split("\n", 1)
        assert name.startswith(term["name"])
        assert meaning == f"  {' '.join(term['meaning'].split())} *Source: {term['source']}.*"


LOADS = {
    '<script src="https://cdn.example/a.js"></script>': "https://cdn.example/a.js",
    '<link rel="stylesheet" href="//fonts.example/f.css">': "//fonts.example/f.css",
    '<img src="HTTP://example/x.png">': "HTTP://example/x.png",
    "<style>@import 'https://example/i.css';</style>": "https://example/i.css",
    '<p style="background: url(https://example/b.png)">': "https://example/b.png",
}


@pytest.mark.parametrize(("page", "address"), LOADS.items(), ids=LOADS.values())
def test_a_resource_from_elsewhere_is_found(page, address, tmp_path):
    (tmp_path / "page.html").write_text(page)
    assert list(loaded_from_elsewhere(tmp_path)) == [(tmp_path / "page.html", address)]


def test_a_font_of_a_style_sheet_from_elsewhere_is_found(tmp_path):
    (tmp_path / "a.css").write_text('@font-face { src: url("https://example/f.woff2") }')
    assert [address for _, address in loaded_from_elsewhere(tmp_path)] == ["https://example/f.woff2"]


def test_links_to_click_and_own_files_are_not_loaded_from_elsewhere(tmp_path: Path):
    kept = '<a href="https://example.org">there</a><img src="_images/a.png"><img src="data:image/png;base64,AA==">'
    (tmp_path / "page.html").write_text(f'{kept}<link rel="canonical" href="https://example.org/">')
    assert list(loaded_from_elsewhere(tmp_path)) == []

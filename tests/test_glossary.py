"""The glossary: complete for what readers meet, and easy to ask."""

import contextlib
import io
import json
import re
from pathlib import Path

import pytest

from mnnvl_lab.__main__ import COMMANDS, main
from mnnvl_lab.errors import Refused
from mnnvl_lab.terms import PAGE, glossary

ROOT = Path(__file__).parents[1]
ORDINARY = {"API", "CI", "CSV", "GIF", "HTML", "ID", "JSON", "OK", "PDF", "PID", "PNG", "README", "SHA256", "SVG"}
"""What any reader of English or of a shell knows."""
NAMES = {"AMD", "DIR", "EPYC", "GLM", "TMPDIR"}
"""Of makers, products and variables."""
SIGNALS = re.compile("SIG[A-Z0-9]+")
CODE = re.compile(r"```.*?```|`[^`]*`|\]\([^)]*\)|<[^>]+>", re.DOTALL)


def abbreviations(prose):
    """Words with two capital letters or more; EP8 is EP, GPUs is GPU, H100 names a product."""
    plain = CODE.sub(" ", prose)
    words = {re.sub(r"s$|\d+$", "", word) for word in re.findall(r"\b[A-Z][A-Z/]*[A-Z]\d*s?\b", plain)}
    return {word for word in words if not SIGNALS.fullmatch(word)} - ORDINARY - NAMES


def pages():
    for path in (*ROOT.glob("docs/*.md"), ROOT / "README.md"):
        if path != PAGE:
            yield path.name, path.read_text()
    for path in ROOT.glob("notebooks/*.ipynb"):
        cells = json.loads(path.read_text())["cells"]
        yield path.name, "\n".join("".join(cell["source"]) for cell in cells if cell["cell_type"] == "markdown")
    for name in (command.__name__.rpartition(".")[2] for command in COMMANDS):
        output = io.StringIO()
        with contextlib.redirect_stdout(output), pytest.raises(SystemExit):
            main([name, "--help"])
        yield f"{name} --help", re.sub(r"[A-Z_]{2,}(?=[ ,\]\n]|$)", "", output.getvalue())


def known():
    terms = glossary().terms
    return {term.name for term in terms} | {part for term in terms for part in term.name.split("/")} | EXPANDED


EXPANDED = {"HBM", "NVL", "FP", "SHA", "MB", "TB", "KB"}  # HBM3, FP8 and SHA256 lose their figures; units with a prefix
PAGES = dict(pages())


@pytest.mark.parametrize("page", PAGES)
def test_every_abbreviation_that_a_reader_meets_is_in_the_glossary(page):
    assert abbreviations(PAGES[page]) - known() == set()


def test_abbreviations_are_found_where_they_are():
    assert abbreviations("EP8 over two GPUs, `NOT_THIS`, by XYZ and SIGKILL; see the README") == {"EP", "GPU", "XYZ"}


def test_every_entry_of_the_page_is_read_whole():
    terms = glossary().terms
    assert len(terms) == PAGE.read_text().count("*Source: ")
    assert all(term.meaning.endswith(".") and "**" not in term.meaning for term in terms)
    assert [term.name.lower() for term in terms] == sorted(term.name.lower() for term in terms)


def test_a_term_is_found_in_any_case_and_shows_its_meaning_and_source():
    term = glossary("mnnvl")
    assert (term.name, term.full) == ("MNNVL", "multi-node NVLink")
    assert "MnnvlMemory" in term.meaning
    assert term.source in str(term)
    assert "<b>MNNVL (multi-node NVLink)</b>" in term._repr_html_()


def test_an_unknown_term_is_refused_with_near_ones():
    with pytest.raises(Refused, match="did you mean NVLink"):
        glossary("nvlnk")

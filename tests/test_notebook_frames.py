"""Every notebook says what it needs, how long it takes and what one learns; it closes with the answer."""

import re
from pathlib import Path

import nbformat
import pytest

from mnnvl_lab.glossary import glossary

FOLDER = Path(__file__).parents[1] / "notebooks"
LATER = {"00", "01", "02", "03", "04", "05", "13", "14"}
PATHS = [path for path in sorted(FOLDER.glob("[0-9]*.ipynb")) if path.stem[:2] not in LATER]
every_notebook = pytest.mark.parametrize("path", PATHS, ids=lambda path: path.stem)
KNOWN_TO_ALL = {"CPU", "CUDA", "GB/s", "GiB", "GPU", "LLM"}
CODE = re.compile(r"```.*?```|`[^`]*`|\]\([^)]*\)", re.DOTALL)
HEAD = re.compile(
    r"# [^\n]+\?\n\n(?P<opening>.+?)\n\n"
    r"\*\*You need\*\* (?P<need>[^\n]+) \*\*Time\*\*: \d+ minutes? to read, [^\n]+\n\n"
    r"\*\*Afterwards you can\*\*\n\n(?P<learned>(\* [^\n]+\n)+)\n"
    r"\*\*Abbreviations\*\*: [^\n]+\[glossary\]\(\.\./docs/glossary\.md\)\.",
    re.DOTALL,
)
TAIL = re.compile(
    r"## The answer\n\n(?P<answer>[^\n]+)\n\n"
    r"\*\*Three things to remember\*\*\n\n1\. [^\n]+\n2\. [^\n]+\n3\. [^\n]+\n\n"
    r"\*\*Next:\*\* (?P<next>[^\n]+)$"
)


def prose_of(path):
    return [cell.source for cell in nbformat.read(path, as_version=4).cells if cell.cell_type == "markdown"]


@every_notebook
def test_it_opens_with_the_question_and_says_what_one_needs_and_learns(path):
    head = HEAD.fullmatch(prose_of(path)[0])
    assert head
    assert "?" in head["opening"]
    assert 2 <= len(head["learned"].splitlines()) <= 6


@every_notebook
def test_it_closes_with_the_answer_three_things_and_what_comes_next(path):
    tail = TAIL.search(prose_of(path)[-1])
    assert tail
    assert len(tail["answer"].split()) > 40
    assert ".ipynb)" in tail["next"]


@every_notebook
def test_each_abbreviation_is_expanded_in_it(path):
    prose = "\n".join(prose_of(path))
    words = set(re.findall(r"[A-Za-z]+\d*[A-Za-z]*", CODE.sub(" ", prose)))
    used = {term for term in glossary().terms if term.full and {term.name, f"{term.name}s"} & words}
    named = {term.name: term.full for term in used if term.name not in KNOWN_TO_ALL}
    assert not {name: full for name, full in named.items() if full.casefold() not in prose.casefold()}


@every_notebook
def test_each_figure_has_a_description(path):
    for cell in nbformat.read(path, as_version=4).cells:
        for output in cell.get("outputs", []):
            for mime in output.get("data", {}):
                if mime.startswith("image/"):
                    assert len(output.metadata[mime]["alt"]) > 30
        for image in re.findall(r"!\[([^\]]*)\]\(", cell.source if cell.cell_type == "markdown" else ""):
            assert image

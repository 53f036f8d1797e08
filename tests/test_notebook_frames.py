"""Every notebook says what it needs, how long it takes and what one learns; it closes with the answer."""

import re
from pathlib import Path

import nbformat
import pytest

from mnnvl_lab.terms import glossary
from tools import syllabus

FOLDER = Path(__file__).parents[1] / "notebooks"
README = FOLDER.parent / "README.md"
PATHS = {path.stem[:2]: path for path in sorted(FOLDER.glob("[0-9]*.ipynb"))}
every_notebook = pytest.mark.parametrize("number", PATHS)
KNOWN_TO_ALL = {"CPU", "CUDA", "GB/s", "GiB", "GPU", "LLM"}
CODE = re.compile(r"```.*?```|`[^`]*`|\]\([^)]*\)", re.DOTALL)
TIME = re.compile(r"\*\*Time\*\*: (\d+) minutes to read")
TAIL = re.compile(
    r"## The answer\n\n(?P<answer>[^\n]+)\n\n\*\*Three things to remember\*\*\n\n"
    r"1\. [^\n]+\n2\. [^\n]+\n3\. [^\n]+\n\n## Next\n\n(?P<next>[^\n]+)$"
)
ROW = re.compile(
    r"^\| \[(\d\d)\]\((?P<path>[^)]+)\) \| (?P<title>[^|]+) \| (?P<minutes>\d+) \| (?P<before>[\d, ]*)\|$", re.M
)
ROWS = {row[1]: row for row in ROW.finditer(README.read_text())}


def prose_of(number):
    return [cell.source for cell in nbformat.read(PATHS[number], as_version=4).cells if cell.cell_type == "markdown"]


def need_of(number):
    """The paragraph that says what one needs, and how long it takes."""
    return next(text for text in prose_of(number)[0].split("\n\n") if text.startswith("**You need**"))


@every_notebook
def test_it_opens_with_the_question_and_says_what_one_needs_and_learns(number):
    head = prose_of(number)[0]
    assert re.match(r"# [^\n]+\?\n\n", head)
    assert TIME.search(need_of(number))
    assert re.search(r"^\*\*Afterwards you can\b[^\n]+", head, re.M)


@every_notebook
def test_it_closes_with_the_answer_three_things_and_what_comes_next(number):
    tail = TAIL.search("\n\n".join(prose_of(number)))
    assert tail
    assert len(tail["answer"].split()) > 40
    assert ".ipynb)" in tail["next"]


@every_notebook
def test_each_abbreviation_is_expanded_in_it_and_the_glossary_linked(number):
    prose = "\n".join(prose_of(number))
    words = set(re.findall(r"[A-Za-z]+\d*[A-Za-z]*", CODE.sub(" ", prose)))
    used = {term for term in glossary().terms if term.full and {term.name, f"{term.name}s"} & words}
    named = {term.name: term.full for term in used if term.name not in KNOWN_TO_ALL}
    assert not {name: full for name, full in named.items() if full.casefold() not in prose.casefold()}
    assert "](../docs/glossary.md)" in prose


@every_notebook
def test_each_figure_has_a_description(number):
    for cell in nbformat.read(PATHS[number], as_version=4).cells:
        for output in cell.get("outputs", []):
            for mime in output.get("data", {}):
                if mime.startswith("image/"):
                    assert len(output.metadata[mime]["alt"]) > 30
        for image in re.findall(r"!\[([^\]]*)\]\(", cell.source if cell.cell_type == "markdown" else ""):
            assert image


@every_notebook
def test_the_readme_lists_it_with_its_time_and_what_comes_before(number):
    row, time = ROWS[number], TIME.search(need_of(number))
    assert row["path"] == f"notebooks/{PATHS[number].name}"
    assert f"# {row['title']}" == prose_of(number)[0].splitlines()[0]
    assert int(row["minutes"]) == int(time[1])
    for before in re.findall(r"\d\d", row["before"]):
        assert f"]({PATHS[before].name})" in prose_of(number)[0]


@every_notebook
def test_its_minutes_follow_the_rule_of_the_syllabus(number):
    notebook = nbformat.read(PATHS[number], as_version=4)
    stated, rule = int(TIME.search(need_of(number))[1]), syllabus.minutes(notebook)
    assert abs(stated - rule) <= syllabus.STEP_MINUTES, f"{rule} minutes by the rule of tools.syllabus"

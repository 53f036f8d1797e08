"""Words that were retired stay out of the package, the pages, the notebooks' prose and the figures.

Each pattern is as narrow as it must be to leave ordinary English alone: "a rank" is fine, "tokens a rank" is not.
"""

import ast
import json
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGE = [*sorted((ROOT / "mnnvl_lab").rglob("*.py")), *sorted((ROOT / "tools").rglob("*.py"))]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md")), ROOT / "data" / "README.md"]
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))

THINGS = (
    r"tokens|rows|bytes|GPUs|ranks|samples|cells|lines|columns|points|experts|choices|copies|slots|packets|launches|"
    r"microseconds|milliseconds|seconds|µs|ms|MiB|GiB|MB|GB"
)
UNITS = (
    r"rank|GPU|sample|point|row|cell|line|token|layout|mode|class|peer|FIFO|pair|batch|round|step|source|target|request"
)
VERBS = r"may|might|has|have|can|must|sends?|receives?|brings|chooses|computes|owns|keeps|reaches|needs|of\b|that\b"
PROSE = {
    "nursery: fork server": r"\bnurser(y|ies)\b",
    "warden: reaper": r"\bwardens?\b",
    "crew: rank pool": r"\bcrew\b",
    "whence: from where": r"\bwhence\b",
    "folly: poor choice": r"\bfolly\b",
    "doomed: about to be killed": r"\bdoom(ed|s)?\b",
    "dawdle: is delayed": r"\bdawdl\w*",
    "victim: target": r"\bvictims?\b",
    "postmortem: diagnosis": r"\bpost-?mortems?\b",
    "come to lie: are placed": r"\bcomes? to lie\b",
    "say a layout: choose a layout": r"\bsay a layout\b",
    "roof: lower bound": r"\broofs?\b",
    "stand-in of the experts: fake experts": r"\bstand-ins?\b",
    "aside: auxiliary table": r"\b(an aside|asides)\b",
    "volley: ping-pong": r"\bvolleys?\b",
    "blame: on_timeout": r"`blame`",
    "hazard: invalid input": r"\bhazards?\b",
    "a rank, of amounts: per rank": rf"\b({THINGS}) an? ({UNITS})\b(?![-'])(?! ({VERBS}))",
    "one row a sample: one row per sample": rf"\b(?:one|a) (row|line|cell|column|GPU) an? ({UNITS})\b(?![-'])",
}
IDENTIFIERS = re.compile(
    r"^_*(nursery|warden|crew|seats?|vacant|dawdl\w*|victims?|doom(ed)?|hazards?|postmortem\w*|ink_on|volleys?|asides|"
    r"slot_sum|stand_in|live_fifos|watch_turns|peek\w*|patience|parcels?|landing|nurseries|wastes?|blame|roof)_*$",
    re.IGNORECASE,
)


def found(text):
    """The retired words of a text, each with its replacement."""
    paragraphs = [" ".join(paragraph.split()) for paragraph in re.split(r"\n\s*\n", text)]
    return [
        f"{hit.group()!r} ({name})"
        for name, word in PROSE.items()
        for plain in paragraphs
        for hit in re.finditer(word, plain, re.IGNORECASE)
    ]


def strings(tree):
    """Docstrings, messages, labels and help texts: every string of a module."""
    return [n.value for n in ast.walk(tree) if isinstance(n, ast.Constant) and isinstance(n.value, str)]


def identifiers(tree):
    """Names that a module defines: modules, classes, functions, arguments, variables, attributes."""
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            yield node.name
        elif isinstance(node, ast.arg):
            yield node.arg
        elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            yield node.id


@pytest.mark.parametrize("path", PACKAGE, ids=lambda path: str(path.relative_to(ROOT)))
def test_the_code_uses_the_field_s_words(path):
    text = path.read_text()
    tree = ast.parse(text)
    comments = re.findall(r"#.*", text)
    assert [hit for part in [*strings(tree), *comments] for hit in found(part)] == []
    assert sorted({name for name in (path.stem, *identifiers(tree)) if IDENTIFIERS.match(name)}) == []


@pytest.mark.parametrize("path", PAGES, ids=lambda path: str(path.relative_to(ROOT)))
def test_the_pages_use_the_field_s_words(path):
    assert found(path.read_text()) == []


def prose_of(cell):
    """Markdown, or the strings and comments of code, which become labels and printed lines."""
    source = "".join(cell["source"])
    if cell["cell_type"] == "markdown":
        return source
    return " . ".join([*strings(ast.parse(source)), *re.findall(r"#.*", source)])


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.name)
def test_the_notebooks_use_the_field_s_words(path):
    cells = json.loads(path.read_text())["cells"]
    assert [hit for cell in cells for hit in found(prose_of(cell))] == []


@pytest.mark.parametrize(
    ("text", "count"),
    [
        ("tokens a rank", 1),
        ("rows a token, microseconds a round and six slots a source", 3),
        ("one row a sample", 1),
        ("Payloads say whence they come", 1),
        ("several ranks a GPU", 1),
        ("what a rank sends", 0),
        ("the most tokens a rank may send", 0),
        ("how many experts a token chooses", 0),
        ("rows that reach a rank", 0),
    ],
)
def test_ordinary_english_is_left_alone(text, count):
    assert len(found(text)) == count


@pytest.mark.parametrize(("name", "retired"), [("_hazard", True), ("victim", True), ("lane", False), ("seated", False)])
def test_identifiers_are_matched_whole(name, retired):
    assert bool(IDENTIFIERS.match(name)) is retired

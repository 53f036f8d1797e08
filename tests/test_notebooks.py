"""Every notebook runs from a fresh kernel, reads well, and keeps the outputs that a fresh run has."""

import base64
import io
import re
import statistics
from pathlib import Path

import nbformat
import numpy as np
import pytest
from PIL import Image

from tools import notebooks as tool
from tools.notebook_outputs import differences, scrub, stderr_of
from tools.notebook_runs import is_refusal, problems, uses_ranks

FOLDER = Path(__file__).parents[1] / "notebooks"
PATHS = sorted(FOLDER.glob("[0-9]*.ipynb"))  # explore.ipynb holds just the explorer (tests/browser), templates nothing
every_notebook = pytest.mark.parametrize("path", PATHS, ids=lambda path: path.stem)


def read(path):
    return nbformat.read(path, as_version=4)


def code_of(notebook):
    return [cell for cell in notebook.cells if cell.cell_type == "code"]


def test_notebooks_are_numbered_once():
    numbers = [path.stem[:2] for path in PATHS]
    assert numbers == sorted(set(numbers))
    assert all(re.fullmatch(r"\d\d-[a-z0-9-]+", path.stem) for path in PATHS)


@every_notebook
def test_the_title_is_a_question_and_the_end_leads_on(path):
    prose = [cell.source for cell in read(path).cells if cell.cell_type == "markdown"]
    title = prose[0].splitlines()[0]
    assert title.startswith("# ")
    assert title.endswith("?")
    assert "Next" in prose[-1]


@every_notebook
def test_cells_are_few_lines_and_define_nothing(path):
    notebook = read(path)
    code = code_of(notebook)
    lines = [len([line for line in cell.source.splitlines() if line.strip()]) for cell in code]
    assert max(lines) <= 10
    assert statistics.median(lines) <= 5
    assert len(notebook.cells) - len(code) >= len(code)
    for cell in code:
        assert not re.search(r"^\s*(def|class)\s|^\s*[!%]|sys\.path|os\.environ", cell.source, re.MULTILINE), (
            cell.source
        )


@every_notebook
def test_links_lead_to_files_that_exist(path):
    for cell in read(path).cells:
        if cell.cell_type == "markdown":
            for target in re.findall(r"\]\((?!https?:)([^)#]+)", cell.source):
                assert (FOLDER / target).exists(), target


@every_notebook
def test_outputs_are_kept_without_noise(path):
    notebook = read(path)
    assert scrub(nbformat.from_dict(notebook)) == notebook
    outputs = [output for cell in code_of(notebook) for output in cell.outputs]
    assert outputs, "run `make notebooks`"
    assert not any(output.output_type == "error" for output in outputs)


@pytest.mark.notebook
@pytest.mark.timeout(300)
@every_notebook
def test_a_fresh_run_has_the_kept_outputs_and_cells_run_again(path, tmp_path, monkeypatch):
    monkeypatch.delenv("MPLBACKEND", raising=False)  # a kernel draws into the notebook
    found = problems(path, tmp_path)
    assert not found, "\n".join(found)


def output(kind, **content):
    return nbformat.v4.new_output(kind, **content)


def printed(text, name="stdout"):
    return output("stream", name=name, text=text)


def shown(**data):
    return output("display_data", data={mime.replace("_", "/"): value for mime, value in data.items()})


def notebook_of(*outputs, source="x", tags=()):
    cell = nbformat.v4.new_code_cell(source, metadata={"tags": list(tags), "other": 1})
    cell.outputs = list(outputs)
    return nbformat.v4.new_notebook(cells=[cell])


def png(*, marked=0, level=255, size=(20, 10)):
    pixels = np.full((size[1], size[0], 3), 255, np.uint8)
    pixels[0, :marked] = level
    Image.fromarray(pixels).save(data := io.BytesIO(), "png")
    return base64.b64encode(data.getvalue()).decode()


def test_scrubbing_drops_what_changes_from_run_to_run():
    bar = output("display_data", data={"application/vnd.jupyter.widget-view+json": {}, "text/plain": "50%"})
    notebook = notebook_of(printed("<Thing at 0x7f12"), bar, printed("50%", "stderr"), printed("345678>\n"))
    notebook.cells[0].execution_count = 7
    (cell,) = scrub(notebook).cells
    assert cell.execution_count is None
    assert [each.text for each in cell.outputs] == ["<Thing at 0x...>\n"]


def test_a_long_repr_beside_a_table_is_not_kept():
    long = shown(text_html="<table>", text_plain="Plan(" + 200 * "x" + ")")
    short = shown(text_html="<table>", text_plain="Layout(tp=2)")
    alone = shown(text_plain="Plan(" + 200 * "x" + ")")
    (cell,) = scrub(notebook_of(long, short, alone)).cells
    assert [sorted(each.data) for each in cell.outputs] == [
        ["text/html"],
        ["text/html", "text/plain"],
        ["text/plain"],
    ]


def test_descriptions_of_figures_are_kept_and_no_other_metadata():
    figure = shown(image_png=png())
    figure.metadata = {"image/png": {"alt": "Latency by tokens", "width": 3}, "needs_background": "light"}
    (cell,) = scrub(notebook_of(figure)).cells
    assert cell.outputs[0].metadata == {"image/png": {"alt": "Latency by tokens"}}


def test_outputs_of_live_cells_are_not_kept():
    (cell,) = scrub(notebook_of(printed("12.3 ms"), tags=["live"])).cells
    assert cell.outputs == []
    assert cell.metadata == {"tags": ["live"]}


def test_stderr_is_seen_although_it_is_not_kept():
    (cell,) = notebook_of(printed("a"), printed("TqdmWarning: ", "stderr"), printed("no widgets", "stderr")).cells
    assert stderr_of(cell) == "TqdmWarning: no widgets"


@pytest.mark.parametrize(
    ("old", "new", "words"),
    [
        (printed("a\nb\n"), printed("a\nc\n"), ["cell 0: output 0 (stdout) differs", "-b", "+c"]),
        (printed("a"), shown(text_plain="a"), ["-a", "+a"]),
        (
            shown(text_plain="a", text_html="<i>a"),
            shown(text_plain="b", text_html="<i>b"),
            ["(text/plain)", "-a", "+b"],
        ),
        (shown(text_plain="a", text_html="<i>a"), shown(text_plain="a", text_html="<i>b"), ["(text/html)", "+<i>b"]),
        (shown(image_png=png()), shown(image_png=png(marked=3, level=0)), ["3 of 200 pixels differ"]),
        (shown(image_png=png()), shown(image_png=png(size=(20, 11))), ["were [(20, 10)], are [(20, 11)]"]),
        (shown(image_png=png()), printed("a"), ["(image/png) is missing"]),
    ],
)
def test_a_difference_is_shown_by_cell_and_line(old, new, words):
    (text,) = differences(notebook_of(old), notebook_of(new))
    assert all(word in text for word in words), text


def test_a_pixel_that_another_processor_rounded_is_no_difference():
    assert not differences(notebook_of(shown(image_png=png())), notebook_of(shown(image_png=png(marked=9, level=245))))


def test_html_is_not_shown_where_the_text_tells_as_much():
    old, new = (shown(text_plain=name, text_html=f"<b>{name}</b>") for name in "ab")
    assert "html" not in differences(notebook_of(old), notebook_of(new))[0]


@pytest.mark.parametrize(
    ("name", "message", "expected"),
    [
        ("Refused", "these ranks are closed: start new ones with Ranks(layout)", True),
        ("Refused", "these ranks are closed", False),
        ("RecordError", "out/a.parquet: exists already; resume it (--resume), or name another file", True),
        ("Refused", "clock graph on device cpu: it needs a CUDA device; use clock eager", True),
        ("Hang", "rank 1 never arrived", False),
        ("WrongResult", "rank 1 got other rows", False),
        ("TypeError", "'NoneType' object is not subscriptable", False),
        ("annotations", "these ranks are closed: start new ones with Ranks(layout)", False),
    ],
)
def test_a_refusal_is_an_error_of_the_package_that_says_how_to_go_on(name, message, expected):
    assert is_refusal(name, message) is expected


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        ("run(sweep, ranks=ranks)", True),
        ("ranks.close()", True),
        ("ranks = Ranks(layout)\nranks.run(f)", False),
        ("with Ranks(layout) as ranks:\n    ranks.run(f)", False),
        ("sizes = {'ranks': 8}", False),
    ],
)
def test_cells_that_use_ranks_of_an_earlier_cell(source, expected):
    assert uses_ranks(source) is expected


def write(path, *sources):
    cells = [nbformat.v4.new_code_cell(source) for source in sources]
    nbformat.write(scrub(nbformat.v4.new_notebook(cells=cells)), path)
    return path


def test_check_names_what_a_reader_would_stumble_on(tmp_path, capsys):
    path = write(
        tmp_path / "00-odd.ipynb",
        "import sys\nruns = 0\nprint('red', file=sys.stderr)",
        "runs += 1\nruns",
        "again = 'first' not in globals()\nfirst = 1\nassert again",
    )
    assert tool.main(["check", str(path)]) == 1
    said = capsys.readouterr().out
    assert "00-odd.ipynb, cell 0: wrote to stderr, which a reader sees in red:\nred" in said
    assert "00-odd.ipynb, cell 1: output 0 (text/plain) differs" in said
    assert "00-odd.ipynb, cell 2: AssertionError:  (run again)" in said


def test_check_goes_on_after_a_notebook_that_fails(tmp_path, capsys):
    failing, plain = write(tmp_path / "00-failing.ipynb", "1 / 0"), write(tmp_path / "01-plain.ipynb", "x = 1")
    assert tool.main(["check", str(failing), str(plain)]) == 1
    said = capsys.readouterr().out
    assert "00-failing.ipynb: An error occurred" in said
    assert "ZeroDivisionError: division by zero" in said
    assert "01-plain.ipynb: as committed" in said


def test_refresh_makes_check_pass_and_keeps_nothing_that_is_red(tmp_path, capsys):
    path = write(tmp_path / "00-plain.ipynb", "print(1 + 1)")
    assert tool.main(["check", str(path)]) == 1
    assert tool.main(["refresh", str(path)]) == 0
    assert tool.main(["check", str(path)]) == 0
    assert "as committed" in capsys.readouterr().out
    red = write(tmp_path / "01-red.ipynb", "import warnings\nwarnings.warn('IProgress not found')")
    with pytest.raises(ValueError, match=r"wrote to stderr.*\n.*IProgress not found"):
        tool.main(["refresh", str(red)])

"""Every notebook runs from a fresh kernel, reads well, and keeps outputs that say the same at every run."""

import re
import statistics
from pathlib import Path

import nbformat
import pytest

from tools import notebooks as tool

FOLDER = Path(__file__).parents[1] / "notebooks"
PATHS = sorted(FOLDER.glob("*.ipynb"))
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
    assert tool.scrub(nbformat.from_dict(notebook)) == notebook
    outputs = [output for cell in code_of(notebook) for output in cell.outputs]
    assert outputs, "run `make notebooks`"
    assert not any(output.output_type == "error" for output in outputs)


@pytest.mark.timeout(300)
@every_notebook
def test_it_runs_top_to_bottom(path, tmp_path):
    executed = tool.execute(path, tmp_path)
    for cell in code_of(executed):
        assert not any(output.output_type == "error" for output in cell.outputs)


def test_scrubbing_drops_what_changes_from_run_to_run():
    cell = nbformat.v4.new_code_cell("x")
    cell.execution_count = 7
    cell.outputs = [
        nbformat.v4.new_output("stream", name="stderr", text="50%"),
        nbformat.v4.new_output("stream", name="stdout", text="<Thing at 0x7f12345678>"),
    ]
    live = nbformat.v4.new_code_cell("y", metadata={"tags": ["live"], "other": 1})
    live.outputs = [nbformat.v4.new_output("stream", name="stdout", text="12.3 ms")]
    clean = tool.scrub(nbformat.v4.new_notebook(cells=[cell, live]))
    assert clean.cells[0].execution_count is None
    assert [output.text for output in clean.cells[0].outputs] == ["<Thing at 0x...>"]
    assert clean.cells[1].outputs == []
    assert clean.cells[1].metadata == {"tags": ["live"]}


def test_one_switch_takes_the_quickstart_to_gpus():
    notebook = read(FOLDER / "00-quickstart.ipynb")
    tool.switch(notebook, "shared_gpu")
    assert sum('fabric="shared_gpu"' in cell.source for cell in code_of(notebook)) == 1
    with pytest.raises(ValueError, match="0 cells say"):
        tool.switch(notebook, "nvlink")

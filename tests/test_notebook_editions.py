"""Notebooks for a class: students see no output and no answer, teachers see all of them, executed."""

import re
from pathlib import Path

import nbformat
import pytest

from mnnvl_lab.course import answer, exercises
from tools import notebooks as tool
from tools.notebook_editions import gpu_copy, solved, student_edition, written

ROOT = Path(__file__).parents[1]
PATHS = sorted((ROOT / "notebooks").glob("[0-9]*.ipynb"))


def notebook(*cells):
    kinds = {"code": nbformat.v4.new_code_cell, "text": nbformat.v4.new_markdown_cell}
    made = nbformat.v4.new_notebook(cells=[kinds[kind](source) for kind, source in cells])
    for cell in made.cells:
        if cell.cell_type == "code":
            cell.outputs = [nbformat.v4.new_output("stream", name="stdout", text="seen")]
    return made


ASKING = ("code", 'guess = None\nlab.check("01.2", guess)')


def sources(edition):
    return [cell.source for cell in edition.cells]


@pytest.mark.parametrize("path", PATHS, ids=lambda path: path.stem)
def test_the_students_edition_has_no_outputs_and_folds_what_discusses_an_answer(path):
    edition = student_edition(nbformat.read(path, as_version=4))
    nbformat.validate(edition)
    asked = False
    for cell in edition.cells:
        if cell.cell_type == "code":
            assert cell.outputs == []
            asked = asked or "lab.check(" in cell.source
        elif asked:
            assert cell.source.startswith(("<details>", "## ", "**")), cell.source[:80]
            asked = False


def test_only_the_discussion_is_folded():
    text = "Eight, since all are.\n\n## Next part\n\nMore.\n\n**Question 3.** How many?"
    folded = "<details><summary>After your guess</summary>\n\nEight, since all are.\n\n</details>"
    edition = student_edition(notebook(ASKING, ("text", text), ("text", "Left alone.")))
    assert sources(edition)[1:] == [f"{folded}\n\n## Next part\n\nMore.\n\n**Question 3.** How many?", "Left alone."]


def test_a_question_right_behind_another_is_not_folded():
    edition = student_edition(notebook(ASKING, ("text", "**B.** And this?")))
    assert sources(edition)[1] == "**B.** And this?"


def test_the_closing_answer_is_folded_and_what_comes_next_is_not():
    edition = student_edition(notebook(("text", "## The answer\n\nIt is so.\n\n## Next\n\n[01](01.ipynb)")))
    assert sources(edition)[0].startswith("## The answer\n\n<details>")
    assert sources(edition)[0].endswith("It is so.\n\n</details>\n\n## Next\n\n[01](01.ipynb)")


@pytest.mark.parametrize("number", exercises())
def test_an_answer_is_written_as_python(number):
    found = eval(written(number))
    assert found in answer(number) if exercises()[number].any_of else found == answer(number)


def test_an_answer_stands_where_the_guess_stood():
    given = notebook(("code", 'x = 1\nguess = None\nlab.check("01.4", guess)'))
    assert sources(solved(given)) == ['x = 1\nguess = [0, 1, 4, 5]\nlab.check("01.4", guess)']
    assert "None" in given.cells[0].source
    with pytest.raises(ValueError, match=r"exercise 01.2 has no line 'guess = None'"):
        solved(notebook(("code", 'guess = 3\nlab.check("01.2", guess)')))


def test_both_editions_are_written_and_the_solutions_executed(tmp_path, capsys):
    path = tmp_path / "01-small.ipynb"
    nbformat.write(notebook(("code", "import mnnvl_lab as lab"), ASKING), path)
    for command in ("student", "solutions"):
        assert tool.main([command, str(path), "--out", str(tmp_path / command)]) == 0
        assert "01-small.ipynb" in capsys.readouterr().out
    student, teacher = (nbformat.read(tmp_path / c / path.name, as_version=4) for c in ("student", "solutions"))
    assert student.cells[1].source == ASKING[1]
    assert "Right: 8" in teacher.cells[1].outputs[0].data["text/plain"]
    assert not list((tmp_path / "solutions").glob("course-progress*"))


class TestCopiesOfGpuRuns:
    def test_the_first_lines_say_where_it_ran_and_outputs_stay(self):
        ran = notebook(("text", "# What is it?\n\nText."), ("code", "1"))
        copied = gpu_copy(ran, "two H100s", home=Path("/a/notebooks"), out=Path("/a/docs/gpu"))
        lines = copied.cells[0].source.splitlines()
        assert lines[0] == "# What is it? (on GPUs)"
        assert "Executed on two H100s." in lines[2]
        assert lines[-1] == "Text."
        assert copied.cells[1].outputs == ran.cells[1].outputs

    def test_links_lead_where_they_led(self):
        text = "# A\n[g](../docs/glossary.md#ep), [n](01-a.ipynb), [d](../data/README.md), [o](https://x.org/a.md)"
        copied = gpu_copy(notebook(("text", text)), "GPUs", home=Path("/a/notebooks"), out=Path("/a/docs/gpu"))
        assert copied.cells[0].source.splitlines()[-1] == (
            "[g](../glossary.md#ep), [n](../../notebooks/01-a.ipynb), [d](../../data/README.md), [o](https://x.org/a.md)"
        )

    def test_those_that_are_kept_differ_from_their_notebook_in_the_fabric_alone(self):
        kept = sorted((ROOT / "docs" / "gpu").glob("*.ipynb"))
        assert kept
        for path in kept:
            here, there = (
                [cell.source for cell in nbformat.read(file, as_version=4).cells if cell.cell_type == "code"]
                for file in (ROOT / "notebooks" / path.name, path)
            )
            (line,) = (
                line for a, b in zip(here, there, strict=True) for line in set(b.splitlines()) - set(a.splitlines())
            )
            assert re.fullmatch(r'FABRIC = "(nvlink|shared_gpu)"  # or "shared_gpu", "nvlink"', line), (
                f"{path.name}: the notebook changed since; run it on GPUs again, or remove the copy"
            )

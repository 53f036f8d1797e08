"""Exercises: each is answered rightly and in three wrong ways; how guesses are read; what is kept beside a notebook."""

import json
import re
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import nbformat
import numpy as np
import pandas as pd
import pytest

import mnnvl_lab as lab
from mnnvl_lab.course import Exercise, Mistake, answer, exercises, require_exercise
from mnnvl_lab.course.matching import judge, plain
from mnnvl_lab.course.progress import FILE, Attempt, Progress
from mnnvl_lab.errors import Refused

FOLDER = Path(__file__).parents[1] / "notebooks"
ASKED = re.compile(r'lab\.check\("([^"]+)", guess\)')
every_exercise = pytest.mark.parametrize("number", exercises())


@pytest.fixture(autouse=True)
def _own_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def wrong_ways(found, asked):
    """Three guesses of the form that is asked for, or of another one, that are not the answer."""
    if asked.any_of:
        return ["wire", "no such convention", 7]
    if isinstance(found, bool):
        return [not found, "maybe", 7]
    if isinstance(found, int | float):
        return [found + 3 * asked.tolerance + 1, -found - 3 * asked.tolerance - 1, "many"]
    if isinstance(found, str):
        return [next(each for each in asked.options if each != found), "something else", 7]
    if isinstance(found, set):
        return [found | {98, 99}, {97}, "all of them"]
    return [[*found[:-1], "other"], found[1:] + found[:1] + found[:1], "all of them"]


@every_exercise
def test_every_exercise_is_answered_rightly_and_in_three_wrong_ways(number):
    asked, found = require_exercise(number), answer(number)
    right = lab.check(number, next(iter(found)) if asked.any_of else found)
    assert right.right
    assert asked.reason in repr(right)
    for guess in wrong_ways(found, asked):
        reply = lab.check(number, guess)
        assert reply.right is False, guess
        assert asked.reason not in repr(reply)
        assert f'lab.reveal("{number}")' in repr(reply)


@every_exercise
def test_mistakes_have_names_and_are_wrong(number):
    asked = require_exercise(number)
    for mistake in asked.mistakes:
        guess = plain(mistake.guess())
        reply = lab.check(number, guess)
        assert reply.right is False
        assert mistake.message in repr(reply), guess


def tells(text, number):
    """Whether a text gives the answer: its options, or its numbers, each as a word of its own."""
    asked, found = require_exercise(number), answer(number)
    if isinstance(found, bool) or asked.any_of:
        return False
    parts = found if isinstance(found, list | set) else [found]
    words = [f"{part:g}" if isinstance(part, int | float) else str(part) for part in parts]
    return bool(words) and all(re.search(rf"(?<![\w.,]){re.escape(word)}(?![\w%]|[.,]\d)", text) for word in words)


@every_exercise
def test_every_exercise_has_a_question_a_reason_and_hints_that_do_not_tell(number):
    asked = require_exercise(number)
    assert asked.asks.endswith(("?", "."))
    assert 1 <= len(re.findall(r"[.:?](\s|$)", asked.reason)) <= 4
    assert asked.reason.endswith(".")
    assert asked.hints
    for text in [*asked.hints, *(mistake.message for mistake in asked.mistakes)]:
        assert not tells(text, number), text


def checks_of(path):
    code = [cell.source for cell in nbformat.read(path, as_version=4).cells if cell.cell_type == "code"]
    return [number for source in code for number in ASKED.findall(source)], sum("lab.check(" in s for s in code)


def test_notebooks_and_package_have_the_same_exercises_in_the_same_order():
    asked = []
    for path in sorted(FOLDER.glob("[0-9]*.ipynb")):
        numbers, calls = checks_of(path)
        assert len(numbers) == calls, f"{path.name}: a check is not of the form lab.check(number, guess)"
        assert all(number.startswith(path.stem[:2] + ".") for number in numbers)
        asked += numbers
    assert asked == list(exercises())


@pytest.mark.parametrize("path", sorted(FOLDER.glob("[0-9]*.ipynb")), ids=lambda path: path.stem)
def test_no_committed_output_shows_an_answer(path):
    for cell in nbformat.read(path, as_version=4).cells:
        if cell.cell_type == "code" and (asked := ASKED.search(cell.source)):
            assert "guess = None" in cell.source
            assert [repr(lab.check(asked[1], None))] == [output.data["text/plain"] for output in cell.outputs]


def question(solution, **more):
    fields = {"number": "99.1", "asks": "?", "reason": "So it is.", "hints": ("Think.",)}
    return Exercise(**fields, solution=lambda: solution, **more)


def right(guess, solution, **more):
    return judge(question(solution, **more), guess, solution).right


@pytest.mark.parametrize(
    ("guess", "solution", "more"),
    [
        (8, np.int64(8), {}),
        (8.0, 8, {}),
        ("8", 8, {}),
        (" 8 rows", 8, {"unit": "rows"}),
        ("about 8", 8, {}),
        ("14,400", 14400, {}),
        ("14_400", 14400, {}),
        ("5,3", 5.3, {}),
        (5.2, 5.3, {"tolerance": 0.15}),
        ("14,400 bytes", 14400, {"unit": "bytes"}),
        ("0.5 GiB", 512, {"unit": "MiB"}),
        ("34 percent", 34, {"unit": "%"}),
        ("100 us", 100, {"unit": "µs"}),
        ("0.1 ms", 100, {"unit": "µs"}),
        ("More", "more", {"options": ("more", "less")}),
        ("one-sided", "one_sided", {"options": ("one_sided", "two_sided")}),
        ("onesided", "one_sided", {"options": ("one_sided", "two_sided")}),
        ("entries", "entries in FIFOs", {"options": ("a flag", "entries in FIFOs")}),
        ("yes", True, {}),
        ("False", False, {}),
        (np.bool_(True), True, {}),
        ((0, 2), [0, 2], {}),
        (np.array([0, 2]), (0, 2), {}),
        (pd.Series([4, 4]), [4, 4], {}),
        ("0, 2", [0, 2], {}),
        ("[0, 2]", [0, 2], {}),
        ("0 2", [0, 2], {}),
        (["1", 2.0], (1, 2), {}),
        (["two-sided", "One sided"], ["two_sided", "one_sided"], {"options": ("one_sided", "two_sided")}),
        ([3, 1, 2], {1, 2, 3}, {}),
        ("{3, 1, 2}", {1, 2, 3}, {}),
        (1, {1}, {}),
        ("none", set(), {}),
        (set(), set(), {}),
        ({}, set(), {}),
        ("Clock, device", {"device", "clock"}, {}),
        ("clock device", {"device", "clock"}, {}),
        ("b", {"a", "b"}, {"any_of": True}),
    ],
)
def test_what_a_person_would_forgive_is_forgiven(guess, solution, more):
    assert right(guess, solution, **more)


@pytest.mark.parametrize(
    ("guess", "solution", "more"),
    [
        (4, 8, {}),
        ("8 or 9", 8, {}),
        (True, 1, {}),
        (1, True, {}),
        (float("nan"), 0, {}),
        (5.1, 5.3, {"tolerance": 0.15}),
        ([2, 0], [0, 2], {}),
        ({0, 2}, [0, 2], {}),
        ("02", [0, 2], {}),
        ([0], 0, {}),
        ("m", "more", {"options": ("more", "most")}),
        ("", "more", {"options": ("more", "less")}),
        ([1, 1, 2], {1, 2, 3}, {}),
        ({1, 2}, {1, 2, 3}, {}),
        (object(), 8, {}),
        ("8 MiB", 8, {"unit": "µs"}),
    ],
)
def test_what_is_wrong_stays_wrong(guess, solution, more):
    assert not right(guess, solution, **more)


@pytest.mark.parametrize(
    ("guess", "solution", "unit", "said"),
    [
        (2**20, 1, "MiB", "you wrote bytes, the question asks for MiB"),
        (236978176, 226, "MiB", "you wrote bytes, the question asks for MiB"),
        (0.34, 34, "%", "you wrote as a fraction of 1, the question asks for %"),
        (1.5, 1500, "µs", "you wrote ms, the question asks for µs"),
        ("226 KiB", 226, "MiB", "the number is right, but you wrote KiB, and the question asks for MiB"),
        ("3 ms", 226, "MiB", "you wrote ms, the question asks for MiB"),
        (27, 226, "MiB", ""),
    ],
)
def test_a_wrong_unit_is_recognised(guess, solution, unit, said):
    assert judge(question(solution, unit=unit), guess, solution).said == said


@pytest.mark.parametrize(
    ("guess", "solution", "more", "said"),
    [
        ({0, 2}, [0, 2], {}, "order matters"),
        (3, [0, 2], {}, "in a list"),
        ([1], [0, 2], {}, "2 values, you wrote 1"),
        ("upwards", "more", {"options": ("more", "less")}, "choose one of 'more', 'less'"),
        ("perhaps", True, {}, "True or False"),
        ("many", 8, {}, "a number"),
        (None.__class__, {1}, {}, "a set"),
    ],
)
def test_a_guess_of_another_form_is_told_so_and_is_no_try(guess, solution, more, said):
    verdict = judge(question(solution, **more), guess, solution)
    assert said in verdict.said
    assert not verdict.counts


def test_a_length_that_is_part_of_the_question_is_not_told():
    verdict = judge(question([1, 2, 3], tells_length=False), [1], [1, 2, 3])
    assert verdict.said == ""
    assert verdict.counts


def test_a_mistake_is_named():
    asked = question(8, mistakes=(Mistake(guess=lambda: 4, message="that is the DP group"),))
    assert judge(asked, "4", 8).said == "that is the DP group"


def test_a_wrong_answer_keeps_the_right_one_back_until_it_is_asked_for():
    assert "11,600" not in repr(lab.check("04.A", None)) + repr(lab.check("04.A", 3)) + repr(lab.hint("04.A"))
    assert repr(lab.reveal("04.A")).startswith("04.A: 11,600\n")
    assert repr(lab.check("04.2", 1664)).startswith("Right: 1,664 bytes\n")
    assert repr(lab.check("03.B", 51)).startswith("Right: 50 % (within 1)\n")
    assert "&#x27;&lt;i&gt;&#x27; cannot be the answer" in lab.check("04.A", "<i>")._repr_html_()
    assert "<i>" not in lab.check("04.A", "<i>")._repr_html_()


def test_hints_are_numbered():
    assert "Hint 1 of 2 for 01.4" in repr(lab.hint("01.4"))
    assert 'One more: lab.hint("01.4", 2)' in repr(lab.hint("01.4"))
    assert "One more" not in repr(lab.hint("01.4", 2))
    with pytest.raises(lab.Refused, match=r"hint 3 of exercise 01.4: it has 2; choose one of 1 to 2"):
        lab.hint("01.4", 3)


@pytest.mark.parametrize(
    ("number", "words"),
    [
        ("04.9", r"question of notebook 04 .*choose one of 1, 2, 3, 4, A"),
        ("77.1", r"notebook with exercises .*choose one of 00, 01"),
        (4.3, r'such as "04.3", got 4.3: put it in quotes'),
        ("", "notebook with exercises"),
    ],
)
def test_an_exercise_that_does_not_exist_is_refused(number, words):
    with pytest.raises(lab.Refused, match=words):
        lab.check(number, 1)


def test_letters_of_exercises_in_any_case():
    assert lab.check("01.a", 5).right


def kept():
    return json.loads(Path(FILE).read_text())


def test_progress_is_kept_beside_the_notebook():
    lab.check("01.2", None)
    assert not Path(FILE).exists()
    lab.check("01.2", 4)
    lab.check("01.2", 4)
    lab.check("01.2", "eight of them")
    lab.hint("01.2")
    lab.check("01.2", 8)
    lab.check("01.2", 5)
    lab.reveal("01.2")
    assert kept() == {"01.2": {"tries": 3, "solved": True, "hints": 1, "revealed": False, "last": "5"}}
    lab.reveal("01.3")
    lab.check("01.3", 3)
    row = lab.score().table.set_index("notebook").loc["01"]
    assert row.to_dict() == {"exercises": 8, "tried": 2, "solved": 1, "without_hint": 0, "revealed": 1}
    assert repr(lab.score()).startswith(f"1 of {len(exercises())} exercises solved\n")


def test_two_notebooks_at_once_lose_nothing_of_each_other():
    numbers = list(exercises())[:40]
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda n: Progress().change(n, lambda a: Attempt(tries=a.tries + 1)), numbers * 3))
    assert {number: each["tries"] for number, each in kept().items()} == dict.fromkeys(numbers, 3)


@pytest.mark.parametrize(
    "content", ["{", "[]", '{"01.2": {"other": 1}}', '{"01.2": 3}', '{"01.2": {"tries": "2"}}', ""]
)
def test_a_file_that_cannot_be_read_is_set_aside(content):
    Path(FILE).write_text(content)
    assert lab.check("01.2", 8).right
    assert kept()["01.2"]["solved"]
    assert Path("course-progress.unreadable.json").read_text() == content


def test_an_answer_counts_where_nothing_can_be_kept(monkeypatch):
    def refused(*_, **__):
        raise PermissionError("read-only file system")

    monkeypatch.setattr("mnnvl_lab.course.progress.replacing", refused)
    reply = lab.check("01.2", 8)
    assert reply.right
    assert "not kept for lab.score(): read-only file system" in repr(reply)


class Unprintable:
    def __repr__(self):
        raise RuntimeError("no")


HOSTILE = (
    10**400,
    10**5000,
    float("nan"),
    1j,
    b"x",
    Unprintable(),
    [Unprintable()],
    {10**5000},
    {frozenset([1])},
    [{}],
)


@pytest.mark.parametrize("number", ["02.1", "02.A", "05.5", "15.1", "16.1"])
@pytest.mark.parametrize("guess", [*HOSTILE, "9" * 5000, "9" * 5000 + " MiB", np.array([[1]])], ids=lambda _: "")
def test_no_guess_whatever_ends_in_a_traceback(number, guess, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    reply = lab.check(number, guess)
    assert not reply.right
    assert str(reply).startswith("Not yet: ")
    assert len(reply.headline) < 400


def test_numbers_of_exercises_and_hints_of_any_size_are_refused():
    with pytest.raises(Refused, match="an exercise is named by a string"):
        lab.check(10**5000, 1)
    with pytest.raises(Refused, match=r"hint a value of type int that cannot be printed of exercise 02\.1"):
        lab.hint("02.1", 10**5000)

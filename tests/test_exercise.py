"""Guesses, right and wrong; what is shown does not give the answer away."""

import numpy as np
import pandas as pd
import pytest

from mnnvl_lab.notebook import check


@pytest.mark.parametrize(
    ("guess", "answer"),
    [
        ((0, 2), np.array([0, 2])),
        ([0, 2], (0, 2)),
        ({2, 0}, frozenset({0, 2})),
        ([[0, 1], [2, 3]], ((0, 1), (2, 3))),
        ([4, 4], pd.Series([4, 4])),
        (8, np.int64(8)),
        ({"tp": [1]}, {"tp": (1,)}),
        ("8", 8),
        ("0.5", np.float64(0.5)),
        (["1", 2], (1, 2)),
        ("More", "more"),
        ("one-sided", "one_sided"),
        (" A flag", "a flag"),
        ({"Clock", "device"}, {"device", "clock"}),
        ([1, 2, 2], [1, 2, 2]),
    ],
)
def test_right_whatever_holds_the_numbers(guess, answer):
    assert check(guess, answer).right


@pytest.mark.parametrize(
    ("guess", "answer"), [([2, 0], (0, 2)), (4, 8), ([0], 0), (None, 0), ("02", (0, 2)), ("8 or 9", 8)]
)
def test_wrong_guesses_do_not_pass(guess, answer):
    assert not check(guess, answer).right


def test_words_keep_the_answer_back_and_html_folds_it():
    assert "7919" not in str(check(None, 7919))
    assert "7919" not in str(check(3, 7919))
    assert "7919" in str(check(7919, 7919))
    assert "<details><summary>the answer</summary>7919</details>" in check(3, 7919)._repr_html_()
    assert "<b>" not in check("<b>", 1)._repr_html_()


def test_an_answer_is_shown_as_it_is_and_not_as_it_is_compared():
    assert str(check("one-sided", "one_sided")) == "Right: one_sided."
    assert str(check(("tp 2", 4), ("TP 2", 4))) == "Right: ['TP 2', 4]."


def test_the_reason_comes_with_the_answer_and_no_sooner():
    open_, right = check(None, "hang", why="a < b"), check("hang", "hang", why="a < b")
    assert "a <" not in repr(open_)
    assert open_._repr_html_().endswith("<summary>the answer</summary>hang. a &lt; b</details>")
    assert repr(right) == "Right: hang. a < b"

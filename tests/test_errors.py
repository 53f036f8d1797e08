"""Names are found in any case; what is unknown, or no name at all, is refused with what is near."""

from contextlib import suppress

import pytest
from hypothesis import given
from hypothesis import strategies as st

import mnnvl_lab as lab
from mnnvl_lab.errors import Refused, choose, named_arguments, shown

MODES = ("one_sided", "two_sided", "all_to_all")


@pytest.mark.parametrize("name", ["one_sided", "One_Sided", "ONE-SIDED", " one_sided "])
def test_a_name_is_found_in_any_case(name):
    assert choose(name, MODES, "mode") == "one_sided"


def test_an_exact_name_comes_before_one_that_differs_in_case():
    assert choose("B", ("b", "B"), "thing") == "B"
    assert choose("b", ("b", "B"), "thing") == "b"


def test_an_unknown_name_is_refused_with_the_nearest_first_and_all_of_them():
    message = (
        r"mode 'one_sidet' is not known: did you mean one_sided.*\? choose one of one_sided, two_sided, all_to_all$"
    )
    with pytest.raises(Refused, match=message):
        choose("one_sidet", MODES, "mode")
    with pytest.raises(Refused, match=r"choose one of .*all_to_all, or pass a Mode$"):
        choose("zzz", MODES, "mode", remedy="or pass a Mode")


@pytest.mark.parametrize("name", [None, 3, 2.5, True, ["one_sided"], object()])
def test_what_is_no_name_is_refused(name):
    with pytest.raises(Refused, match="a name is a string"):
        choose(name, MODES, "mode")


@given(st.one_of(st.text(), st.integers(), st.none(), st.lists(st.text())))
def test_nothing_but_a_known_name_or_a_refusal_comes_out(name):
    with suppress(Refused):
        assert choose(name, MODES, "mode") in MODES


class Unprintable:
    def __repr__(self):
        raise RuntimeError("no")


def test_any_value_can_be_shown():
    assert shown(3) == "3"
    assert shown("x" * 1000) == "'" + "x" * 56 + "..."
    assert shown(10**5000) == "a value of type int that cannot be printed"
    assert "Unprintable" in shown(Unprintable())


def test_look_ups_of_variants_and_hazards_refuse_what_is_unknown():
    from mnnvl_lab.faults.broken_protocols import VARIANTS, require_variant
    from mnnvl_lab.faults.invalid_inputs import INVALID_INPUTS, require_invalid_input

    assert require_invalid_input(INVALID_INPUTS[0].name.upper()) is INVALID_INPUTS[0]
    assert require_variant(VARIANTS[0].name.lower()) is VARIANTS[0]
    with pytest.raises(Refused, match="invalid input 'negative' is not known: did you mean negative expert id"):
        require_invalid_input("negative")
    with pytest.raises(Refused, match="variant None is not known"):
        require_variant(None)


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: lab.Layout(tpp=2), "argument of Layout 'tpp' is not known: did you mean tp"),
        (lambda: lab.Layout(TP=2), "argument of Layout 'TP' is not known: write tp"),
        (lambda: lab.Layout(2, 4), r"Layout: too many positional arguments; write Layout\(tp=\.\.\., dp="),
        (lambda: lab.Load(tokens=3), r"Load: missing a required argument: 'routing'; write Load\(routing="),
        (lambda: lab.Exchange(rank_mask=True), "argument of Exchange 'rank_mask' is not known: did you mean enable"),
        (lambda: lab.Sampling(sample=3), "argument of Sampling 'sample' is not known: did you mean m"),
        (lambda: lab.plan(lab.Layout(), max_token=3), "argument of plan 'max_token' is not known: did you mean max_"),
        (lambda: lab.predict(lab.Layout(), modes="x"), "argument of predict 'modes' is not known: did you mean mode"),
        (lambda: lab.run(tokens=3), "argument of run 'tokens' is not known"),
        (lambda: lab.report(outs="x"), "argument of report 'outs' is not known: did you mean out"),
        (lambda: lab.table(styles="latex"), "argument of table 'styles' is not known: did you mean style"),
        (lambda: lab.simulate_round(rank=3), "argument of simulate_round 'rank' is not known"),
        (
            lambda: lab.Ranks(lab.Layout(), fabrik="host"),
            "argument of Ranks 'fabrik' is not known: did you mean fabric",
        ),
        (lambda: lab.Ranks(), "Ranks: missing a required argument: 'layout'"),
    ],
)
def test_misspelt_missing_and_surplus_arguments_of_public_names_are_refused_in_words(call, words):
    with pytest.raises(lab.Refused, match=words):
        call()


CALLABLE = [
    name
    for name in sorted(lab._NAMES)
    if callable(value := getattr(lab, name)) and not (isinstance(value, type) and issubclass(value, BaseException))
]


@pytest.mark.parametrize("name", CALLABLE)
def test_every_public_name_refuses_an_argument_that_it_does_not_have(name):
    with pytest.raises(lab.Refused, match="no_such_argument"):
        getattr(lab, name)(no_such_argument=1)


def test_a_type_error_inside_a_function_stays_what_it_is():
    @named_arguments
    def function(value):
        return value + "x"

    with pytest.raises(TypeError, match="unsupported operand"):
        function(1)

"""`compare --fail-if`: an exit status that a CI can act on, only where the samples surely differ."""

import pytest

from mnnvl_lab import records
from mnnvl_lab.__main__ import main
from mnnvl_lab.cli.compare import FAILED
from tests.report_helpers import small


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """Before; 10 % slower; 2 % slower; the same samples once more."""
    folder = tmp_path_factory.mktemp("conditions")
    factors = {"before": 1.0, "slower": 1.10, "little": 1.02, "same": 1.0}
    tables = {name: small(slower=factor).query("clock == 'graph'") for name, factor in factors.items()}
    return {name: str(records.save(table, folder / f"{name}.parquet")) for name, table in tables.items()}


def status(files, after, *conditions, before="before"):
    words = [word for condition in conditions for word in ("--fail-if", condition)]
    return main(["compare", files[before], files[after], *words])


def test_slower_by_more_fails_and_says_which_point(files, capsys):
    assert status(files, "slower", "slower by 5%") == FAILED == 3
    out = capsys.readouterr().out
    assert "FAIL slower by 5%: one_sided, round, graph clock, bf16, uniform, 128 tokens per rank" in out
    assert "(+10.0 %)" in out


@pytest.mark.parametrize(
    ("after", "conditions", "expected"),
    [
        ("slower", ["slower by 15%"], 0),
        ("slower", ["faster by 5%"], 0),
        ("slower", ["different"], 3),
        ("slower", ["Slower by 5.5 %"], 3),
        ("slower", ["slower by 15%", "different"], 3),
        ("little", ["slower by 5%"], 0),
        ("little", ["slower by 1%"], 3),
        ("same", ["slower by 0%", "faster by 0%", "different", "too few samples"], 0),
        ("slower", [], 0),
    ],
)
def test_the_status_follows_the_conditions(files, after, conditions, expected):
    assert status(files, after, *conditions) == expected


def test_a_faster_file_meets_faster(files):
    assert status(files, "before", "faster by 5%", before="slower") == 3
    assert status(files, "before", "slower by 5%", before="slower") == 0


def test_a_median_that_moved_by_chance_alone_is_no_failure(files, tmp_path):
    """Three samples of each side could never tell: that is `too few samples`, and fails only if asked for."""
    few = {}
    for name in ("before", "slower"):
        table = records.load(files[name])
        few[name] = str(records.save(table[table["iteration"] < 3], tmp_path / f"{name}.parquet"))
    assert status(few, "slower", "slower by 5%") == 0
    assert status(few, "slower", "too few samples") == 3


@pytest.mark.parametrize("words", ["slow", "slower by", "slower by -5%", "slower by 5", "quicker by 5%", ""])
def test_what_is_no_condition_is_refused_with_those_that_are(files, words, capsys):
    with pytest.raises(SystemExit) as error:
        status(files, "slower", words)
    assert error.value.code == 2
    assert "slower by 5%" in capsys.readouterr().err


def test_files_that_cannot_be_compared_are_an_error_not_a_failure(files, tmp_path):
    other = records.save(small().query("clock == 'eager'"), tmp_path / "other.parquet")
    assert main(["compare", files["before"], str(other), "--fail-if", "different"]) == 2

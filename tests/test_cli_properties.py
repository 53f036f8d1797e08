"""Whatever is typed after a command: an answer, or a refusal in one line; never a traceback, never a rank process."""

import contextlib
import io
import os

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mnnvl_lab import records
from mnnvl_lab.__main__ import main
from tests.test_records import origin, samples

JUNK = (
    "-1", "0", "1", "2", "3", "8", "16", "100", "65537", "100000000", str(2**31), str(2**63),
    "1" + "0" * 26, "9" * 5000,
    "nan", "inf", "-inf", "1e309", "1.5", "", " ", ",", "1,4,0,128", "1,4", "x", "ü", "\0", "--", "-", "a=b", "null",
)  # fmt: skip
COUNTS = st.one_of(st.sampled_from(JUNK), st.integers(-3, 300).map(str), st.integers().map(str))
WORDS = st.one_of(st.sampled_from(JUNK), st.text(max_size=8))


def names(*known):
    return st.one_of(st.sampled_from([*known, *(name.upper() for name in known)]), WORDS)


LAYOUT = {f"--{name}": COUNTS for name in ("tp", "dp", "pcp", "pp", "gpus-per-node")}
SHAPE = {"--model": names("deepseek-v3", "kimi-k2.5"), "--hidden": COUNTS, "--experts": COUNTS, "--top-k": COUNTS}
FORMAT = {"--format": names("bf16", "fp8_block", "mxfp8", "nvfp4")}
PLAN = {
    **LAYOUT,
    **SHAPE,
    **FORMAT,
    "--max-tokens": COUNTS,
    "--gpu": names("h100", "gb200"),
    "--modes": names("one_sided", "two_sided"),
    "--sp-moe": None,
    "--wide": None,
    "--json": None,
}
SWEEP = {
    **LAYOUT,
    **SHAPE,
    **FORMAT,
    "--modes": names("one_sided", "all_to_all"),
    "--tokens": COUNTS,
    "--routing": names("uniform", "zipf:1.2", "zipf:nan", "hot_rank:0.5:7", "hot_expert", "lognormal:1", "replay:ab"),
    "--clock": names("eager", "graph"),
    "--max-tokens": COUNTS,
    "--runtime-max-tokens": COUNTS,
    "--fabric": names("host", "nvlink", "shared_gpu"),
    "--seed": COUNTS,
    "--samples": COUNTS,
    "--warmup": COUNTS,
    "--budget": COUNTS,
    "--resume": None,
    "--quiet": None,
}
PLANNED = ["--dp", "4", "--hidden", "256", "--experts", "16", "--top-k", "4"]


@st.composite
def typed(draw, options):
    """Options with values, each option at most three times; the last one counts."""
    words = []
    for option in draw(st.lists(st.sampled_from(sorted(options)), max_size=5)):
        words.append(option)
        if options[option] is not None:
            words.append(draw(options[option]))
    return words


def status_of(words) -> int:
    """Runs a command as a shell would; whatever but an exit status comes out fails the test."""
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try:
            status = main(words)
        except SystemExit as stop:
            status = stop.code
    assert "internal error" not in err.getvalue(), err.getvalue()
    assert "Traceback" not in err.getvalue()
    assert status in (0, 1, 2)
    assert err.getvalue().count("\n") == (status != 0), err.getvalue()
    return status


@pytest.fixture(scope="module")
def record(tmp_path_factory):
    rows = [row for tokens in (1, 16) for row in samples(tokens=tokens)]
    return str(records.save(records.new_table(rows, origin()), tmp_path_factory.mktemp("records") / "record.parquet"))


@pytest.fixture(scope="module")
def no_ranks():
    """A sweep that was accepted ends here, before a process would start."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("mnnvl_lab.measure.run.run", lambda *_, **__: records.new_table(samples(), origin()))
        yield


@settings(max_examples=150)
@given(st.booleans(), typed(PLAN))
def test_plan(whole, words):
    status_of(["plan", *(PLANNED if whole else []), *words])


@settings(max_examples=150)
@given(whole=st.booleans(), words=typed(SWEEP))
def test_sweep(no_ranks, whole, words):
    status_of(["sweep", "--out", "x.parquet", *(PLANNED if whole else []), *words])


@settings(max_examples=50)
@given(words=st.lists(st.one_of(WORDS, st.sampled_from(["--alpha", "--out", "--type", "RECORD"])), max_size=5))
def test_compare_and_plot_of_odd_words(record, tmp_path_factory, words):
    given_words = [record if word == "RECORD" else word for word in words]
    before = os.getcwd()
    os.chdir(tmp_path_factory.getbasetemp())
    try:
        status_of(["compare", *given_words])
        status_of(["plot", *given_words])
    finally:
        os.chdir(before)


@given(alpha=st.one_of(WORDS, st.floats().map(str)))
def test_compare_at_any_alpha(record, alpha):
    status_of(["compare", record, record, "--alpha", alpha])


@given(words=st.lists(WORDS, max_size=3))
def test_any_words_at_all(words):
    status_of(words)
    status_of(["doctor", *words, "--never"])

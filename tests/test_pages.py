"""Pages against `data/`: tables and marked numbers are as computed, and no measured number stands there unmarked."""

import re

import pytest

from tools import latency_report, page_numbers, reliability, soak

UNIT = r"(?:µs|ns|ms|s|min|%|GB/s|TB/s|MB|MiB|GiB)"
NUMBER = re.compile(rf"(?<![\w.])\d[\d,.]*(?: to \d[\d,.]*)? ?{UNIT}(?!\w)")
COMPUTED = re.compile(r"<!-- (\w+) -->\n.*?<!-- /\1 -->", re.DOTALL)
CODE = re.compile(r"```.*?```|`[^`\n]*`", re.DOTALL)
MARKED = re.compile(page_numbers.SPAN.pattern + rf"(?: ?{UNIT}|\n{UNIT})?")
GENERATED = ("reliability.md",)
"""Written whole by a tool; the last test compares it."""
PAGES = [page for page in latency_report.PAGES if page.name not in GENERATED]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_tables_and_numbers_are_what_the_data_give(page):
    text = page.read_text()
    assert latency_report.filled(text) == text, "run python -m tools.latency_report"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_no_number_with_a_unit_is_unmarked(page):
    text = page.read_text()
    for pattern in (COMPUTED, CODE, MARKED):
        text = pattern.sub("", text)
    assert NUMBER.findall(text) == []


def test_an_unmarked_number_is_seen():
    assert NUMBER.findall("takes 12.5 µs, or 3 to 4 ms; 10 % of 1,000 GB/s") == [
        "12.5 µs",
        "3 to 4 ms",
        "10 %",
        "1,000 GB/s",
    ]
    assert NUMBER.findall("4096 tokens on 2 ranks, version 0.7.2, 3 streams") == []


def test_a_marked_number_follows_its_record():
    page = "a <!--median one_sided 4096-->1.00<!--/--> µs and <!--given-->5 s<!--/-->"
    (value,) = re.findall(r"4096-->([\d.]+)<", page_numbers.filled(page))
    assert float(value) == pytest.approx(page_numbers.median("one_sided", "4096"), abs=0.005)
    assert page_numbers.filled(page).endswith("<!--given-->5 s<!--/-->")


def test_the_page_of_faults_is_what_the_campaigns_give():
    assert reliability.PAGE.read_text() == reliability.page(reliability.results(soak.OUT)), (
        "run python -m tools.reliability"
    )

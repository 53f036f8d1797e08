"""The page in Chromium with the network cut: no request, no console message, readable at 1000 px, and a PDF."""

import os
import zlib

import pytest

import mnnvl_lab as lab
from mnnvl_lab import records
from mnnvl_lab.datasets import DATA
from mnnvl_lab.reports.browser import find_chromium
from tests.report_helpers import small

playwright = pytest.importorskip("playwright.sync_api")
pytestmark = [
    pytest.mark.xdist_group("report"),
    pytest.mark.notebook,
    pytest.mark.timeout(240),
    pytest.mark.skipif(find_chromium() is None, reason="no Chromium on this machine"),
]
FLAGS = (
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
)


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    folder = tmp_path_factory.mktemp("browser")
    source = records.save(small(), folder / "small.parquet")
    return lab.report([source, DATA / "h100x2_nvlink_ep2_memory.parquet"], out=folder / "out")


@pytest.fixture(scope="module")
def seen(written, tmp_path_factory):
    """What a browser without a network makes of the page."""
    root = ["--no-sandbox"] if os.geteuid() == 0 else []
    found = {"messages": [], "requests": []}
    with playwright.sync_playwright() as driver:
        context = driver.chromium.launch_persistent_context(
            tmp_path_factory.mktemp("profile"),
            executable_path=find_chromium(),
            offline=True,
            viewport={"width": 1000, "height": 1200},
            args=[*FLAGS, *root],
        )
        page = context.new_page()
        page.on("console", lambda message: found["messages"].append(message.text))
        page.on("pageerror", lambda error: found["messages"].append(str(error)))
        page.on("request", lambda request: found["requests"].append(request.url))
        page.goto(written.html.as_uri(), wait_until="load")
        found |= page.evaluate(
            """async () => {
                await document.fonts.ready;
                const small = [...document.querySelectorAll('p, li, td, th')].filter(e => e.offsetParent !== null);
                return {
                    width: document.documentElement.scrollWidth,
                    smallest: Math.min(...small.map(e => parseFloat(getComputedStyle(e).fontSize))),
                    wide: [...document.querySelectorAll('.scroll')].filter(e => e.scrollWidth > e.clientWidth).length,
                    figures: [...document.querySelectorAll('figure svg')].map(e => e.getBoundingClientRect().width),
                    heads: [...document.querySelectorAll('h2')].map(e => e.textContent.trim()),
                    broken: [...document.querySelectorAll('nav a')]
                        .filter(a => !document.getElementById(decodeURIComponent(a.hash.slice(1)))).length,
                    numbers: JSON.parse(document.getElementById('numbers').textContent).files.length,
                };
            }"""
        )
        page.emulate_media(media="print")
        page.set_viewport_size({"width": 690, "height": 1000})  # A4 less its margins
        found["printed_width"] = page.evaluate("document.documentElement.scrollWidth")
        context.close()
    return found


def test_nothing_is_asked_for_and_nothing_complained_of(seen, written):
    assert seen["requests"] == [written.html.as_uri()]
    assert seen["messages"] == []


def test_it_is_readable_at_1000_px(seen):
    assert seen["width"] <= 1000
    assert seen["smallest"] >= 13
    assert seen["wide"] == 0, "a table must be scrolled sideways"
    assert seen["figures"]
    assert min(seen["figures"]) > 500


def test_it_fits_on_paper(seen):
    assert seen["printed_width"] <= 690


def test_sections_are_linked_and_numbers_parse(seen):
    assert len(seen["heads"]) >= 9
    assert seen["broken"] == 0
    assert seen["numbers"] == 2


def test_the_pdf_holds_the_page_as_text(written):
    assert written.note == ""
    content = written.pdf.read_bytes()
    assert content.startswith(b"%PDF-")
    assert b"FontFile2" in content or b"FontFile2" in _streams(content) or b"/Font" in content
    assert content.count(b"/Type /Page\n") + content.count(b"/Type /Page ") + content.count(b"/Type /Page/") >= 3


def _streams(content):
    parts = (part.partition(b"endstream")[0].strip(b"\r\n") for part in content.split(b"stream\n")[1:])
    return b"".join(_inflated(part) for part in parts)


def _inflated(part):
    try:
        return zlib.decompress(part)
    except zlib.error:
        return b""

"""The built site in a real browser: every page without a network, search and navigation, nothing too wide."""

import subprocess
import sys
import urllib.request
from importlib.util import find_spec

import pytest

from tests.browser.conftest import ROOT, free_port, open_tab, shoot_as, wait_until_ready

PAGES = (
    "index",
    "notebooks/02-a-workspace-for-the-wrong-group",
    "notebooks/08-one-sided-or-two-sided",
    "docs/glossary",
)
TOO_WIDE = """() => [...document.querySelectorAll('article img')]
    .filter(image => image.getBoundingClientRect().right > image.closest('article').getBoundingClientRect().right + 1)
    .map(image => image.src)"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    if find_spec("sphinx") is None:
        pytest.skip("Sphinx is not installed: make site installs it")
    out = tmp_path_factory.mktemp("built") / "site"
    command = [sys.executable, "-m", "tools.site", "--out", str(out)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=200)
    assert done.returncode == 0, done.stderr
    return out


@pytest.fixture(scope="module")
def address(folder, tmp_path_factory):
    port, log = free_port(), tmp_path_factory.mktemp("served") / "log"
    command = [sys.executable, "-m", "http.server", str(port), "--bind", "127.0.0.1", "--directory", str(folder)]
    with log.open("w") as out:
        process = subprocess.Popen(command, stdout=out, stderr=out)
    try:
        wait_until_ready(f"http://127.0.0.1:{port}/", process, log)
        yield f"http://127.0.0.1:{port}"
    finally:
        process.terminate()
        process.wait(timeout=30)


@pytest.fixture(params=["light", "dark"])
def tab(request, chromium, address):
    """A tab in one theme, in which any other address is refused; `tab.problems` has these and the console's errors."""

    def within(route):
        if route.request.url.startswith((address, "data:")):
            return route.continue_()
        tab.problems.append(f"asked for {route.request.url}")
        return route.abort()

    with open_tab(chromium, color_scheme=request.param, viewport={"width": 1400, "height": 1000}) as tab:
        tab.theme = request.param
        tab.route("**/*", within)
        yield tab


@pytest.mark.timeout(300)
def test_every_page_opens_without_a_network(tab, folder, address):
    if tab.theme == "dark":
        pytest.skip("the same files as in the light theme")
    for path in sorted(folder.rglob("*.html")):
        if "_static" not in path.parts and "_downloads" not in path.parts:
            tab.goto(f"{address}/{path.relative_to(folder)}")
    assert tab.problems == []


def test_figures_stay_in_their_column(tab, address):
    for width in (1000, 1400):
        tab.set_viewport_size({"width": width, "height": 1000})
        for page in PAGES:
            tab.goto(f"{address}/{page}.html")
            assert tab.evaluate(TOO_WIDE) == []
            shoot_as(tab, f"site-{tab.theme}-{width}-{page.rpartition('/')[2]}")
    assert tab.evaluate("document.documentElement.dataset.theme") == tab.theme
    assert tab.problems == []


def test_the_search_finds_a_term_and_a_notebook(tab, address):
    tab.goto(f"{address}/search.html?q=completion+flag")
    tab.locator("#search-results li a").first.wait_for()
    titles = " ".join(tab.locator("#search-results li > a").all_inner_texts())
    assert "What does a one-sided round do, step by step?" in titles
    tab.goto(f"{address}/search.html?q=MNNVL")
    tab.locator("#search-results li a", has_text="MNNVL").first.wait_for()
    assert tab.problems == []


def test_the_navigation_leads_to_a_notebook_and_on_to_the_next(tab, address):
    tab.goto(f"{address}/index.html")
    tab.locator("nav.bd-links").get_by_role("link", name="01 Which ranks form a group?").click()
    tab.wait_for_url("**/notebooks/01-ranks-and-groups.html")
    tab.locator("a.right-next").click()
    tab.wait_for_url("**/notebooks/02-*.html")
    assert tab.problems == []


def test_a_notebook_can_be_downloaded(tab, address):
    tab.goto(f"{address}/notebooks/01-ranks-and-groups.html")
    place = tab.locator(".dropdown-download-buttons a").first.evaluate("link => link.href")
    with urllib.request.urlopen(place) as answer:
        assert b'"nbformat"' in answer.read()

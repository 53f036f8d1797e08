"""Notebooks in JupyterLab as a person runs them: opened by `make lab`, run, answered, restarted, two at once."""

import re
import time

import psutil
import pytest

from mnnvl_lab.course.ask import answer
from tests.browser.conftest import open_tab, shoot_as
from tests.browser.lab import Person, make_lab

pytestmark = pytest.mark.timeout(300)
SWEEP = re.compile(r"lab\.run\(sweep")
ENDS_S = 30


@pytest.fixture(scope="module")
def address(tmp_path_factory):
    with make_lab(tmp_path_factory.mktemp("lab")) as address:
        yield address


@pytest.fixture(scope="module")
def person(address, chromium):
    with open_tab(chromium, viewport={"width": 1400, "height": 1000}) as tab:
        tab.goto(address)
        yield Person(tab=tab)


def ranks_running() -> int:
    """Engines of ipyparallel below this process."""
    below = psutil.Process().children(recursive=True)
    return sum("ipyparallel" in " ".join(_command(process)) for process in below)


def _command(process):
    try:
        return process.cmdline()
    except psutil.Error:
        return []


def test_make_lab_opens_the_quickstart(person):
    person.tab.get_by_role("heading", name="What does one MoE layer cost between its ranks?").wait_for(timeout=60_000)
    person.wait_until_idle()


def test_run_all_shows_progress_and_nothing_red(person):
    seen = person.run_all()
    assert person.reds() == []
    assert any("starting 4 ranks" in text for text in seen), seen
    assert any("point" in text for text in seen), seen


@pytest.mark.parametrize("theme", ["Dark", "Light"])
def test_figures_stay_in_their_column(person, theme):
    person.choose("Settings", "Theme", f"JupyterLab {theme}")
    person.tab.wait_for_function(f"document.body.dataset.jpThemeLight === '{str(theme == 'Light').lower()}'")
    for width in (1000, 1400):
        person.tab.set_viewport_size({"width": width, "height": 1000})
        person.notebook.locator(".jp-OutputArea-output img").nth(4).wait_for(state="attached")
        assert person.too_wide() == []
        shoot_as(person.tab, f"quickstart-{theme.lower()}-{width}")


def test_a_kernel_restarted_during_a_sweep_leaves_nothing_and_goes_on(person):
    person.choose("Run", "Run All Cells")
    person.watch(until=lambda seen: any("point" in text for text in seen))
    assert ranks_running() > 0
    person.choose("Kernel", "Restart Kernel…")
    person.tab.locator(".jp-Dialog .jp-mod-accept").click()
    person.wait_until_idle()
    deadline = time.monotonic() + ENDS_S
    while ranks_running():
        assert time.monotonic() < deadline, "ranks of the kernel that was restarted are left"
        time.sleep(0.2)
    assert any("point" in text for text in person.run_all())
    assert person.reds() == []


def test_two_notebooks_run_at_once(person):
    for name in ("02-", "04-"):
        person.open(name)
        person.choose("Run", "Run All Cells")
    for name in ("02-", "04-"):
        person.tab.locator(".lm-TabBar-tab", has_text=name).first.click()
        person.watch()
        assert person.reds() == []
        assert person.too_wide() == []
        shoot_as(person.tab, f"two-at-once-{name}")


def test_a_question_is_answered_wrongly_then_rightly_then_revealed(person):
    right = answer("04.1")
    cell = person.notebook.locator(".jp-CodeCell", has_text='lab.check("04.1"')
    reply = cell.locator(".jp-RenderedHTML")
    person.write(cell, f'lab.check("04.1", {right + 1})')
    reply.get_by_text("Not yet").wait_for()
    assert str(right) not in re.sub(r"04\.1|Not yet: \d+", "", reply.inner_text())
    shoot_as(person.tab, "exercise-wrong")
    person.write(cell, f'lab.check("04.1", "{right}")')
    reply.get_by_text(f"Right: {right}").wait_for()
    shoot_as(person.tab, "exercise-right")
    person.write(cell, 'lab.reveal("04.2")')
    cell = person.notebook.locator(".jp-CodeCell", has_text='lab.reveal("04.2")')
    cell.locator(".jp-RenderedHTML").get_by_text(f"04.2: {answer('04.2'):,}").wait_for()
    shoot_as(person.tab, "exercise-revealed")


def test_the_console_has_no_error(person):
    assert person.tab.problems == []

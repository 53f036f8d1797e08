"""The explorer in a real browser: opens, follows mouse and keyboard, explains, measures; no error in the console."""

import re
import time

import pytest

from tests.browser.conftest import shoot_as

PATIENCE_MS = 60_000
CELL = ".jp-Notebook .jp-CodeCell"


def shoot(page, server, name):
    shoot_as(page, f"explorer-{server.theme}-{name}")


def slider(page, name):
    """The handle of a slider by its label."""
    box = page.locator(".widget-slider", has=page.get_by_text(name, exact=True)).first
    return box.locator(".noUi-handle").first


def drag(page, name, by, steps=12):
    """Move a slider's handle with the pressed mouse, as a reader would."""
    box = slider(page, name).bounding_box()
    x, y = box["x"] + box["width"] / 2, box["y"] + box["height"] / 2
    page.mouse.move(x, y)
    page.mouse.down()
    for step in range(1, steps + 1):
        page.mouse.move(x + by * step / steps, y)
    page.mouse.up()


def headline(page):
    return (
        page.locator(".jp-OutputArea-output").get_by_text(re.compile("tokens per rank|Impossible")).first.inner_text()
    )


def text_of(page):
    return page.locator(".jp-OutputArea-output").first.inner_text()


def until(page, condition, seconds=15):
    """Wait for the page to say it, and give the text."""
    deadline = time.monotonic() + seconds
    while not condition(text := text_of(page)):
        assert time.monotonic() < deadline, text[:1500]
        page.wait_for_timeout(50)
    return text


def reading(page, name):
    """What stands beside a slider."""
    box = page.locator(".widget-slider", has=page.get_by_text(name, exact=True)).first
    return box.locator(".widget-readout").inner_text()


@pytest.mark.timeout(240)
def test_it_opens(page, server):
    page.get_by_text("| Idle").wait_for(timeout=PATIENCE_MS)
    page.locator(CELL).first.locator(".cm-content").click()
    page.keyboard.press("Shift+Enter")
    page.locator(".widget-slider").first.wait_for(timeout=PATIENCE_MS)
    text = until(page, lambda text: "tokens per rank" in text and "predicted" in text, seconds=60)
    assert "EP 8 = DP 4 x PCP 1 x TP 2" in text
    page.locator("svg .prediction").first.wait_for(state="attached")
    assert page.evaluate("document.body.dataset.jpThemeLight") == str(server.theme == "light").lower()
    shoot(page, server, "1-open")


def test_dragging_tp_dp_and_tokens_changes_figure_and_numbers(page, server):
    before = text_of(page)
    paths = page.locator("svg .prediction").first.get_attribute("d")
    drag(page, "TP", -60)
    until(page, lambda text: "TP 1" in text)
    drag(page, "tokens per rank", 60)
    after = until(page, lambda text: f"{reading(page, 'tokens per rank')} tokens per rank" in text)
    assert after != before
    assert reading(page, "tokens per rank") != "128"
    drag(page, "DP", 3)
    until(page, lambda text: f"DP {reading(page, 'DP')} x PCP 1" in text or "Impossible" in text)
    assert page.locator("svg .prediction").first.get_attribute("d") != paths or "Impossible" in text_of(page)
    shoot(page, server, "2-dragged")


def test_a_long_drag_does_not_queue(page):
    """Within a second after the last move the figure is that of the last value."""
    drag(page, "tokens per rank", -100, steps=80)
    drag(page, "tokens per rank", 80, steps=80)
    last = reading(page, "tokens per rank")
    began = time.monotonic()
    until(
        page,
        lambda text: f"\n{last} tokens per rank" in text or f", {last} tokens per rank" in text or "Impossible" in text,
    )
    assert time.monotonic() - began < 5


def test_an_impossible_setting_is_explained_and_the_nearest_is_a_button(page, server):
    drag(page, "DP", 90)
    # The front end holds back a slider's last value while the kernel draws, but never a click: let the value arrive.
    text = until(page, lambda text: f"= DP {reading(page, 'DP')} x" in text and "Impossible as set" in text)
    assert "NVLink domains" in text or "divide" in text
    shoot(page, server, "3-impossible")
    page.get_by_role("button", name=re.compile("Nearest possible")).click()
    until(page, lambda text: "Impossible as set" not in text)
    shoot(page, server, "4-nearest")


def test_the_keyboard_alone_moves_a_slider(page):
    before = int(reading(page, "tokens per rank"))
    slider(page, "tokens per rank").focus()
    page.keyboard.press("ArrowRight")
    until(page, lambda text: f"{before * 2} tokens per rank" in text)
    page.keyboard.press("ArrowLeft")
    until(page, lambda text: f"{before} tokens per rank" in text)


def test_the_rank_under_the_pointer_or_keyboard_shows_its_groups(page, server):
    cell = page.locator("svg g.c").first
    cell.hover()
    page.wait_for_timeout(200)
    assert page.locator("svg text.i0").is_visible()
    assert not page.locator("svg text.hint").is_visible()
    shoot(page, server, "5-groups")
    page.mouse.move(5, 5)
    cell.focus()
    page.keyboard.press("Tab")
    page.wait_for_timeout(200)
    assert page.locator("svg text.i1").is_visible()


def test_an_engines_flags_are_understood(page, server):
    page.locator(".widget-dropdown select").first.select_option("vllm")
    flags = page.locator("input[placeholder*='flags']")
    flags.fill("-tp 2 -dp 4 --enable-expert-parallel --all2all-backend flashinfer_nvlink_one_sided")
    flags.press("Enter")
    until(page, lambda text: "opens a one_sided workspace" in text and "Who serves" in text)
    shoot(page, server, "6-engine")
    page.locator(".widget-dropdown select").first.select_option("(sizes below)")
    until(page, lambda text: "Who serves" not in text)


@pytest.mark.timeout(240)
def test_run_here_adds_a_point_with_its_fabric(page, server):
    page.get_by_label("model").select_option("gpt-oss-120b")
    page.locator("svg g.c").first.wait_for()
    slider(page, "tokens per rank").focus()
    for _ in range(16):
        page.keyboard.press("ArrowLeft")
    until(page, lambda text: "1 tokens per rank" in text)
    page.get_by_role("button", name="Run here").click()
    page.locator("svg .measured").first.wait_for(timeout=PATIENCE_MS, state="attached")
    text = until(page, lambda text: "measured on this machine" in text)
    assert "host" in text or "nvlink" in text
    assert page.locator("svg .measured").count() >= 1
    page.locator("svg .measured").first.scroll_into_view_if_needed()
    shoot(page, server, "7-run-here")


def test_copy_as_code_shows_the_lines(page, server):
    page.get_by_role("button", name="Copy as code").click()
    area = page.locator("textarea[rows='12'], .widget-textarea textarea").first
    area.wait_for()
    assert "lab.predict(layout" in area.input_value()
    area.scroll_into_view_if_needed()
    shoot(page, server, "8-code")


def test_the_console_has_no_error(page):
    assert page.problems == []

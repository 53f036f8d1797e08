"""What a built page would load from elsewhere: a site that is read without a network must load nothing."""

from __future__ import annotations

import re
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path

LOADED = {
    "script": "src",
    "img": "src",
    "iframe": "src",
    "source": "src",
    "video": "src",
    "embed": "src",
    "link": "href",
}
ELSEWHERE = re.compile(r"^(?:https?:)?//", re.IGNORECASE)
IN_CSS = re.compile(r"""url\(\s*['"]?((?:https?:)?//[^'")\s]+)|@import\s+['"]((?:https?:)?//[^'"]+)""", re.IGNORECASE)
NOT_LOADED = {"canonical", "next", "prev", "author", "license"}


class _Page(HTMLParser):
    """Collects the addresses that a browser loads with the page; a link to click is none of them."""

    def __init__(self) -> None:
        super().__init__()
        self.addresses: list[str] = []
        self._style = False

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        values = {name: value or "" for name, value in attrs}
        self._style = tag == "style"
        address = values.get(LOADED.get(tag, ""), "")
        if ELSEWHERE.match(address) and values.get("rel") not in NOT_LOADED:
            self.addresses.append(address)
        self.addresses += _of_css(values.get("style", ""))

    def handle_data(self, data: str) -> None:
        if self._style:
            self.addresses += _of_css(data)

    def handle_endtag(self, tag: str) -> None:
        self._style = False


def _of_css(text: str) -> list[str]:
    return [first or second for first, second in IN_CSS.findall(text)]


def loaded_from_elsewhere(folder: Path) -> Iterator[tuple[Path, str]]:
    """File and address of each resource that pages and style sheets of a folder load over a network."""
    for path in sorted(folder.rglob("*")):
        if path.suffix == ".css":
            yield from ((path, address) for address in _of_css(path.read_text()))
        elif path.suffix == ".html":
            page = _Page()
            page.feed(path.read_text())
            yield from ((path, address) for address in page.addresses)

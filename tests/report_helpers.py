"""A write-up read back: its tables, its numbers, and files to make it from."""

from __future__ import annotations

import json
import re
from html.parser import HTMLParser

import pandas as pd

from mnnvl_lab import records
from mnnvl_lab.datasets import load_recorded


class Page(HTMLParser):
    """Tables of a page: for each, what it is about and its rows as `column: (text, value)`."""

    def __init__(self, text):
        super().__init__()
        self.tables, self.heads, self.about, self.cell, self.tag = [], [], {}, None, ""
        self.feed(text)
        self.numbers = json.loads(re.search(r'id="numbers">(.*?)</script>', text, re.S)[1])

    def handle_starttag(self, tag, attrs):
        attrs, self.tag = dict(attrs), tag
        if tag == "div" and attrs.get("class") == "scroll":
            self.about = {name.removeprefix("data-"): value for name, value in attrs.items() if name[:5] == "data-"}
        elif tag == "details":
            self.about = None
        elif tag == "table" and self.about is not None:
            self.tables.append((self.about, []))
        elif tag == "tr" and self.about is not None and self.tables:
            self.tables[-1][1].append({})
        elif tag == "td" and self.about is not None:
            self.cell = attrs

    def handle_endtag(self, tag):
        self.tag = ""
        if tag == "td":
            self.cell = None
        if tag == "details":
            self.about = {}

    def handle_data(self, data):
        if self.tag == "h2":
            self.heads.append(data)
        if self.cell and "data-column" in self.cell:
            self.tables[-1][1][-1][self.cell["data-column"]] = (data, self.cell.get("data-value"))

    def rows(self, **about):
        """Rows of the tables that are about this."""
        wanted = {name.replace("_", "-"): str(value) for name, value in about.items()}
        return [(place, row) for place, rows in self.tables if wanted.items() <= place.items() for row in rows if row]


def small(*, slower=1.0, device=None, created_at=None) -> pd.DataFrame:
    """A few points of the recorded pair, as another run might have measured them."""
    table = load_recorded("h100x2_nvlink_ep2_bf16").query("tokens in (1, 128, 4096) and routing == 'uniform'")
    provenance = dict(records.provenance_of(table))
    provenance |= {"device": device or provenance["device"]}
    if created_at:
        provenance |= {"created_at": created_at}
    return records.new_table(table.assign(latency_us=table["latency_us"] * slower), provenance)

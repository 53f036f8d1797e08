"""Tables for papers: what is shown, how it is written, and that it is the number of the samples."""

import re
import shutil
import subprocess
from html.parser import HTMLParser

import numpy as np
import pandas as pd
import pytest

import mnnvl_lab as lab
from mnnvl_lab import datasets, records
from mnnvl_lab.errors import Refused
from mnnvl_lab.records.statistics import median_interval

NASTY = r"50%_of {a} & b\c | <d> ~$^#"


@pytest.fixture(scope="module")
def samples():
    return datasets.load_recorded("h100x2_nvlink_ep2_bf16").query(
        "clock == 'graph' and routing == 'uniform' and tokens in (1, 128, 4096)"
    )


class Cells(HTMLParser):
    """Rows of `data-column: (text, data-value)` of a page."""

    def __init__(self):
        super().__init__()
        self.rows, self.cell = [], None

    def handle_starttag(self, tag, attrs):
        if tag == "tr":
            self.rows.append({})
        self.cell = dict(attrs) if tag == "td" else None

    def handle_data(self, data):
        if self.cell:
            self.rows[-1][self.cell["data-column"]] = (data, self.cell.get("data-value"))
            self.cell = None


def cells_of(html):
    parser = Cells()
    parser.feed(html)
    return [row for row in parser.rows if row]


def median_of(samples, mode, tokens):
    chosen = samples[(samples["mode"] == mode) & (samples["tokens"] == tokens)]
    return chosen.groupby("iteration")["latency_us"].max().to_numpy()


def test_a_cell_is_the_median_of_the_slowest_rank_with_its_interval(samples):
    rows = cells_of(lab.table(samples, style="html"))
    assert len(rows) == 12
    for row in rows:
        slowest = median_of(samples, row["mode"][0].replace("-", "_"), int(row["tokens"][1]))
        assert float(row["p50_us"][1]) == np.median(slowest)
        assert tuple(map(float, row["interval"][1].split())) == median_interval(slowest)
        assert float(row["p50_us"][0].replace(",", "")) == pytest.approx(np.median(slowest), abs=0.05 + 1e-9)


@pytest.mark.parametrize("style", ["latex", "markdown", "html"])
def test_headings_come_from_the_registry_and_what_holds_throughout_is_said_once(samples, style):
    text = lab.table(records.summary(samples), style=style)
    assert "Median latency (" in text
    assert "Tokens per rank" in text
    assert text.count("fabric nvlink") == 1
    for silent in ("Runtime max", "Written in place", "Hidden size"):
        assert silent not in text


def test_latex_is_booktabs_with_decimals_below_each_other(samples):
    lines = lab.table(samples, style="latex").splitlines()
    assert [line for line in lines if "rule" in line] == [r"\toprule", r"\midrule", r"\bottomrule"]
    rows = [line for line in lines if line.endswith(r"\\")][1:]
    medians = [row.split(" & ")[2] for row in rows]
    assert {len(median.partition(".")[2]) for median in medians} == {1}
    columns = re.search(r"tabular}{(\w+)}", "\n".join(lines))[1]
    assert {row.count("&") for row in rows} == {len(columns) - 1}


def test_latex_nests_its_environments_balances_braces_and_is_ascii(samples):
    bytes_and_words = pd.DataFrame({"workspace_bytes": [226 * 2**20], "note": [NASTY + "µ × – · ∞"]})
    for table in (samples, records.summary(samples), bytes_and_words):
        latex = lab.table(table, style="latex")
        open_ones = []
        for verb, name in re.findall(r"\\(begin|end)\{(\w+)\}", latex):
            if verb == "begin":
                open_ones.append(name)
            else:
                assert open_ones.pop() == name
        assert open_ones == []
        assert len(re.findall(r"(?<!\\)\{", latex)) == len(re.findall(r"(?<!\\)\}", latex))
        assert re.sub("^%.*", "", latex, flags=re.MULTILINE).isascii()  # a comment is not typeset


@pytest.mark.skipif(shutil.which("pdflatex") is None, reason="pdflatex is not installed")
def test_latex_is_compiled_as_it_is(samples, tmp_path):
    nasty = pd.DataFrame({"note": [NASTY + "µ × – · ∞"], "workspace_bytes": [2**20]})
    tables = "\n\n".join(lab.table(table, style="latex") for table in (records.summary(samples), nasty))
    preamble = r"\documentclass{article}\usepackage{booktabs,textcomp}\begin{document}"
    (tmp_path / "table.tex").write_text(f"{preamble}\n{tables}\n\\end{{document}}\n")
    command = ["pdflatex", "-interaction=nonstopmode", "-halt-on-error", "table.tex"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stdout[-2000:]


def test_what_a_format_reads_as_its_own_is_escaped():
    frame = pd.DataFrame({"note": [NASTY], "n": [1]})
    latex = lab.table(frame, style="latex")
    body = latex.split("\\midrule")[1]
    assert r"50\%\_of \{a\} \& b\textbackslash{}c | \textless{}d\textgreater{} \textasciitilde{}\$" in body
    assert len(re.findall(r"(?<!\\)&", body)) == 1
    (row,) = cells_of(lab.table(frame, style="html"))
    assert row["note"][0] == NASTY
    markdown = lab.table(frame, style="markdown").splitlines()[-1]
    assert len(re.findall(r"(?<!\\)\|", markdown)) == 3
    assert "\\<d>" in markdown


def test_markdown_lines_have_one_width(samples):
    lines = [line for line in lab.table(samples).splitlines() if line.startswith("|")]
    assert len({len(line) for line in lines}) == 1


def test_bytes_are_readable_and_intervals_of_too_few_samples_empty():
    frame = pd.DataFrame({"workspace_bytes": [226 * 2**20, 512], "low_us": [np.nan, 1.0], "high_us": [np.nan, 2.0]})
    rows = cells_of(lab.table(frame, style="html", columns=["workspace_bytes"]))
    assert [row["workspace_bytes"] for row in rows] == [("226.0 MiB", str(226 * 2**20)), ("512 B", "512")]
    assert "nan" not in lab.table(frame, columns=["interval"])


def test_an_infinite_change_is_shown_as_such():
    frame = pd.DataFrame({"high_percent": [np.inf, 3.25]})
    assert "∞" in lab.table(frame)
    assert r"$\infty$" in lab.table(frame, style="latex")


def test_unknown_styles_and_columns_name_what_there_is(samples):
    with pytest.raises(Refused, match="latex, markdown, html"):
        lab.table(samples, style="word")
    with pytest.raises(Refused, match="column 'intervall' is not known: did you mean interval"):
        lab.table(samples, columns=["intervall"])

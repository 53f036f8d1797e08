"""Write-ups: numbers are those of the files, sections appear with their data, and nothing wrong is written."""

import json
import os
import re
import shlex
import time
from types import SimpleNamespace

import matplotlib as mpl
import nbformat
import numpy as np
import pandas as pd
import pytest
from nbformat.v4 import new_notebook

import mnnvl_lab as lab
from mnnvl_lab import records
from mnnvl_lab.__main__ import main
from mnnvl_lab.datasets import DATA, load_recorded
from mnnvl_lab.errors import LabError, RecordError, Refused
from mnnvl_lab.records.statistics import median_interval
from mnnvl_lab.reports.browser import VARIABLE, find_chromium
from mnnvl_lab.reports.caveats import _samples as caveats_of
from mnnvl_lab.reports.evidence import NEEDS, Evidence
from mnnvl_lab.reports.machine import page_command
from mnnvl_lab.reports.numbers import frame
from mnnvl_lab.reports.page import page_of
from mnnvl_lab.reports.write import TEMPLATE, _move
from tests.report_helpers import Page, small

PAIR = DATA / "h100x2_nvlink_ep2_bf16.parquet"
MEMORY = DATA / "h100x2_nvlink_ep2_memory.parquet"
LINKS = DATA / "h100x2_nvlink_links.parquet"
pytestmark = [pytest.mark.xdist_group("report"), pytest.mark.notebook]  # a report is its template, run


def slowest(table, **point):
    chosen = table
    for name, value in point.items():
        chosen = chosen[chosen[name] == value]
    return chosen.groupby("iteration")["latency_us"].max().to_numpy()


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    """One write-up of everything: the recorded sweep, its memory, links and stragglers, and a slower repetition."""
    folder = tmp_path_factory.mktemp("report")
    again = records.save(small(slower=1.1, device="2 x NVIDIA H200"), folder / "again.parquet")
    late = load_recorded("h100x2_nvlink_ep2_stragglers").query("tokens == 128 and routing == 'uniform'")
    late = records.save(records.new_table(late, records.provenance_of(late)), folder / "late.parquet")
    made = lab.report([PAIR, again, MEMORY, LINKS, late], out=folder / "out", question="How fast?", pdf=False)
    text = made.html.read_text(encoding="utf-8")
    return SimpleNamespace(made=made, text=text, page=Page(text), again=again)


class TestNumbers:
    def test_every_median_and_interval_of_a_round_is_that_of_the_samples(self, written):
        samples = load_recorded("h100x2_nvlink_ep2_bf16")
        seen = 0
        for place, row in written.page.rows(file="A", phase="round"):
            if "table" in place:
                continue
            for mode in samples["mode"].unique():
                text, value = row.get(f"{mode}:p50_us", ("", None))
                assert value is not None
                point = {name.replace("-", "_"): place[name] for name in ("clock", "phase", "format", "routing")}
                values = slowest(samples, mode=mode, tokens=int(row["tokens"][1]), **point)
                assert float(value) == np.median(values)
                assert float(text.replace(",", "")) == pytest.approx(
                    float(value), abs=0.5 if "." not in text else 0.051
                )
                ends = tuple(map(float, row[f"{mode}:interval"][1].split()))
                assert ends == median_interval(values)
                seen += 1
        assert seen == 4 * 13 * 4

    def test_phases_are_those_of_the_samples(self, written):
        samples = load_recorded("h100x2_nvlink_ep2_bf16")
        rows = written.page.rows(file="A", table="phases")
        assert {row["phase"][0] for _, row in rows} == {"prepare", "dispatch", "combine"}
        for place, row in rows:
            mode = {m.replace("_", "-"): m for m in samples["mode"].unique()}[row["mode"][0]]
            point = {"mode": mode, "phase": row["phase"][0], "tokens": int(row["tokens"][1])}
            values = slowest(samples, clock="eager", routing=place["routing"], **point)
            assert float(row["p50_us"][1]) == np.median(values)

    def test_the_machine_readable_copy_is_the_same_in_the_page_and_beside_it(self, written):
        assert json.loads(written.made.numbers.read_text(encoding="utf-8")) == written.page.numbers
        (first, *_) = written.page.numbers["files"]
        latency = frame(first["latency"])
        samples = load_recorded("h100x2_nvlink_ep2_bf16")
        assert len(latency) == len(records.summary(samples))
        for row in latency.sample(20, random_state=0).to_dict("records"):
            point = {name: row[name] for name in ("mode", "clock", "phase", "tokens", "routing")}
            assert row["p50_us"] == np.median(slowest(samples, **point))
        assert first["provenance"]["device"] == "2 x NVIDIA H100 80GB HBM3"

    def test_who_is_fastest_follows_from_the_intervals(self, written):
        samples = load_recorded("h100x2_nvlink_ep2_bf16")
        rows = written.page.rows(file="A", table="fastest")
        assert len(rows) == 2 * 13
        for place, row in rows:
            load = {"clock": place["clock"], "phase": "round", "routing": row["routing"][0]}
            tokens = int(row["tokens"][1])
            medians = {m: slowest(samples, mode=m, tokens=tokens, **load) for m in samples["mode"].unique()}
            first, second, *_ = sorted(medians, key=lambda mode: np.median(medians[mode]))
            sure = median_interval(medians[first])[1] < median_interval(medians[second])[0]
            assert row["fastest"][0].startswith(first if sure else "no difference")
            lead = 100 * (np.median(medians[second]) / np.median(medians[first]) - 1)
            assert float(row["lead_percent"][1]) == pytest.approx(lead)

    def test_bandwidths_follow_from_rows_and_medians(self, written):
        """deepep counts both ranks' rows of a token, of 14336 B: at EP 2 a token goes to 2 - 2 / 2**8 ranks or so."""
        samples = load_recorded("h100x2_nvlink_ep2_bf16")
        rows = [row for _, row in written.page.rows(file="A", table="bandwidth") if row["routing"][0] == "uniform"]
        assert len(rows) >= 2 * 2 * 5
        for row in rows:
            mode = row["mode"][0].replace("-", "_")
            values = slowest(
                samples,
                mode=mode,
                phase=row["phase"][0],
                clock="eager",
                routing="uniform",
                tokens=int(row["tokens"][1]),
            )
            bytes_per_rank = float(row["deepep"][1]) * np.median(values) * 1e3
            per_token = bytes_per_rank / int(row["tokens"][1]) / 14336
            assert 1 <= per_token < 2 + 1e-9
            if int(row["tokens"][1]) >= 64:
                assert per_token > 1.97
            assert float(row["flashinfer"][1]) == pytest.approx(2 * float(row["wire"][1]))

    def test_memory_is_that_of_the_ledger(self, written):
        ledger = load_recorded("h100x2_nvlink_ep2_memory", kind="memory").query("step == 'open' and rank == 0")
        rows = [row for _, row in written.page.rows(file="C", table="memory")]
        assert len(rows) == len(ledger)
        pairs = [(row["predicted_bytes"][1], row["measured_bytes"][1]) for row in rows]
        shown = sorted((int(predicted), int(measured)) for predicted, measured in pairs if predicted)
        known = ledger.dropna(subset="predicted_bytes")
        taken = zip(known["predicted_bytes"].astype(int), known["change_bytes"].astype(int), strict=True)
        assert shown == sorted(taken)

    def test_a_comparison_says_by_how_much(self, written):
        rows = [row for _, row in written.page.rows(file="AB", table="comparison")]
        assert rows
        for row in rows:
            assert float(row["change_percent"][1]) == pytest.approx(10)
        assert "Their were" not in written.text
        assert "measured on different devices" in written.text


class TestSections:
    def test_all_appear_where_all_data_are(self, written):
        assert written.page.heads == [
            "In short",
            "The machine",
            "The method",
            "Latency by tokens",
            "Who is fastest, and how sure",
            "Phases",
            "Bandwidths",
            "Rates of the links",
            "Memory, measured against predicted",
            "Memory, predicted",
            "One rank is late",
            "Comparison",
            "What the data cannot say",
            "Repeat it",
            "The numbers, for programs",
        ]

    def test_none_appears_without_its_data(self, tmp_path):
        one = small().query("mode == 'one_sided' and clock == 'graph'")
        made = lab.report(records.save(one, tmp_path / "one.parquet"), out=tmp_path / "out", pdf=False)
        heads = Page(made.html.read_text(encoding="utf-8")).heads
        assert heads == [
            "In short",
            "The machine",
            "The method",
            "Latency by tokens",
            "Memory, predicted",
            "What the data cannot say",
            "Repeat it",
            "The numbers, for programs",
        ]
        assert "no eager clock" in made.html.read_text(encoding="utf-8")

    def test_the_template_names_known_sections_alone(self):
        tags = [tag for cell in nbformat.read(TEMPLATE, 4).cells for tag in cell.metadata.get("tags", [])]
        named = {tag.removeprefix("needs-") for tag in tags if tag.startswith("needs-")}
        assert named == set(NEEDS)
        assert tags.count("parameters") == 1

    def test_the_template_is_kept_without_outputs(self):
        cells = nbformat.read(TEMPLATE, 4).cells
        assert not any(cell.get("outputs") for cell in cells)
        assert all(len(cell.source.splitlines()) <= 10 for cell in cells if cell.cell_type == "code")


class TestPage:
    def test_it_asks_for_nothing(self, written):
        assert not re.findall(r"""(?:src|href)\s*=\s*["'](?!#|data:)[^"']*""", written.text)
        assert not re.search(r"@import|url\((?!data:|#|&quot;#)", written.text)
        scripts = re.findall(r"<script[^>]*>", written.text)
        assert scripts == ['<script type="application/json" id="numbers">']

    def test_no_two_elements_have_one_name(self, written):
        names = re.findall(r'\sid="([^"]+)"', written.text)
        assert len(names) == len(set(names))

    def test_figures_are_described(self, written):
        labels = re.findall(r'<figure role="img" aria-label="([^"]+)"', written.text)
        assert len(labels) >= 8
        assert all(len(label) > 40 for label in labels)

    def test_words_from_files_cannot_end_the_script(self, tmp_path):
        table = small().assign(note="</script><script>alert(1)</script>")
        made = lab.report(records.save(table, tmp_path / "x.parquet"), out=tmp_path / "out", pdf=False)
        text = made.html.read_text(encoding="utf-8")
        assert text.count("<script") == 1
        assert "alert(1)" in Page(text).numbers["files"][0]["latency"].__repr__() or "alert(1)" in text

    def test_figures_lie_beside_it_for_a_paper(self, written):
        names = {path.name for path in (written.made.folder / "figures").iterdir()}
        assert {"latency-A-graph-uniform.svg", "latency-A-graph-uniform.pdf", "memory-C.svg"} <= names
        assert b"@font-face" in (written.made.folder / "figures" / "latency-A-graph-uniform.svg").read_bytes()

    def test_it_says_how_to_make_it_again(self, written):
        assert "python -m mnnvl_lab report" in written.text
        assert "git checkout 9f9f057346da636404e093599e4bcdc888dd80f7" in written.text
        assert "How fast?" in written.text


def test_points_that_differ_in_capacity_alone_are_counted_apart():
    few = small().query("mode == 'one_sided' and clock == 'graph' and iteration < 5")
    points = few.groupby(["phase", "tokens"]).ngroups
    both = pd.concat([few, few.assign(max_tokens=2 * few["max_tokens"])])
    [words] = [words for words in caveats_of(both) if "fewer than" in words]
    assert words.startswith(f"{2 * points} of {2 * points} points have fewer than 100 iterations (least 5)")


class TestRefusals:
    def test_an_existing_folder_is_left_alone_unless_told(self, tmp_path, capsys):
        out = tmp_path / "out"
        out.mkdir()
        (out / "mine.txt").write_text("kept")
        assert main(["report", str(PAIR), "--out", str(out)]) == 2
        assert "--force" in capsys.readouterr().err
        assert [path.name for path in out.iterdir()] == ["mine.txt"]
        source = records.save(small(), tmp_path / "small.parquet")
        assert main(["report", str(source), "--out", str(out), "--force", "--no-pdf"]) == 0
        assert (out / "mine.txt").read_text() == "kept"
        assert (out / "write-up.html").exists()

    def test_figures_of_an_earlier_page_go_and_others_stay(self, tmp_path):
        out, source = tmp_path / "out", records.save(small(), tmp_path / "small.parquet")
        lab.report(source, out=out, pdf=False)
        figures = out / "figures"
        (figures / ".mnnvl_lab-written.json").write_text('["old.svg", "mine.txt", "../write-up.ipynb", 3]')
        for name in ("old.svg", "mine.svg", "mine.txt"):
            (figures / name).write_text("")
        lab.report(source, out=out, pdf=False, force=True)
        assert not (figures / "old.svg").exists()
        assert {path.name for path in figures.iterdir()} >= {"mine.svg", "mine.txt"}
        listed = json.loads((figures / ".mnnvl_lab-written.json").read_text())
        assert listed
        assert {*listed, "mine.svg", "mine.txt", ".mnnvl_lab-written.json"} == {path.name for path in figures.iterdir()}
        assert (out / "write-up.ipynb").exists()

    @pytest.mark.parametrize("kind", ["missing", "empty", "text", "truncated", "foreign", "knobs", "memory", "links"])
    def test_a_file_that_is_no_record_is_named_before_anything_is_written(self, kind, tmp_path, capsys):
        path = tmp_path / "bad.parquet"
        content = PAIR.read_bytes()
        if kind == "foreign":
            load_recorded("h100x2_nvlink_ep2_bf16").head().to_csv(path)
        elif kind == "knobs":
            path = DATA / "h100x2_nvlink_ep2_knobs.parquet"
        elif kind in ("memory", "links"):  # says so, and has none of its columns
            records.save_auxiliary(small(), path, kind=kind)
        elif kind != "missing":
            path.write_bytes({"empty": b"", "text": b"hello", "truncated": content[: len(content) // 2]}[kind])
        assert main(["report", str(PAIR), str(path), "--out", str(tmp_path / "out")]) == 2
        assert path.name in capsys.readouterr().err
        assert not (tmp_path / "out").exists()

    def test_a_foreign_parquet_file_is_named(self, tmp_path):
        path = tmp_path / "foreign.parquet"
        small().drop(columns="mode").rename(columns={"tokens": "n"}).pipe(_bare).to_parquet(path)
        with pytest.raises(RecordError, match=r"foreign\.parquet: no provenance"):
            lab.report(path, out=tmp_path / "out")
        assert not (tmp_path / "out").exists()

    def test_one_file_twice_and_no_samples_are_refused(self, tmp_path):
        with pytest.raises(Refused, match="same bytes"):
            lab.report([PAIR, PAIR], out=tmp_path / "out")
        with pytest.raises(Refused, match="no file holds samples of a sweep: a write-up is of latencies"):
            lab.report([MEMORY], out=tmp_path / "out")
        with pytest.raises(Refused, match="no files"):
            lab.report([], out=tmp_path / "out")

    def test_a_template_whose_cell_fails_is_quoted_and_leaves_nothing(self, tmp_path):
        notebook = nbformat.read(TEMPLATE, 4)
        notebook.cells.append(nbformat.v4.new_code_cell("1 / 0"))
        nbformat.write(notebook, tmp_path / "mine.ipynb")
        source = records.save(small(), tmp_path / "small.parquet")
        with pytest.raises(LabError, match=r"ZeroDivisionError.*1 / 0"):
            lab.report(source, out=tmp_path / "out", template=tmp_path / "mine.ipynb", pdf=False)
        assert not (tmp_path / "out").exists()

    def test_a_tag_that_names_no_section_is_refused(self, tmp_path):
        notebook = nbformat.read(TEMPLATE, 4)
        notebook.cells.append(nbformat.v4.new_markdown_cell("x", metadata={"tags": ["needs-weather"]}))
        nbformat.write(notebook, tmp_path / "mine.ipynb")
        with pytest.raises(Refused, match=r"tag 'needs-weather' of the template: no such section; use .*needs-skew"):
            lab.report(PAIR, out=tmp_path / "out", template=tmp_path / "mine.ipynb")
        with pytest.raises(RecordError, match="no such template"):
            lab.report(PAIR, out=tmp_path / "out", template=tmp_path / "none.ipynb")


def _bare(table):
    table.attrs = {}
    return table


def test_prose_and_order_are_the_templates(tmp_path):
    notebook = nbformat.read(TEMPLATE, 4)
    notebook.cells = [
        *notebook.cells[:2],
        nbformat.v4.new_markdown_cell("## Mine\n\nOwn *words*, such as mnnvl_lab output 7."),
        *notebook.cells[-3:],
    ]
    nbformat.write(notebook, tmp_path / "mine.ipynb")
    source = records.save(small(), tmp_path / "small.parquet")
    made = lab.report(source, out=tmp_path / "out", template=tmp_path / "mine.ipynb", pdf=False)
    page = Page(made.html.read_text(encoding="utf-8"))
    assert page.heads == ["Mine", "Repeat it", "The numbers, for programs"]


def test_files_without_a_common_point_say_why(tmp_path):
    a = records.save(small().query("clock == 'graph'"), tmp_path / "a.parquet")
    b = records.save(small().query("clock == 'eager'"), tmp_path / "b.parquet")
    found = Evidence.read([a, b]).comparison()._repr_html_()
    assert "no point in common (clock is graph and eager)" in found


@pytest.mark.serial
@pytest.mark.timeout(120)
def test_the_recorded_sweep_takes_less_than_30_s(tmp_path):
    began_s = time.perf_counter()
    lab.report(PAIR, out=tmp_path / "out")
    assert time.perf_counter() - began_s < 30


def test_a_browser_can_be_named_or_switched_off(monkeypatch):
    monkeypatch.setenv(VARIABLE, "")
    assert find_chromium() is None
    monkeypatch.setenv(VARIABLE, "/opt/chrome")
    assert find_chromium() == "/opt/chrome"


def test_a_browser_that_fails_costs_the_pdf_alone(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv(VARIABLE, os.fspath(tmp_path / "no-such-browser"))
    source = records.save(small(), tmp_path / "small.parquet")
    assert main(["report", str(source), "--out", str(tmp_path / "out")]) == 0
    assert "no PDF: " in capsys.readouterr().err
    assert not (tmp_path / "out" / "write-up.pdf").exists()


def test_a_page_without_pdf_leaves_no_earlier_one_beside_it(tmp_path):
    made, out = tmp_path / "made", tmp_path / "out"
    made.mkdir()
    out.mkdir()
    (made / "write-up.html").write_text("new")
    (out / "write-up.pdf").write_text("old")
    (out / "notes.txt").write_text("mine")
    _move(made, out)
    assert sorted(path.name for path in out.iterdir()) == ["notes.txt", "write-up.html"]


def test_the_command_of_a_page_has_its_question_and_template():
    words = shlex.split(page_command(["a b.parquet"], "out", question="Is it fast?", template="own.ipynb"))
    assert words[3:] == [
        "report",
        "a b.parquet",
        "--out",
        "out",
        "--question",
        "Is it fast?",
        "--template",
        "own.ipynb",
    ]
    assert "--question" not in page_command(["a"], "out")


def test_reading_files_leaves_the_figures_of_the_callers_notebook_alone():
    with mpl.rc_context({"backend": "svg"}):
        Evidence.read([str(PAIR)])
        assert mpl.rcParams["backend"] == "svg"


def test_no_question_ends_the_numbers_of_a_page_early():
    page = page_of(new_notebook(), {"question": "<!--<script></script>"}, title="t")
    data = re.search(r'id="numbers">(.*?)</script>', page, re.S)[1]
    assert "<" not in data
    assert json.loads(data) == {"question": "<!--<script></script>"}

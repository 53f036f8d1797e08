"""Saved figures: text as text, fonts and provenance inside, readable in grey, and the figure left as it was."""

import json
import re
import warnings
from xml.etree import ElementTree

import matplotlib as mpl
import numpy as np
import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from PIL import Image

from mnnvl_lab import datasets, plots
from mnnvl_lab.errors import Refused
from mnnvl_lab.layout import Layout
from mnnvl_lab.plots.fonts import letters_of
from mnnvl_lab.plots.save import svg_of
from mnnvl_lab.plots.variants import SIZES, THEMES, restyled, rewrapped

SVG = "{http://www.w3.org/2000/svg}"


@pytest.fixture(scope="module")
def samples():
    return datasets.load_recorded("h100x2_nvlink_ep2_bf16").query("clock == 'graph' and routing == 'uniform'")


@pytest.fixture
def ax(samples):
    mpl.use("Agg")
    figure = Figure(figsize=(7.2, 4.4), layout="constrained")
    return plots.latency(samples, bounds=plots.lower_bounds(samples), ax=figure.subplots())


def pixels_of(figure):
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    return np.asarray(canvas.buffer_rgba()).copy()


def luma(rgb):
    return 0.299 * rgb[0] + 0.587 * rgb[1] + 0.114 * rgb[2]


def test_the_text_of_an_svg_is_text_with_its_letters_inside(ax, samples, tmp_path):
    (path,) = plots.save(ax, tmp_path / "latency", ["svg"], source=samples)
    root = ElementTree.fromstring(path.read_bytes())
    words = " ".join("".join(text.itertext()) for text in root.iter(f"{SVG}text"))
    assert "Latency of a round by tokens per rank" in words
    assert "2 x NVIDIA H100 80GB HBM3" in words
    assert "@font-face" in (svg := path.read_text())
    assert not re.search(r"(href|src|url)\W{1,3}https?://(?!www\.w3\.org|matplotlib\.org)", svg)


def test_the_letters_of_the_font_are_those_of_the_text(ax):
    from base64 import b64decode
    from io import BytesIO

    from fontTools.ttLib import TTFont

    svg = svg_of(ax)
    regular, bold = re.findall(r"base64,([^)]+)\)", svg)
    have = set(TTFont(BytesIO(b64decode(regular))).getBestCmap())
    assert {ord(letter) for letter in letters_of(svg) if not letter.isspace()} <= have
    assert len(have) < 100
    assert TTFont(BytesIO(b64decode(bold)))["OS/2"].usWeightClass > 400


def test_the_metadata_say_what_is_shown_and_where_it_comes_from(ax, samples, tmp_path):
    svg, pdf, png = plots.save(ax, tmp_path / "latency", source=samples)
    about = Image.open(png).text
    assert about["Description"].startswith("Latency of a round by tokens per rank. EP 2")
    assert "one-sided: 15.88 at 1, 365.6 at 4096" in about["Description"]
    source = json.loads(about["Source"])
    assert source["device"] == "2 x NVIDIA H100 80GB HBM3"
    assert source["commit"] == samples.attrs["mnnvl_lab"]["commit"]
    assert "graph clock" in source["caption"]
    assert "<desc>Latency of a round" in svg.read_text()
    assert b"/FontFile2" in pdf.read_bytes()
    assert b"/Keywords" in pdf.read_bytes()


def test_the_same_figure_gives_the_same_bytes(ax, tmp_path):
    first = [path.read_bytes() for path in plots.save(ax, tmp_path / "a")]
    assert [path.read_bytes() for path in plots.save(ax, tmp_path / "b")] == first


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("theme", THEMES)
def test_every_size_and_theme_can_be_laid_out_and_is_undone(ax, size, theme, tmp_path):
    before = pixels_of(ax.figure)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        (path,) = plots.save(ax, tmp_path / "one", ["png"], size=size, theme=theme)
    pixels = Image.open(path).size
    wanted = SIZES[size].width_in or 7.2
    assert pixels[0] == pytest.approx(300 * wanted, abs=2)
    assert np.array_equal(pixels_of(ax.figure), before)


def test_nothing_is_told_by_colour_alone(ax):
    """Each line has a marker or a dash of its own, and in print each has a dash of its own."""
    own = [line for line in ax.lines if not line.get_label().startswith("_")]
    assert len({(line.get_marker(), line.get_linestyle()) for line in own}) == len(own)
    with restyled(ax.figure, size="own", theme="print"):
        colours = {to_rgb(line.get_color()) for line in own}
        assert all(max(rgb) - min(rgb) < 1e-9 for rgb in colours)
        dashes = {(line.get_linestyle(), str(line._dash_pattern)) for line in own}
        assert len(dashes) == len(own)


def test_words_stand_out_from_a_dark_ground(ax):
    with restyled(ax.figure, size="own", theme="dark"):
        ground = luma(to_rgb(ax.get_facecolor()))
        for text in [*ax.texts, ax.xaxis.label, *ax.get_xticklabels()]:
            assert luma(to_rgb(text.get_color())) - ground > 0.35, text


@pytest.mark.parametrize("theme", ["light", "print"])
def test_lines_stand_out_in_grey(ax, theme):
    with restyled(ax.figure, size="own", theme=theme):
        assert all(luma(to_rgb(line.get_color())) < 0.72 for line in ax.lines)


def test_a_figure_prints_its_table(ax, samples):
    table = plots.shown(ax)
    line = table[table["series"] == "one-sided"].set_index("Tokens per rank")["Latency (µs)"]
    slowest = samples.query("mode == 'one_sided' and tokens == 128").groupby("iteration")["latency_us"].max()
    assert line[128] == slowest.median()
    assert set(table["series"]) >= {"one-sided", "two-sided", "least for the bytes"}


def test_bars_and_cells_print_theirs():
    figure = Figure()
    bars, cells = figure.subplots(1, 2)
    bars.bar(["a", "b"], [1.0, 2.5], label="used")
    cells.imshow([[1, 2], [3, 4]])
    assert plots.shown(bars)[["series", "category", "value"]].to_numpy().tolist() == [
        ["used", "a", 1.0],
        ["used", "b", 2.5],
    ]
    assert plots.shown(cells)["value"].tolist() == [1, 2, 3, 4]


def test_captions_are_broken_anew_where_a_line_was_broken():
    words = " ".join(["word"] * 40)
    import textwrap

    caption = f"first\n{textwrap.fill(words, 88)}\nlast"
    assert rewrapped(caption, 88) == caption
    narrow = rewrapped(caption, 40).split("\n")
    assert narrow[0] == "first"
    assert narrow[-1] == "last"
    assert max(map(len, narrow)) <= 40
    assert " ".join(narrow[1:-1]) == words


def test_unknown_formats_sizes_and_themes_name_what_there_is(ax, tmp_path):
    with pytest.raises(Refused, match="svg, pdf, png"):
        plots.save(ax, tmp_path / "x", ["gif"])
    with pytest.raises(Refused, match="size 'poster' is not known: choose one of own, column, two_columns"):
        plots.save(ax, tmp_path / "x", size="poster")
    with pytest.raises(Refused, match=r"theme 'neon' is not known: choose one of .*dark"):
        plots.save(ax, tmp_path / "x", theme="neon")
    assert not list(tmp_path.iterdir())


def test_in_a_notebook_a_figure_carries_its_description():
    from IPython.core.interactiveshell import InteractiveShell

    shell = InteractiveShell.instance()
    try:
        ax = plots.rank_grid(Layout(tp=2, dp=2).to_frame(), hue="ep_group")
        shell.display_formatter.formatters["image/png"].for_type(type(ax.figure), lambda figure: "bytes")
        data, metadata = shell.display_formatter.format(ax.figure)
    finally:
        InteractiveShell.clear_instance()
    assert data["image/png"] == "bytes"
    assert metadata["image/png"] == {"alt": plots.alt_text(ax)}


def test_a_description_has_the_words_inside_a_figure():
    text = plots.alt_text(plots.rank_grid(Layout(dp=2).to_frame(), hue="ep_group"))
    assert "rank 0; EP rank 0 node 0 · GPU 0; rank 1; EP rank 1 node 0 · GPU 1" in text

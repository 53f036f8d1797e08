"""The explorer: panels as plain functions, impossible settings with their nearest, redraws fast and the latest last."""

import re
import statistics
import time
import xml.etree.ElementTree as ET
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import mnnvl_lab as lab
from mnnvl_lab.errors import Refused
from mnnvl_lab.explorer import (
    Setting,
    answer,
    code_of,
    difference,
    fullest_link,
    grid_panel,
    latency_panel,
    memory_panel,
    nearest,
    numbers_panel,
    recorded_points,
    traffic_panel,
    verdict,
    weight_bytes,
)
from mnnvl_lab.explorer.controls import ROUTINGS
from mnnvl_lab.explorer.run_here import MOST_HOST_BYTES, fabric_here, here_panel, max_tokens_here, measure_here
from mnnvl_lab.explorer.setting import CAPACITY_STEPS, TOKEN_STEPS, TP_STEPS
from mnnvl_lab.explorer.svg import LogScale, heat_image
from mnnvl_lab.hardware import GPUS
from mnnvl_lab.layout import Layout
from mnnvl_lab.model import FORMATS, MODELS, require_model
from mnnvl_lab.planner import plan
from mnnvl_lab.planner.weights import expert_parameters

RACK = Setting(gpu="gb200", tp=2, dp=32, gpus_per_node=4)
FAST_MS = 150


@st.composite
def any_setting(draw):
    capacity = draw(st.sampled_from(CAPACITY_STEPS))
    return Setting(
        tp=draw(st.sampled_from(TP_STEPS)),
        dp=draw(st.integers(1, 72)),
        pcp=draw(st.sampled_from((1, 2, 4))),
        pp=draw(st.integers(1, 3)),
        gpus_per_node=draw(st.sampled_from((4, 8, 16))),
        gpu=draw(st.sampled_from(list(GPUS))),
        model=draw(st.sampled_from(list(MODELS))),
        format=draw(st.sampled_from(list(FORMATS))),
        capacity=capacity,
        tokens=draw(st.sampled_from(TOKEN_STEPS[:9])),
        routing=draw(st.sampled_from(ROUTINGS)),
        skew=draw(st.floats(0, 1).map(lambda x: round(x, 1))),
        modes=draw(st.sampled_from((("one_sided",), ("two_sided",), ("one_sided", "two_sided"), ()))),
    )


def parsed(panel):
    return ET.fromstring(panel.html)


# Panels


@given(setting=any_setting())
@settings(max_examples=25)
def test_every_setting_is_answered_with_well_formed_panels(setting):
    found = answer(setting)
    assert set(found.panels) == {"headline", "grid", "memory", "traffic", "latency", "numbers"}
    for name, panel in found.panels.items():
        if panel.html:
            ET.fromstring(f"<div>{panel.html}</div>".replace("<br>", "<br/>"))
            assert panel.alt, name
    assert ("Impossible" in found.panels["headline"].html) == bool(found.problems)


@given(setting=any_setting())
@settings(max_examples=40)
def test_the_nearest_setting_is_possible(setting):
    if (found := nearest(setting)) is not None and setting.problems():
        assert not found.problems()
        assert difference(setting, found)


@pytest.mark.parametrize(
    ("setting", "change"),
    [
        (Setting(dp=16), "dp 4"),
        (Setting(tokens=8192), "tokens 2048"),
        (Setting(tp=1, dp=1, model="gpt-oss-120b"), "dp 2"),
        (Setting(modes=()), "modes one_sided and two_sided"),
        (replace(RACK, dp=64, modes=("one_sided",)), "dp 32"),
    ],
)
def test_impossible_settings_name_the_nearest_possible_one(setting, change):
    assert setting.problems()
    assert change in difference(setting, nearest(setting))


def test_a_workspace_that_does_not_fit_says_how_many_tokens_would():
    made = plan(Layout(dp=8), max_tokens=2**20, model="deepseek-v3")
    said = verdict(made, "one_sided", weight_bytes(made.model, made.layout, dtype="fp4"))
    most = int(re.search(r"at most ([\d,]+) tokens", said)[1].replace(",", ""))
    room = made.gpu.memory_bytes - weight_bytes(made.model, made.layout, dtype="fp4")
    assert made.allocated_for(most) <= room < made.allocated_for(most + 1)
    assert said in memory_panel(made, weights_bytes=weight_bytes(made.model, made.layout, dtype="fp4")).alt


def test_memory_is_drawn_to_scale():
    made = plan(Layout(dp=8), max_tokens=8192, model="deepseek-v3")
    weights = 2**35
    bars = [
        r for r in parsed(memory_panel(made, weights_bytes=weights, modes=("one_sided",))).iter() if "rect" in r.tag
    ]
    total, grey, workspace = (float(r.get("width")) for r in bars[:3])
    assert grey / total == pytest.approx(weights / made.gpu.memory_bytes, abs=0.005)
    assert workspace / total == pytest.approx(made.one_sided.allocated_bytes / made.gpu.memory_bytes, abs=0.005)


def test_the_grid_has_every_rank_with_its_groups():
    layout = Layout(tp=2, dp=4, gpus_per_node=4)
    html = grid_panel(layout, name="g").html
    for rank in range(8):
        assert f'class="c c{rank} ' in html
        dp = ",".join(map(str, layout.group_of("dp", rank)))
        assert f"DP {dp}" in html
    assert html.count('tabindex="0"') == 8
    assert "node 1" in html
    assert "node 2" not in html


def test_traffic_names_the_fullest_link():
    rows = np.array([[5, 1, 9], [1, 5, 9], [1, 1, 5]])
    assert fullest_link(rows) == (2, True, 18.0)
    assert fullest_link(rows.T) == (2, False, 18.0)
    assert "rank 2 receives 18 rows" in traffic_panel(rows, row_bytes=100).alt
    assert "nothing crosses" in traffic_panel(np.diag([3, 3]), row_bytes=1).alt


def test_a_heat_image_is_a_png():
    import base64
    import io

    from PIL import Image

    uri = heat_image(np.array([[0.0, 1.0], [0.5, 0.25]]))
    image = Image.open(io.BytesIO(base64.b64decode(uri.partition(",")[2])))
    assert image.size == (2, 2)
    assert [pixel[3] for pixel in image.get_flattened_data()] == [0, 255, 127, 63]


def test_predictions_are_never_drawn_like_records():
    setting = Setting(tp=1, dp=2)
    records = recorded_points(setting)
    root = parsed(latency_panel(setting.forecast.to_frame(), recorded=records, tokens=128))
    drawn = {}
    for element in root.iter():
        drawn.setdefault(element.get("class"), []).append(element)
    assert len(drawn["recorded"]) == len(records) > 5
    assert all("circle" in element.tag for element in drawn["recorded"])
    assert all(element.get("stroke-dasharray") for element in [*drawn["prediction"], *drawn["bound"]])
    assert "dashed: prediction" in "".join(root.itertext())
    assert not [e for e in root.iter() if "circle" in e.tag and e.get("class") != "recorded"]


def test_a_gpu_without_a_model_shows_bounds_alone():
    setting = Setting(gpu="b200")
    html = latency_panel(setting.forecast.to_frame(), tokens=128).html
    assert 'class="bound"' in html
    assert 'class="prediction"' not in html
    assert "bound; no model" in answer(setting).panels["headline"].html


def test_records_are_those_of_the_same_layout_shape_format_and_routing():
    assert recorded_points(Setting(tp=1, dp=4)) is None
    assert recorded_points(Setting(tp=1, dp=2, model="kimi-k2")) is None
    assert recorded_points(Setting(tp=1, dp=2, format="nvfp4")) is None
    assert recorded_points(Setting(tp=1, dp=2, gpu="gb200")) is None
    found = recorded_points(Setting(tp=1, dp=2, format="fp8_block"))
    assert set(found["format"]) == {"fp8_block"}
    assert set(found["routing"]) == {"uniform"}


def test_the_numbers_are_those_of_predict():
    setting = Setting(gpu="gb200", gpus_per_node=4, tokens=64)
    found = lab.predict(setting.layout, model="deepseek-v3", tokens=64, gpu="gb200")["one_sided"]
    assert f">{found.latency_us:.1f}<" in numbers_panel(setting.forecast.to_frame(), tokens=64).html


def test_a_mode_that_is_refused_has_dashes_in_the_numbers():
    refused = Setting(tp=1, dp=11, model="deepseek-v3", tokens=64)
    html = numbers_panel(refused.forecast.to_frame(), tokens=64).html
    assert "nan" not in html.lower()
    assert html.count("<td>-</td>") == 2


def test_log_scales_clip_and_invert():
    scale = LogScale(low=1, high=100, begin=0, end=10)
    assert [scale(v) for v in (1, 10, 100)] == pytest.approx([0, 5, 10])
    assert scale(1e9) < 11
    assert scale.ticks() == [1, 2, 5, 10, 20, 50, 100]
    assert LogScale(low=27, high=480, begin=0, end=10).ticks() == [50, 100, 200]


# Weights


@pytest.mark.parametrize("name", MODELS)
def test_experts_are_most_of_a_models_parameters(name):
    """The inner size of an expert and the model card's total agree with the shape of the layer."""
    share = expert_parameters(MODELS[name]) / MODELS[name].parameters
    assert 0.92 < share < 1


def test_weights_are_split_as_the_layout_says():
    v3 = require_model("deepseek-v3")
    one, eight = (weight_bytes(v3, Layout(dp=n), dtype="fp8") for n in (1, 8))
    assert eight < one
    routed = expert_parameters(v3)
    assert one - eight == pytest.approx(routed * (1 - 1 / 8), rel=1e-6)
    assert weight_bytes(v3, Layout(dp=8, pp=2)) == pytest.approx(eight / 2, rel=1e-6)
    with pytest.raises(Refused, match="dtype of weights"):
        weight_bytes(v3, Layout(dp=8), dtype="int3")


# The widget, without a front end


@pytest.fixture
def explorer():
    return lab.explore()


def html_of(explorer, name):
    return explorer.views[name].value


def test_moving_a_control_redraws_figure_and_numbers(explorer):
    before = {name: html_of(explorer, name) for name in ("headline", "grid", "memory", "traffic", "latency", "numbers")}
    explorer.set(replace(explorer.setting, gpu="gb200", gpus_per_node=4, dp=8))
    assert all(html_of(explorer, name) != html for name, html in before.items())
    explorer.controls["tokens"].value = 1024
    assert "1024 tokens per rank" in html_of(explorer, "headline")


def test_an_impossible_setting_offers_the_nearest_as_a_button(explorer):
    explorer.controls["dp"].value = 16
    assert "spans 4 NVLink domains" in html_of(explorer, "headline")
    assert "dp 4" in explorer.nearest_button.description
    explorer.nearest_button.click()
    assert explorer.setting.dp == 4
    assert not explorer.answer.problems
    assert explorer.nearest_button.layout.display == "none"
    assert not explorer.run_button.disabled


def test_flags_of_an_engine_turn_the_controls(explorer):
    explorer.engine.value = "vllm"
    explorer.flags.value = (
        "deepseek-ai/DeepSeek-V3 -tp 4 -dp 2 --enable-expert-parallel --all2all-backend flashinfer_nvlink_one_sided"
    )
    assert (explorer.setting.tp, explorer.setting.dp, explorer.setting.modes) == (4, 2, ("one_sided",))
    assert explorer.setting.capacity == 8192
    assert "opens a one_sided workspace" in html_of(explorer, "engine")
    assert "TensorRT-LLM" in html_of(explorer, "engine")
    explorer.flags.value = "-tp many"
    assert "it takes a whole number" in html_of(explorer, "engine")
    explorer.engine.value = "(sizes below)"
    assert html_of(explorer, "engine") == ""


def test_code_gives_the_same_figures(explorer):
    explorer.code_button.click()
    assert explorer.code.layout.display == ""
    explorer.controls["routing"].value = "zipf"
    code = explorer.code.value
    assert "'zipf:1'" in code
    setting, found = explorer.setting, {}
    lines = code.partition("# measure it")[0]
    exec(lines.replace("\nlatency_panel(", "\ndrawn = latency_panel("), found)
    assert found["layout"] == setting.layout
    assert found["plan"] == setting.plan
    assert found["drawn"].html == latency_panel(found["forecast"].to_frame(), tokens=setting.tokens).html
    assert code == code_of(setting)


def test_changes_during_a_redraw_are_drawn_once_and_the_latest(explorer, monkeypatch):
    """A dragged slider does not queue: however many values come meanwhile, one more redraw follows."""
    drawn = []
    draw = explorer._draw

    def slow_draw():
        drawn.append(explorer.setting.tokens)
        if len(drawn) == 1:
            for tokens in (2, 4, 8, 16, 32):
                explorer.controls["tokens"].value = tokens
        draw()

    monkeypatch.setattr(explorer, "_draw", slow_draw)
    explorer.controls["tokens"].value = 1
    assert drawn == [1, 32]
    assert "32 tokens per rank" in html_of(explorer, "headline")


def test_unknown_controls_are_refused():
    with pytest.raises(Refused, match="tps is no control of the explorer: choose of tp, dp"):
        lab.explore(tps=2)


@pytest.mark.serial
@pytest.mark.parametrize("begin", [Setting(), RACK, replace(RACK, tp=1, dp=64, routing="zipf", capacity=8192)])
def test_a_redraw_takes_under_150_ms(begin):
    """20 moves of a slider, front end apart, each to a setting not drawn before: the median, and the processor's time
    of the longest, which another program on a busy machine does not prolong."""
    explorer = lab.explore(begin)
    taken_ms, busy_ms = [], []
    for move in range(20):
        tokens = 17 + 13 * move
        began, began_busy = time.perf_counter(), time.thread_time()
        explorer.set(replace(explorer.setting, tokens=tokens))
        taken_ms.append(1e3 * (time.perf_counter() - began))
        busy_ms.append(1e3 * (time.thread_time() - began_busy))
    assert statistics.median(taken_ms) < FAST_MS
    assert max(busy_ms) < FAST_MS


# Run here


def test_run_here_measures_on_this_machines_fabric_and_says_so(explorer):
    explorer.set(replace(explorer.setting, tp=1, dp=2, tokens=4, model="gpt-oss-120b"))
    explorer.run_button.click()
    assert explorer.views["said"].value == ""
    assert set(explorer.measured["mode"]) == {"one_sided", "two_sided"}
    assert (explorer.measured["low_us"] <= explorer.measured["p50_us"]).all()
    shown = html_of(explorer, "here")
    assert shown.count('class="measured"') == 2
    assert explorer.measured["fabric"].iloc[0] in shown
    assert set(explorer.measured["max_tokens"]) == {explorer.setting.capacity}
    assert f"sized for the capacity of {explorer.setting.capacity} tokens" in shown
    assert 'class="measured"' not in html_of(explorer, "latency")
    assert not explorer.run_button.disabled


def test_what_this_machine_cannot_carry_is_said_in_place(explorer):
    explorer.set(RACK)
    explorer.run_button.click()
    assert "runs at most 16" in explorer.views["said"].value
    assert explorer.measured is None
    with pytest.raises(Refused, match="use fewer tokens or ranks"):
        fabric_here(replace(RACK, dp=8, tokens=8192, capacity=8192))
    with pytest.raises(Refused, match="no mode to measure"):
        measure_here(replace(RACK, modes=()))


def test_run_here_sizes_for_the_capacity_where_memory_allows():
    """From each of 16 ranks, a token of DeepSeek-V3 in bf16 takes 14,336 bytes in dispatch and as many in combine."""
    small, large = replace(RACK, dp=8, tokens=4, capacity=64), replace(RACK, dp=8, tokens=4, capacity=8192)
    assert 16 * 16 * 64 * 2 * 14_336 < MOST_HOST_BYTES < 16 * 16 * 8192 * 2 * 14_336
    assert max_tokens_here(small, "host") == 64
    assert max_tokens_here(large, "host") == 4
    assert max_tokens_here(large, "nvlink") == 8192


def test_a_smaller_workspace_is_said_with_the_capacity():
    row = {"mode": "one_sided", "fabric": "host", "ep_size": 8, "tokens": 4, "max_tokens": 4, "capacity": 8192}
    html = here_panel(pd.DataFrame([row | {"p50_us": 100.0, "low_us": 90.0, "high_us": 120.0}])).html
    assert "sized for 4 tokens: the capacity of 8192 would take over 2 GiB here" in html


def test_host_times_are_named_as_such():
    row = {
        "mode": "one_sided",
        "fabric": "host",
        "ep_size": 2,
        "tokens": 4,
        "max_tokens": 64,
        "capacity": 64,
        "p50_us": 100.0,
        "low_us": 90.0,
        "high_us": 120.0,
    }
    assert "not the time of NVLink" in here_panel(pd.DataFrame([row])).html
    assert here_panel(None).html == ""

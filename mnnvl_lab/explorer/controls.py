"""The explorer's controls: one widget per field of a setting."""

from __future__ import annotations

from collections.abc import Mapping

import ipywidgets as widgets

from mnnvl_lab.explorer.setting import CAPACITY_STEPS, SKEWED, TOKEN_STEPS, TP_STEPS, Setting
from mnnvl_lab.hardware import GPUS
from mnnvl_lab.model import FORMATS, MODELS
from mnnvl_lab.planner.weights import BYTES_PER_PARAMETER
from mnnvl_lab.prediction.predict import MODES as ALL_MODES

ROUTINGS = ("uniform", "balanced", "zipf", "log_normal", "hot_rank", "hot_expert")
NODES = (1, 2, 4, 8, 16, 32, 72)
STYLE = {"description_width": "112px"}
WIDE = widgets.Layout(width="330px")


def controls_of(setting: Setting) -> dict[str, widgets.Widget]:
    """A widget for each field, at the setting's values."""
    return {
        "tp": _steps("TP", TP_STEPS, setting.tp),
        "dp": _slider("DP", setting.dp, 1, 72),
        "pcp": _steps("PCP", (1, 2, 4, 8), setting.pcp),
        "pp": _slider("PP", setting.pp, 1, 8),
        "gpu": _choice("GPU", GPUS, setting.gpu),
        "gpus_per_node": _steps("GPUs per node", NODES, setting.gpus_per_node),
        "model": _choice("model", MODELS, setting.model),
        "format": _choice("format", FORMATS, setting.format),
        "weights": _choice("weights in", BYTES_PER_PARAMETER, setting.weights),
        "capacity": _steps("capacity", CAPACITY_STEPS, setting.capacity),
        "tokens": _steps("tokens per rank", TOKEN_STEPS, setting.tokens),
        "routing": _choice("routing", ROUTINGS, setting.routing),
        "skew": widgets.FloatSlider(
            value=setting.skew, min=0, max=2, step=0.1, description="skew", style=STYLE, layout=WIDE
        ),
        "modes": widgets.SelectMultiple(
            options=ALL_MODES, value=setting.modes, description="modes", rows=4, style=STYLE, layout=WIDE
        ),
    }


def setting_of(controls: Mapping[str, widgets.Widget]) -> Setting:
    """What the controls say now."""
    values = {name: control.value for name, control in controls.items()}
    share = values["routing"] in ("hot_rank", "hot_expert")
    skew = min(values["skew"], 1.0) if share else values["skew"]
    return Setting(**values | {"skew": round(skew, 3), "modes": tuple(values["modes"])})


def put(controls: Mapping[str, widgets.Widget], setting: Setting) -> None:
    """Turn the controls to a setting; a value between two steps becomes a step of its own."""
    for name, control in controls.items():
        value = getattr(setting, name)
        if isinstance(control, widgets.SelectionSlider) and value not in control.options:
            control.options = tuple(sorted({*control.options, value}))
        if isinstance(control, widgets.IntSlider) and value > control.max:
            control.max = value
        control.value = value
    controls["skew"].disabled = setting.routing not in SKEWED


def _slider(name: str, value: int, least: int, most: int) -> widgets.IntSlider:
    return widgets.IntSlider(value=value, min=least, max=most, description=name, style=STYLE, layout=WIDE)


def _steps(name: str, steps: tuple[int, ...], value: int) -> widgets.SelectionSlider:
    options = tuple(sorted({*steps, value}))
    return widgets.SelectionSlider(options=options, value=value, description=name, style=STYLE, layout=WIDE)


def _choice(name: str, options, value: str) -> widgets.Dropdown:
    return widgets.Dropdown(options=list(options), value=value, description=name, style=STYLE, layout=WIDE)

"""`lab.explore()`: the controls beside the panels, redrawn at once.

Widgets are thin here: what is shown is computed and drawn by `answer`, a plain function of a setting. A change that
comes while a redraw is under way is kept until it ends, and only the latest one is drawn.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from html import escape
from itertools import count

import ipywidgets as widgets
import pandas as pd

from mnnvl_lab.engines import READERS, read_engine
from mnnvl_lab.errors import LabError, Refused
from mnnvl_lab.explorer.answer import PANELS, Answer, answer
from mnnvl_lab.explorer.code import code_of
from mnnvl_lab.explorer.controls import controls_of, put, setting_of
from mnnvl_lab.explorer.run_here import here_panel, measure_here
from mnnvl_lab.explorer.setting import SKEWED, Setting, difference, nearest, recorded_points
from mnnvl_lab.explorer.svg import WARN
from mnnvl_lab.serving import about, model_named, who_serves

NAMES = count()
NO_ENGINE = "(sizes below)"


class Explorer(widgets.VBox):
    """Controls and panels as one widget.

    Args:
        setting: where to begin; field names of `Setting` may be given instead.
    """

    def __init__(self, setting: Setting | None = None, **values):
        self.controls = controls_of(setting or Setting(**values))
        self.views = {name: widgets.HTML() for name in (*PANELS, "here", "engine", "said")}
        self.nearest_button = _button("", "set the controls to the nearest possible setting", self._take_nearest)
        self.run_button = _button("Run here", "measure this setting on this machine", self._run_here)
        self.code_button = _button("Copy as code", "show the lines that make these figures", self._show_code)
        self.progress = widgets.IntProgress(min=0, max=1, layout=widgets.Layout(width="90px", visibility="hidden"))
        self.code = widgets.Textarea(rows=12, disabled=False, layout=widgets.Layout(width="100%", display="none"))
        self.engine = widgets.Dropdown(options=[NO_ENGINE, *READERS], description="engine")
        self.flags = widgets.Text(placeholder="its flags, then Enter", continuous_update=False)
        self.measured: pd.DataFrame | None = None
        self.answer: Answer | None = None
        self._name = f"grid{next(NAMES)}"
        self._held = self._stale = False
        super().__init__(self._arranged())
        self._watch()
        recorded_points(self.setting)  # read once, before a slider moves
        self.redraw()

    @property
    def setting(self) -> Setting:
        """What the controls say."""
        return setting_of(self.controls)

    def redraw(self, _change: object = None) -> None:
        """Draw the setting; a change that comes meanwhile is drawn after it, and of several the latest alone."""
        if self._held:
            self._stale = True
            return
        self._held, self._stale = True, True
        try:
            while self._stale:
                self._stale = False
                self._draw()
        finally:
            self._held = False

    def set(self, setting: Setting) -> None:
        """Turn all controls to a setting, with one redraw."""
        self._held = True
        try:
            put(self.controls, setting)
        finally:
            self._held = False
        self.redraw()

    def _draw(self) -> None:
        setting = self.setting
        self.controls["skew"].disabled = setting.routing not in SKEWED
        self.answer = answer(setting, name=self._name)
        for name, panel in self.answer.panels.items():
            if self.views[name].value != panel.html:
                self.views[name].value = panel.html
        possible = nearest(setting) if self.answer.problems else None
        self.nearest_button.layout.display = "" if possible else "none"
        if possible:
            self.nearest_button.description = f"Nearest possible: {difference(setting, possible)}"
        if self.code.layout.display != "none":
            self.code.value = code_of(setting)

    def _take_nearest(self, _button: object) -> None:
        if (possible := nearest(self.setting)) is not None:
            self.set(possible)

    def _show_code(self, _button: object) -> None:
        self.code.value = code_of(self.setting)
        self.code.layout.display = "" if self.code.layout.display == "none" else "none"

    def _run_here(self, _button: object) -> None:
        setting = self.setting
        nvlink = replace(setting, modes=tuple(m for m in setting.modes if m in ("one_sided", "two_sided")))
        self.run_button.disabled, self.progress.layout.visibility = True, "visible"
        try:
            self.measured = measure_here(nvlink, report=self._report)
            self.views["here"].value = here_panel(self.measured).html
            self._say("")
        except LabError as reason:
            self._say(str(reason))
        finally:
            self.run_button.disabled, self.progress.layout.visibility = False, "hidden"

    def _report(self, words: str, step: int, steps: int) -> None:
        self.progress.max, self.progress.value = steps, step
        self.views["said"].value = f"<i>{escape(words)} …</i>"

    def _say(self, problem: str) -> None:
        shown = f'<span role="alert" style="color:{WARN}">{escape(problem)}</span>' if problem else ""
        self.views["said"].value = shown

    def _read_engine(self, _change: object = None) -> None:
        """Take the layout, capacity and modes that an engine's flags make, and say who serves them."""
        if self.engine.value == NO_ENGINE:
            self.views["engine"].value = ""
            return
        try:
            setup = read_engine(self.engine.value, self.flags.value)
            layout, model = setup.layout, model_named(setup.model)
            sizes = {name: getattr(layout, name) for name in ("tp", "dp", "pcp", "pp", "gpus_per_node")}
            changes = sizes | {"capacity": setup.capacity, "tokens": min(self.setting.tokens, setup.capacity)}
            changes |= {"model": model.name} if model else {}
            changes |= {"modes": (setup.mode,)} if setup.mode else {}
            self.set(replace(self.setting, **changes))
            served = who_serves(self.setting.plan)._repr_html_() if layout.ep_size > 1 else ""
            self.views["engine"].value = f"<b>{escape(about(setup))}</b>{setup._repr_html_()}{served}"
        except Refused as reason:
            self.views["engine"].value = f'<span role="alert" style="color:{WARN}">{escape(str(reason))}</span>'

    def _watch(self) -> None:
        for control in self.controls.values():
            control.observe(self.redraw, names="value")
        self.engine.observe(self._read_engine, names="value")
        self.flags.observe(self._read_engine, names="value")

    def _arranged(self) -> list[widgets.Widget]:
        """Engine first, then controls at the left and panels at the right."""
        view, row = self.views, widgets.HBox
        top = widgets.VBox([row([self.engine, self.flags]), view["engine"]])
        buttons = row([self.run_button, self.progress, self.code_button])
        left = widgets.VBox([*self.controls.values(), buttons, view["said"]], layout=widgets.Layout(flex="0 0 345px"))
        upper = row([view["grid"], view["traffic"]], layout=widgets.Layout(flex_flow="row wrap"))
        lower = row([view["latency"], view["memory"]], layout=widgets.Layout(flex_flow="row wrap"))
        right = [view["headline"], self.nearest_button, lower, view["numbers"], upper, view["here"], self.code]
        body = row([left, widgets.VBox(right, layout=widgets.Layout(flex="1 1 auto"))])
        for name, width in (("grid", "440px"), ("traffic", "300px"), ("latency", "480px"), ("memory", "480px")):
            view[name].layout.flex = f"1 1 {width}"
        return [top, body]


def explore(setting: Setting | None = None, **values) -> Explorer:
    """The explorer: move a slider, and see ranks, memory, traffic and latency.

    Needs JupyterLab or another front end of ipywidgets. Nothing is started before "Run here" is pressed.

    Args:
        setting: where to begin.
        values: fields of a `Setting` instead, such as `tp=2, dp=4, gpu="gb200"`.

    Raises:
        Refused: an unknown field.
    """
    unknown = sorted(set(values) - set(Setting.__dataclass_fields__))
    if unknown:
        known = ", ".join(Setting.__dataclass_fields__)
        raise Refused(f"{unknown[0]} is no control of the explorer: choose of {known}")
    return Explorer(setting, **values)


def _button(words: str, tooltip: str, press: Callable[[object], None]) -> widgets.Button:
    button = widgets.Button(description=words, tooltip=tooltip, layout=widgets.Layout(width="auto"))
    button.on_click(press)
    return button

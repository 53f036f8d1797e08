"""The whole answer to a setting: one line first, then the panels, or what is wrong and the nearest that works."""

from __future__ import annotations

from dataclasses import dataclass
from html import escape

from mnnvl_lab.errors import Refused
from mnnvl_lab.explorer.grid import grid_panel
from mnnvl_lab.explorer.latency import NAMES, latency_panel, numbers_panel
from mnnvl_lab.explorer.memory import memory_panel, verdict
from mnnvl_lab.explorer.setting import Setting, recorded_points
from mnnvl_lab.explorer.svg import WARN, Panel, number
from mnnvl_lab.explorer.traffic import traffic_panel

PANELS = ("headline", "grid", "memory", "traffic", "latency", "numbers")
EMPTY = Panel(html="", alt="")


@dataclass(frozen=True, kw_only=True)
class Answer:
    """What the explorer shows for a setting.

    Attributes:
        panels: by name, of `PANELS`.
        problems: why the setting cannot be served; empty if it can.
    """

    panels: dict[str, Panel]
    problems: tuple[str, ...]


def answer(setting: Setting, *, name: str = "grid") -> Answer:
    """Compute and draw everything that a setting has; nothing is measured and no process started."""
    problems = setting.problems()
    drawn = {"headline": headline(setting, problems)}
    makers = {
        "grid": lambda: grid_panel(setting.layout, name=name),
        "memory": lambda: memory_panel(setting.plan, weights_bytes=setting.weights_bytes, modes=setting.modes),
        "traffic": lambda: traffic_panel(
            setting.rows_RR, row_bytes=setting.row_bytes, expected=setting.rows_are_expected
        ),
        "latency": lambda: latency_panel(
            setting.forecast.to_frame(), recorded=recorded_points(setting), tokens=setting.tokens
        ),
        "numbers": lambda: numbers_panel(setting.forecast.to_frame(), tokens=setting.tokens),
    }
    for panel, make in makers.items():
        try:
            drawn[panel] = make()
        except Refused:  # its reason is among the problems
            drawn[panel] = EMPTY
    return Answer(panels=drawn, problems=problems)


def headline(setting: Setting, problems: tuple[str, ...] = ()) -> Panel:
    """The answer in one line: fits or not, how long a round takes, and what dominates it."""
    size = setting.tp * setting.dp * setting.pcp
    first = f"EP {size} = DP {setting.dp} x PCP {setting.pcp} x TP {setting.tp}, {setting.tokens} tokens per rank"
    if problems:
        items = "".join(f"<li>{escape(problem)}</li>" for problem in problems)
        alt = f"Impossible: {'; '.join(problems)}"
        listed = f'<b>Impossible as set:</b><ul style="margin:2px 0">{items}</ul>'
        html = f'<div>{first}</div><div role="alert" style="color:{WARN}">{listed}</div>'
        return Panel(html=html, alt=alt)
    said = []
    for mode in setting.modes:
        one = next(r for r in setting.forecast.rounds if r.mode == mode and r.tokens == setting.tokens)
        fit = verdict(setting.plan, mode, setting.weights_bytes) if mode in ("one_sided", "two_sided") else ""
        said.append(f"<b>{NAMES[mode]}</b>: {_round(one)}; {escape(fit.partition(' ')[2])}")
    basis = escape(setting.forecast.rounds[0].basis)
    html = f'<div>{first}<br>{"<br>".join(said)}<br><span style="font-size:11px;opacity:.75">{basis}</span></div>'
    return Panel(html=html, alt=first)


def _round(one) -> str:
    if one.latency_us is None:
        return f"at least {number(one.bound_us)} µs (bound; no model of this GPU)"
    return (
        f"predicted {number(one.latency_us)} µs ({number(one.low_us)} to {number(one.high_us)}), mostly "
        f"{one.dominated_by}"
    )

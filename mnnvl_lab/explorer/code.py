"""The lines that make the explorer's figures again, in a notebook or a script."""

from __future__ import annotations

from mnnvl_lab.explorer.setting import Setting


def code_of(setting: Setting) -> str:
    """Python that gives the same layout, plan, prediction, panels and measurement."""
    sizes = ", ".join(f"{name}={getattr(setting, name)}" for name in ("tp", "dp", "pcp", "pp", "gpus_per_node"))
    modes = repr(tuple(setting.modes))
    return f"""import mnnvl_lab as lab
from mnnvl_lab.explorer import grid_panel, latency_panel, memory_panel, traffic_panel, weight_bytes
from mnnvl_lab.prediction.rows import expected_rows_RR
from mnnvl_lab.routing import parse

layout = lab.Layout({sizes})
shape = dict(model={setting.model!r}, format={setting.format!r}, gpu={setting.gpu!r})
plan = lab.plan(layout, max_tokens={setting.capacity}, **shape)
forecast = lab.predict(layout, tokens=[2**n for n in range(15)], mode={modes}, routing={setting.label!r}, **shape)

grid_panel(layout)
memory_panel(plan, weights_bytes=weight_bytes(plan.model, layout, dtype={setting.weights!r}), modes={modes})
numbers = dict(experts=plan.model.experts, top_k=plan.model.top_k, ep_size=layout.ep_size)
rows_RR = expected_rows_RR(parse({setting.label!r}), tokens={setting.tokens}, **numbers)
traffic_panel(rows_RR, row_bytes={setting.row_bytes})
latency_panel(forecast.to_frame(), tokens={setting.tokens})

# measure it on this machine
sweep = lab.Sweep(layouts=layout, modes={modes}, tokens={setting.tokens}, model={setting.model!r},
                  formats={setting.format!r}, routings={setting.label!r})
table = lab.run(sweep)
"""

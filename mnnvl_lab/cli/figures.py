"""The figures of a table of samples, each drawn once for each setting that it depends on."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import pandas as pd

from mnnvl_lab import plots
from mnnvl_lab.layout import Layout
from mnnvl_lab.planner.modes import one_sided, two_sided
from mnnvl_lab.plots.bounds import LOADS, can_redraw, need_of, rows_of
from mnnvl_lab.plots.selection import lines, settings

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from mnnvl_lab.exchange import ExchangeShape
    from mnnvl_lab.hardware import Gpu

LAYOUT = ("tp", "dp", "pcp", "pp")
SHAPE = (*LAYOUT, "hidden", "experts", "top_k", "format")
EP_SIZES = (1, 2, 4, 8, 16, 32, 64)


def figures(table: pd.DataFrame, *, gpu: Gpu) -> Iterator[tuple[str, Axes]]:
    """Name and Axes of every figure."""
    for name, part in lines(table):
        yield f"latency{name}", plots.latency(part, bounds=plots.lower_bounds(part))
    for name, part in settings(table, SHAPE):
        yield from _workspaces(name, part, gpu)
    for name, part in settings(table, (*SHAPE, "routing", "seed", *LOADS[1:])):
        if can_redraw(part["routing"].iloc[0]):
            rows_RR = rows_of(part.loc[part["tokens"].idxmax()])
            yield f"traffic{name}", plots.traffic(plots.traffic_table(rows_RR))
    for name, part in settings(table, LAYOUT):
        layout = Layout.from_row(part.iloc[0])
        yield f"ranks{name}", plots.rank_grid(layout.to_frame())


def save_all(named: Iterable[tuple[str, Axes]], out: str, kind: str) -> None:
    """Write each figure as soon as it is drawn, say where, and let it go."""
    import matplotlib as mpl

    mpl.use("Agg")  # files alone: no window, whatever the desktop
    from matplotlib import pyplot

    directory = Path(out)
    directory.mkdir(parents=True, exist_ok=True)
    for name, axes in named:
        path = directory / f"{name}.{kind}"
        axes.figure.savefig(path)
        pyplot.close(axes.figure)
        print(path)


def _workspaces(name: str, part: pd.DataFrame, gpu: Gpu) -> Iterator[tuple[str, Axes]]:
    need = need_of(part.iloc[0], int(part["tokens"].max()))
    by_tokens = [replace(need, max_tokens=2**power) for power in range(4, 14)]
    by_ep_size = [replace(need, layout=Layout(dp=size)) for size in EP_SIZES if size <= need.experts]
    for x, needs in (("tokens", by_tokens), ("ep_size", by_ep_size)):
        table = plots.memory_table(needs, gpu=gpu)
        yield f"memory-by-{x}{name}", plots.memory(table, x=x)
    yield from _regions(name, need, gpu)


def _regions(name: str, need: ExchangeShape, gpu: Gpu) -> Iterator[tuple[str, Axes]]:
    for mode in (one_sided(need), two_sided(need, gpu)):
        table = plots.regions_table(mode.regions)
        yield f"workspace-{mode.mode}{name}", plots.region_map(table)

"""Who is ahead at which token count: every contender's median over that of the fastest."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pandas as pd

from mnnvl_lab import crossover
from mnnvl_lab.errors import Refused
from mnnvl_lab.plots.look import QUIET, caption, head, load_words, new_axes, origin, strokes, style
from mnnvl_lab.plots.scales import dress
from mnnvl_lab.records.columns import OPTIONS, SIZES

if TYPE_CHECKING:
    from matplotlib.axes import Axes


def draw(table: pd.DataFrame, *, clock: str = "graph", phase: str = "round", ax: Axes | None = None) -> Axes:
    """Latency relative to the fastest contender, with the medians' confidence intervals and the places of change.

    Args:
        table: samples of all ranks, of one load at several token counts.
        clock, phase: which samples.

    Raises:
        Refused: the samples are of several loads.
    """
    medians = crossover.medians(table, clock=clock, phase=phase)
    medians = medians[medians["tokens"] > 0].sort_values("tokens")
    _require_one_load(medians)
    fastest = medians.groupby("tokens")["p50_us"].transform("min")
    relative = medians.assign(**{name: medians[name] / fastest for name in ("p50_us", "low_us", "high_us")})
    with style():
        ax = new_axes(ax)
        for name, stroke in _strokes(relative).items():
            line = relative[relative["contender"] == name]
            ax.plot(line["tokens"], line["p50_us"], color=stroke.color, marker=stroke.marker, label=stroke.label)
            ax.fill_between(
                line["tokens"], line["low_us"], line["high_us"], color=stroke.color, alpha=0.16, linewidth=0
            )
        changes = crossover.crossings(table, clock=clock, phase=phase)
        for change in changes.itertuples():
            ax.axvspan(change.tokens_low, change.tokens_high, color=QUIET, alpha=0.25, linewidth=0, gid="crossing")
        ax.axhline(1, color=QUIET, linewidth=0.8, zorder=1)
        dress(ax.xaxis, "tokens", relative["tokens"].to_numpy())
        ax.set_ylabel("Median latency over the fastest's")
        ax.legend(frameon=False)
        head(ax, f"Who is ahead at a {phase}, by tokens a rank", load_words(table, ("tokens",)))
        shown = table[(table["clock"] == clock) & (table["phase"] == phase)]
        words = "bands: 95 % of the median" + ("; grey: where two change places" if len(changes) else "")
        caption(ax, f"{origin(shown)} · {words}")
    return ax


def _strokes(relative: pd.DataFrame) -> dict:
    """A mode's own stroke where it is used in one way only."""
    names = relative.groupby("contender")["mode"].first()
    modes = names if names.is_unique else pd.Series(names.index, index=names.index)
    found = strokes(list(modes))
    return {name: found[mode] for name, mode in modes.items()}


def _require_one_load(medians: pd.DataFrame) -> None:
    apart = ("tokens", "mode", *SIZES, *OPTIONS)
    for name in crossover.WITHIN:
        if name in medians.columns and name not in apart and medians[name].nunique() > 1:
            values = ", ".join(map(str, medians[name].unique()))
            raise Refused(f"{name} has the values {values}: who is ahead is asked of one load; select one of these")

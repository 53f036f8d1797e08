"""Which mode is fastest at which token count, and from where on: decided from samples, not from two medians.

Two modes differ at a token count if the confidence intervals of their medians do not overlap; else there is no
difference. Between measured counts, the logarithm of the ratio of two medians is taken as linear in the logarithm of
the tokens; where it passes zero, the modes change places.
"""

from __future__ import annotations

from itertools import combinations, pairwise
from types import MappingProxyType

import numpy as np
import pandas as pd

from mnnvl_lab.errors import Refused
from mnnvl_lab.records import POINT_COLUMNS, slowest_rank
from mnnvl_lab.records.schema import OPTIONS, SIZES
from mnnvl_lab.records.statistics import median_interval

NO_DIFFERENCE = "no difference"
WORDS = MappingProxyType(
    {
        "payload_in_workspace": "in place",
        "low_precision_combine": "fp8 combine",
        "enable_rank_mask": "rank mask",
        "without_pdl": "without PDL",
    }
)
WITHIN = (*POINT_COLUMNS, "device")


def medians(samples: pd.DataFrame, *, clock: str | None = None, phase: str = "round") -> pd.DataFrame:
    """Median of the slowest rank with its 95 % confidence interval.

    Args:
        samples: of all ranks, as `records.load` gives them.
        clock, phase: which samples; contenders are only compared within one clock, by default `usual_clock`.

    Returns:
        A row a contender and point: the point columns, `contender` (the mode, with its options), `p50_us`, `low_us`,
        `high_us`, `n`.

    Raises:
        Refused: no such samples, or fewer than six iterations of a point.
    """
    clock = clock or usual_clock(samples)
    chosen = samples[(samples["clock"] == clock) & (samples["phase"] == phase)]
    if chosen.empty:
        have = ", ".join(f"{c} {p}" for c, p in samples[["clock", "phase"]].drop_duplicates().itertuples(index=False))
        raise Refused(f"no samples of clock {clock}, phase {phase}: this table has {have or 'none'}; name one of these")
    columns = [name for name in WITHIN if name in chosen.columns]
    groups = slowest_rank(chosen).groupby(columns, sort=False)["latency_us"]
    derived = groups.apply(_median_interval).unstack().reset_index()
    derived["n"] = derived["n"].astype("int64")
    derived.insert(0, "contender", [_contender(row) for row in derived.to_dict("records")])
    return _with_capacities(derived)


def table(samples: pd.DataFrame, *, clock: str | None = None, phase: str = "round") -> pd.DataFrame:
    """The fastest contender at each token count.

    Returns:
        A row a load: its columns that vary or name it, `tokens`, `fastest` (`no difference` where the intervals of the
        first two overlap), `p50_us` of the first, `runner_up` and `runner_up_us`, `lead_percent` (by which the
        runner-up is slower).

    Raises:
        Refused: see `medians`; or a load that has one contender alone at every token count.
    """
    rows = []
    for load, contenders in _loads(medians(samples, clock=clock, phase=phase)):
        for tokens, rivals in contenders.groupby("tokens"):
            if len(rivals) > 1:
                rows.append(load | {"tokens": tokens} | _winner(rivals))
    if not rows:
        raise Refused("no token count has two contenders: a comparison needs two modes at the same points; sweep both")
    return pd.DataFrame(rows)


def crossings(samples: pd.DataFrame, *, clock: str | None = None, phase: str = "round") -> pd.DataFrame:
    """Where two contenders change places.

    Returns:
        A row a change: the load's columns, `below` (faster below it), `above` (faster above it), `tokens` (where, to
        the fraction), `tokens_low`, `tokens_high` (between which the confidence intervals leave it); no row for a pair
        of which one is always ahead, or none ever surely so.
    """
    rows = []
    for load, contenders in _loads(medians(samples, clock=clock, phase=phase)):
        by_name = {name: line.set_index("tokens").sort_index() for name, line in contenders.groupby("contender")}
        for a, b in combinations(by_name, 2):
            rows += [load | change for change in _changes(a, by_name[a], b, by_name[b])]
    names = ["below", "above", "tokens", "tokens_low", "tokens_high"]
    return pd.DataFrame(rows) if rows else pd.DataFrame(columns=names)


def usual_clock(samples: pd.DataFrame) -> str:
    """The clock of the samples if they have one alone, else `graph`, which holds no launches."""
    clocks = samples["clock"].unique()
    return str(clocks[0]) if len(clocks) == 1 else "graph"


def _median_interval(values: pd.Series) -> pd.Series:
    low, high = median_interval(values.to_numpy())
    return pd.Series({"p50_us": np.median(values), "low_us": low, "high_us": high, "n": len(values)})


def _contender(row: dict) -> str:
    flags = [words for name, words in WORDS.items() if row.get(name)]
    counts = [f"{name} {row[name]}" for name in ("eplb_stats_experts", "sm_limit") if row.get(name)]
    return ", ".join([row["mode"], *flags, *counts])


def _with_capacities(derived: pd.DataFrame) -> pd.DataFrame:
    """A contender that was measured with several capacities at the same load becomes several, each named by its own."""
    load = [name for name in WITHIN if name in derived.columns and name not in (*OPTIONS, "max_tokens")]
    several = derived.duplicated([*load, "contender"], keep=False)
    names = derived.loc[several, "contender"].unique()
    label = [
        f"{name}, capacity {size}" if name in names else name
        for name, size in zip(derived["contender"], derived.get("max_tokens", derived["n"]), strict=True)
    ]
    return derived.assign(contender=label)


def _loads(derived: pd.DataFrame):
    """Contenders that face the same load, as (columns of the load, their rows)."""
    names = [n for n in WITHIN if n in derived.columns and n not in ("mode", "tokens", *SIZES, *OPTIONS)]
    for values, contenders in derived.groupby(names, sort=False):
        yield dict(zip(names, values, strict=True)), contenders


def _winner(rivals: pd.DataFrame) -> dict[str, object]:
    first, second = rivals.sort_values("p50_us").head(2).to_dict("records")
    sure = first["high_us"] < second["low_us"]
    return {
        "fastest": first["contender"] if sure else NO_DIFFERENCE,
        "p50_us": first["p50_us"],
        "runner_up": second["contender"],
        "runner_up_us": second["p50_us"],
        "lead_percent": 100 * (second["p50_us"] / first["p50_us"] - 1),
    }


def _changes(a: str, of_a: pd.DataFrame, b: str, of_b: pd.DataFrame) -> list[dict[str, object]]:
    """Changes between token counts at which one, then the other is surely ahead."""
    tokens = of_a.index.intersection(of_b.index)
    tokens = tokens[tokens > 0]
    of_a, of_b = of_a.loc[tokens], of_b.loc[tokens]
    curves = {
        "tokens": np.log(of_a["p50_us"] / of_b["p50_us"]).to_numpy(),
        "least": np.log(of_a["low_us"] / of_b["high_us"]).to_numpy(),
        "most": np.log(of_a["high_us"] / of_b["low_us"]).to_numpy(),
    }
    ahead = np.where(curves["most"] < 0, -1, np.where(curves["least"] > 0, 1, 0))
    sure = np.flatnonzero(ahead)
    return [
        _change((a, b) if ahead[i] < 0 else (b, a), np.log(tokens.to_numpy(float)), curves, slice(i, j + 1))
        for i, j in pairwise(sure)
        if ahead[i] != ahead[j]
    ]


def _change(order: tuple[str, str], log_tokens: np.ndarray, curves: dict, where: slice) -> dict[str, object]:
    places = {name: float(np.exp(_zero(log_tokens[where], curve[where]))) for name, curve in curves.items()}
    low, high = sorted((places["least"], places["most"]))
    return {"below": order[0], "above": order[1], "tokens": places["tokens"], "tokens_low": low, "tokens_high": high}


def _zero(x: np.ndarray, y: np.ndarray) -> float:
    """Where the line through the points first passes zero; its ends have opposite signs."""
    i = int(np.flatnonzero(np.sign(y[:-1]) != np.sign(y[1:]))[0])
    return float(x[i] - y[i] * (x[i + 1] - x[i]) / (y[i + 1] - y[i]))

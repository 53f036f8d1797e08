"""From which token count on one mode is faster than another: from a published table, and from predictions."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
import pandas as pd

from mnnvl_lab.errors import Refused
from mnnvl_lab.layout import Layout
from mnnvl_lab.prediction.calibration import NORMAL_QUANTILE
from mnnvl_lab.prediction.predict import predict

MODES = ("one_sided", "two_sided")
SMALL_TOKENS = 512
"""Up to so many tokens figures differ from run to run by more than a per cent."""
COLUMNS = ("ep_size", "tokens", "tokens_low", "tokens_high", "basis")
GRID = tuple(sorted({*(2**n for n in range(14)), *(3 * 2**n for n in range(12))}))


def table_crossings(table: pd.DataFrame, *, form: str = "nvfp4") -> pd.DataFrame:
    """Where one-sided overtakes two-sided in a published table of phases.

    The phases of a round are summed. The spread of a single figure is estimated from figures of the same work, which
    the table holds several times: two-sided's prepare and combine do not depend on the format of dispatch.

    Args:
        table: as `read_aiconfigurator` returns it.
        form: format of dispatch.

    Returns:
        One row per EP size that both modes have: `ep_size`, `tokens` (from which count on one-sided is faster),
        `tokens_low` and `tokens_high` (95 %: two-sided is surely faster below the one, one-sided surely from the other
        on), `basis`. The least count of the table stands for "from the first token on".

    Raises:
        Refused: the table has not both modes in this format.
    """
    in_format = table[(table["format"] == form) | table["caveat"].str.contains(f"after dispatch in {form}")]
    spread = figure_spread(table)
    figures = in_format[in_format["quantity"] == "latency"]
    keys = ["mode", "ep_size", "tokens"]
    rounds = figures.groupby(keys)["value"].agg(total="sum", square=lambda us: float((us**2).sum()))
    by_mode = {mode: rounds.xs(mode) for mode in MODES if mode in rounds.index.get_level_values("mode")}
    if len(by_mode) < len(MODES):
        raise Refused(f"format {form}: the table must hold one_sided and two_sided in it; name one that both have")
    joined = by_mode["one_sided"].add_suffix("_one").join(by_mode["two_sided"].add_suffix("_two"), how="inner")
    log_ratio = np.log(joined["total_two"] / joined["total_one"])
    relative = [joined[f"square_{m}"] / joined[f"total_{m}"] ** 2 for m in ("one", "two")]
    deviation = spread * np.sqrt(sum(relative))
    rows = [
        {"ep_size": int(size)} | _crossing(line.droplevel("ep_size"), deviation.xs(size)) | {"basis": "table"}
        for size, line in log_ratio.groupby("ep_size")
    ]
    return pd.DataFrame(rows, columns=list(COLUMNS))


def figure_spread(table: pd.DataFrame) -> float:
    """Relative standard deviation of one figure of a small round, from figures of the same work in several formats."""
    small = table[(table["mode"] == "two_sided") & (table["tokens"] <= SMALL_TOKENS)]
    same = small[small["phase"].isin(("prepare", "combine"))]
    logs = np.log(same["value"])
    centre = logs.groupby([same["phase"], same["ep_size"], same["tokens"]]).transform("median")
    surplus = (logs - centre).abs()
    if not surplus.any():
        raise Refused("no work occurs in two formats: the spread of a figure cannot be told from this table")
    return float(surplus.quantile(0.95) / NORMAL_QUANTILE)  # outliers beyond do not count


def predicted_crossings(
    layouts: Iterable[Layout], *, model: str, gpu: str, format: str = "bf16", routing: str = "balanced"
) -> pd.DataFrame:
    """The same from predictions, whose intervals are wider: also for formats and EP sizes that no table has.

    Raises:
        Refused: see `predict`; a GPU without a model of both modes.
    """
    rows = []
    for layout in layouts:
        found = predict(layout, model=model, tokens=GRID, mode=MODES, gpu=gpu, format=format, routing=routing)
        lines = {mode: [one for one in found.rounds if one.mode == mode] for mode in MODES}
        if any(one.latency_us is None for line in lines.values() for one in line):
            reason = "; ".join(found.refusals) or f"{gpu} has no model of both modes; choose h100, h200 or gb200"
            raise Refused(f"no crossing can be predicted: {reason}")
        logs = {mode: np.log([one.latency_us for one in line]) for mode, line in lines.items()}
        widths = [[np.log(one.high_us / one.low_us) / (2 * NORMAL_QUANTILE) for one in line] for line in lines.values()]
        ratio = pd.Series(logs["two_sided"] - logs["one_sided"], index=GRID)
        deviation = pd.Series(np.sqrt(np.square(widths).sum(axis=0)), index=GRID)
        rows.append({"ep_size": layout.ep_size} | _crossing(ratio, deviation) | {"basis": "prediction"})
    return pd.DataFrame(rows, columns=list(COLUMNS))


def _crossing(log_ratio: pd.Series, deviation: pd.Series) -> dict[str, float]:
    """From which count on the ratio, and each end of its interval, stays above zero."""
    spread = NORMAL_QUANTILE * deviation
    return {
        "tokens": _positive_from(log_ratio),
        "tokens_low": _positive_from(log_ratio + spread),
        "tokens_high": _positive_from(log_ratio - spread),
    }


def _positive_from(line: pd.Series) -> float:
    """Token count after which the line has no value below zero, linear in the logarithm of the tokens."""
    line = line.sort_index()
    tokens, values = line.index.to_numpy(float), line.to_numpy()
    below = np.flatnonzero(values < 0)
    if not len(below):
        return tokens[0]
    last = int(below[-1])
    if last == len(tokens) - 1:
        return float("inf")
    share = -values[last] / (values[last + 1] - values[last])
    return float(np.exp(np.log(tokens[last]) + share * np.log(tokens[last + 1] / tokens[last])))

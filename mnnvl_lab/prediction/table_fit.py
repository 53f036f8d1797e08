"""Fit the phases of a published table, and judge the fit by leaving out one EP size after the other."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
from scipy.optimize import least_squares

from mnnvl_lab.analysis.latency_model import Point
from mnnvl_lab.errors import Refused
from mnnvl_lab.hardware import Gpu, require_gpu
from mnnvl_lab.prediction.calibration import FittedPart
from mnnvl_lab.prediction.parts import Counts, Part, stacked
from mnnvl_lab.prediction.phase_costs import PHASE_PARTS
from mnnvl_lab.published.aiconfigurator import LOW_PRECISION

SOFT = 0.1
"""Relative misfit beyond which a figure counts less and less: tables have outliers."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Figures:
    """Figures of one phase of one mode: what is fitted.

    Attributes:
        part: the phase.
        table: their rows.
        work: counts of each row, as arrays.
        latency_us: of each row.
    """

    part: Part
    table: pd.DataFrame
    work: Counts
    latency_us: np.ndarray

    def where(self, chosen: np.ndarray) -> Figures:
        return Figures(
            part=self.part,
            table=self.table[chosen],
            work={name: values[chosen] for name, values in self.work.items()},
            latency_us=self.latency_us[chosen],
        )


def figures_of(table: pd.DataFrame, *, gpu: Gpu) -> list[Figures]:
    """The figures of each phase that the model knows.

    Args:
        table: as `read_aiconfigurator` returns it, or `data/published/aiconfigurator_gb200`.
        gpu: whose multiprocessors count.

    Raises:
        Refused: the table has none.
    """
    latencies = table[(table["quantity"] == "latency") & (table["variant"] != LOW_PRECISION)]
    found = []
    for part in (part for parts in PHASE_PARTS.values() for part in parts):
        rows = latencies[(latencies["mode"] == part.mode) & (latencies["phase"] == part.name)]
        if len(rows) > len(part.parameters):
            found.append(_figures(part, rows.reset_index(drop=True), gpu))
    if not found:
        raise Refused("no phase of one_sided or two_sided has enough latencies: pass a table of read_aiconfigurator")
    return found


def fit_figures(figures: Figures, *, start: np.ndarray | None = None) -> np.ndarray:
    """Log-parameters that fit best: least squares of relative errors (soft beyond `SOFT`) and of the priors."""
    prior, width = _priors(figures.part)

    def residuals(logs: np.ndarray) -> np.ndarray:
        misfit = (np.log(figures.part.latency_us(logs, figures.work)) - np.log(figures.latency_us)) / SOFT
        return np.concatenate([misfit, (logs - prior) / width])

    found = least_squares(residuals, prior if start is None else start, loss="soft_l1", x_scale=width)
    return found.x


def left_out(figures: Figures) -> pd.DataFrame:
    """Each figure predicted by a fit to all other EP sizes.

    Returns:
        One row per figure: `mode, phase, ep_size, tokens, format, latency_us, predicted_us, error_percent`.
    """
    sizes = figures.table["ep_size"].to_numpy(int)
    whole = fit_figures(figures)
    predicted = np.empty(len(sizes))
    for size in dict.fromkeys(sizes):
        logs = fit_figures(figures.where(sizes != size), start=whole)
        predicted[sizes == size] = figures.part.latency_us(logs, figures.where(sizes == size).work)
    return _errors(figures, predicted)


def left_out_errors(table: pd.DataFrame, *, gpu: Gpu | str = "gb200") -> pd.DataFrame:
    """The errors of `left_out` for every phase of a published table.

    Args:
        table: as `read_aiconfigurator` returns it.
        gpu: whose multiprocessors count.
    """
    return pd.concat([left_out(figures) for figures in figures_of(table, gpu=require_gpu(gpu))], ignore_index=True)


def fitted_part(figures: Figures) -> FittedPart:
    """The part with its parameters, and its errors by leaving out one EP size after the other."""
    logs, errors = fit_figures(figures), left_out(figures)
    sizes = errors["error_percent"].abs()
    log_errors = np.log(errors["predicted_us"] / errors["latency_us"]).to_numpy(float)
    return FittedPart(
        part=figures.part,
        optima=logs[None, :],
        covariance=_covariance(figures, logs, log_errors),
        error=_robust_rms(log_errors),
        error_within=_robust_rms(np.log(figures.part.latency_us(logs, figures.work) / figures.latency_us)),
        errors={
            "how": "left out one EP size after the other",
            "points": len(errors),
            "median_percent": round(float(sizes.median()), 1),
            "worst_percent": round(float(sizes.max()), 1),
        },
    )


def _figures(part: Part, rows: pd.DataFrame, gpu: Gpu) -> Figures:
    work = [part.count(_point(row, gpu), collector_rows_RR(_tokens(row))) for row in rows.to_dict("records")]
    return Figures(part=part, table=rows, work=stacked(work), latency_us=rows["value"].to_numpy(float))


def _point(row: dict, gpu: Gpu) -> Point:
    """What was dispatched: of combine's rows, which are bf16, the caveat says it."""
    carried = re.search(r"after dispatch in (\w+)", row["caveat"])
    shape = {name: int(row[name]) for name in ("ep_size", "tokens", "hidden", "experts", "top_k")}
    form = carried[1] if carried else row["format"]
    return Point(mode=row["mode"], format=form, routing="balanced", multiprocessors=gpu.multiprocessors, **shape)


def _tokens(row: dict) -> tuple[int, int, int]:
    return int(row["tokens"]), int(row["ep_size"]), int(row["top_k"])


def collector_rows_RR(sizes: tuple[int, int, int]) -> np.ndarray:
    """`[R, R]` rows of aiconfigurator's balanced routing, from (tokens, ep_size, top_k).

    Token i of every rank goes to the i-th group of K consecutive ranks in turn, or to all ranks where K is larger
    (`generate_balanced_expert_ids` of its collector). Few tokens on many ranks all meet in the first groups.
    """
    tokens, ranks, top_k = sizes
    groups = max(1, ranks // top_k)
    per_group = np.array([len(range(group, tokens, groups)) for group in range(groups)])
    row_R = np.repeat(per_group, min(top_k, ranks))
    return np.tile(row_R, (ranks, 1)).astype(float)


def _priors(part: Part) -> tuple[np.ndarray, np.ndarray]:
    return np.log([p.prior for p in part.parameters]), np.log([p.factor for p in part.parameters])


def _covariance(figures: Figures, logs: np.ndarray, log_errors: np.ndarray, *, width: float = 1e-4) -> np.ndarray:
    """Of the log-parameters, at the misfit that the left-out figures show."""
    steps = np.eye(len(logs)) * width
    change = [
        np.log(figures.part.latency_us(logs + s, figures.work))
        - np.log(figures.part.latency_us(logs - s, figures.work))
        for s in steps
    ]
    slopes = np.stack(change, axis=1) / (2 * width) / _robust_rms(log_errors)
    prior_width = _priors(figures.part)[1]
    return np.linalg.inv(slopes.T @ slopes + np.diag(prior_width**-2.0))


def _robust_rms(log_errors: np.ndarray) -> float:
    """Half of the range that holds 95 % of the errors, as a standard deviation; a few outliers do not widen it."""
    return float(np.quantile(np.abs(log_errors), 0.95) / 1.96)


def _errors(figures: Figures, predicted_us: Sequence[float]) -> pd.DataFrame:
    names = ["mode", "phase", "ep_size", "tokens", "format"]
    columns = {"latency_us": figures.latency_us, "predicted_us": np.asarray(predicted_us)}
    table = figures.table[names].assign(**columns)
    return table.assign(error_percent=100 * (table["predicted_us"] / table["latency_us"] - 1))

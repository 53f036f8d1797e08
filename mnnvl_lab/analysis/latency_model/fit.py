"""Fit a mode's parameters to recorded points, say how well they predict what was left out, and predict.

Least squares on log-latencies, with the priors as further residuals, from many starting points (`solve`). Where several
minima fit equally well, the best one gives the value, and all of them widen what is said of it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd

from mnnvl_lab.analysis.latency_model.solve import (
    Optimum,
    Problem,
    covariance,
    jacobian,
    log_latencies,
    minima,
    rivals,
    starting_points,
)
from mnnvl_lab.analysis.latency_model.terms import TERMS, Terms
from mnnvl_lab.analysis.latency_model.work import Point, Work, work_of
from mnnvl_lab.errors import Refused

CONFIDENCE = 0.95
NORMAL_QUANTILE = 1.96


@dataclass(frozen=True, kw_only=True)
class Observation:
    """A recorded point: its median latency and the work behind it."""

    point: Point
    work: Work
    latency_us: float

    @classmethod
    def of(cls, point: Point, latency_us: float) -> Observation:
        return cls(point=point, work=work_of(point), latency_us=latency_us)


@dataclass(frozen=True, kw_only=True)
class Prediction:
    """Not a measurement: what the model makes of a point, and where the truth lies with probability `CONFIDENCE`."""

    point: Point
    latency_us: float
    low_us: float
    high_us: float


@dataclass(frozen=True, kw_only=True, eq=False)
class LatencyModel:
    """A mode's fitted parameters.

    Attributes:
        mode: of `TERMS`.
        optima: distinct local minima that the starting points led to, best first.
        covariance: of the best one's log-parameters.
        error: relative error (of the logarithm, root mean square) of points that were left out of the fit.
        observations: what it was fitted to.
    """

    mode: str
    optima: tuple[Optimum, ...]
    covariance: np.ndarray
    error: float
    observations: tuple[Observation, ...]

    @property
    def terms(self) -> Terms:
        return TERMS[self.mode]

    @property
    def logs(self) -> np.ndarray:
        """Logarithms of the best parameters, in the order of `TERMS[mode].parameters`."""
        return self.optima[0].logs

    def predict(self, point: Point) -> Prediction:
        """The latency of a round, with the interval that parameters, rival minima and model error leave open.

        Raises:
            Refused: the point is of another mode.
        """
        if point.mode != self.mode:
            raise Refused(f"point is of mode {point.mode}: this model was fitted to {self.mode}; fit one of that mode")
        log = log_latencies(self.terms, [work_of(point)])
        slope = jacobian(log, self.logs)[0]
        spread = NORMAL_QUANTILE * float(np.sqrt(slope @ self.covariance @ slope + self.error**2))
        middles = [float(log(optimum.logs)[0]) for optimum in rivals(self.optima)]
        low, latency, high = np.exp([min(middles) - spread, middles[0], max(middles) + spread])
        return Prediction(point=point, latency_us=float(latency), low_us=float(low), high_us=float(high))

    def table(self) -> pd.DataFrame:
        """The parameters: `parameter, value, factor, low, high, prior, prior_factor, from_data, meaning`.

        Factors are one standard deviation. `low` and `high` are the least and greatest value among minima that fit as
        well (`solve.RIVAL`): equal where there is one minimum. `from_data` is the share of the prior's variance that
        the records removed near the best minimum: 1 where they determine the parameter, 0 where all that is known of
        it is the prior.
        """
        variances = np.diag(self.covariance)
        values = np.exp([optimum.logs for optimum in rivals(self.optima)])
        return pd.DataFrame(
            {
                "parameter": p.name,
                "value": float(column[0]),
                "factor": float(np.exp(np.sqrt(variance))),
                "low": float(column.min()),
                "high": float(column.max()),
                "prior": p.prior,
                "prior_factor": p.factor,
                "from_data": float(1 - variance / np.log(p.factor) ** 2),
                "meaning": p.meaning,
            }
            for p, column, variance in zip(self.terms.parameters, values.T, variances, strict=True)
        )

    def minima(self) -> pd.DataFrame:
        """The distinct minima, best first: `mode, objective, behind` (the best one), then the parameters by name."""
        names = [p.name for p in self.terms.parameters]
        best = self.optima[0].objective
        return pd.DataFrame(
            {"mode": self.mode, "objective": o.objective, "behind": o.objective - best}
            | dict(zip(names, np.exp(o.logs).tolist(), strict=True))
            for o in self.optima
        )


def fit(observations: Sequence[Observation]) -> LatencyModel:
    """Fit one mode, from many seeded starting points.

    Args:
        observations: of one mode, three or more.

    Raises:
        Refused: several modes, or too few points.
    """
    modes = {o.point.mode for o in observations}
    if len(modes) != 1 or len(observations) < 3:
        raise Refused(
            f"{len(observations)} points of mode {', '.join(sorted(modes)) or 'none'}: a fit needs three or more of "
            "one mode; measure more, or fit the modes one by one"
        )
    (mode,) = modes
    problem = _problem(TERMS[mode], observations)
    optima = minima(problem, starting_points(problem))
    return LatencyModel(
        mode=mode,
        optima=tuple(optima),
        covariance=covariance(problem, optima[0].logs),
        error=float(np.sqrt(np.mean(_left_out_logs(problem, optima) ** 2))),
        observations=tuple(observations),
    )


def leave_one_out(observations: Sequence[Observation]) -> pd.DataFrame:
    """Each point predicted by a fit to all the others of its mode.

    Returns:
        One row per point: `mode, fabric, ep_size, ranks_per_gpu, tokens, format, routing, latency_us, predicted_us,
        error_percent`.
    """
    rows = []
    for mode in dict.fromkeys(o.point.mode for o in observations):
        of_mode = [o for o in observations if o.point.mode == mode]
        problem = _problem(TERMS[mode], of_mode)
        errors = _left_out_logs(problem, minima(problem, starting_points(problem)))
        rows += [_error_row(o, float(error)) for o, error in zip(of_mode, errors, strict=True)]
    return pd.DataFrame(rows)


def holdout_errors(model: LatencyModel, observations: Sequence[Observation]) -> pd.DataFrame:
    """What the model makes of points that it was not fitted to, of its mode; columns as `leave_one_out`."""
    of_mode = [o for o in observations if o.point.mode == model.mode]
    predicted = log_latencies(model.terms, [o.work for o in of_mode])(model.logs)
    return pd.DataFrame([_error_row(o, log - np.log(o.latency_us)) for o, log in zip(of_mode, predicted, strict=True)])


def _error_row(observation: Observation, log_error: float) -> dict[str, object]:
    point = observation.point
    names = ("mode", "fabric", "ep_size", "ranks_per_gpu", "tokens", "format", "routing")
    return {name: getattr(point, name) for name in names} | {
        "latency_us": observation.latency_us,
        "predicted_us": observation.latency_us * np.exp(log_error),
        "error_percent": 100 * np.expm1(log_error),
    }


def _problem(terms: Terms, observations: Sequence[Observation]) -> Problem:
    recorded = np.log([o.latency_us for o in observations])
    return Problem(terms=terms, works=[o.work for o in observations], recorded=recorded)


def _left_out_logs(problem: Problem, optima: Sequence[Optimum]) -> np.ndarray:
    """log(predicted / recorded) of each point, from a fit without it that starts at every minimum of the whole fit."""
    starts = np.array([problem.prior, *(optimum.logs for optimum in optima)])
    errors = []
    for index, work in enumerate(problem.works):
        best = minima(problem.without(index), starts)[0]
        errors.append(log_latencies(problem.terms, [work])(best.logs)[0] - problem.recorded[index])
    return np.array(errors)

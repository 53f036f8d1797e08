"""Fit a mode's parameters to recorded points, say how well they predict what was left out, and predict.

The parameters are positive and the error that counts is relative, so both are taken as logarithms: Gauss-Newton with
damping (Levenberg and Marquardt) on log-latencies, with the priors as further residuals.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd

from mnnvl_lab.errors import Refused
from mnnvl_lab.latency_model.terms import TERMS, Terms
from mnnvl_lab.latency_model.work import Point, Work, work_of

MODEL_ERROR = 0.05
"""Relative error that a model this small is expected to have: what data weigh against priors."""
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
        logs: logarithms of the parameters, in the order of `TERMS[mode].parameters`.
        covariance: of `logs`.
        error: relative error (of the logarithm, root mean square) of points that were left out of the fit.
        observations: what it was fitted to.
    """

    mode: str
    logs: np.ndarray
    covariance: np.ndarray
    error: float
    observations: tuple[Observation, ...]

    @property
    def terms(self) -> Terms:
        return TERMS[self.mode]

    def predict(self, point: Point) -> Prediction:
        """The latency of a round, with the interval that parameters and model error leave open.

        Raises:
            Refused: the point is of another mode.
        """
        if point.mode != self.mode:
            raise Refused(f"point is of mode {point.mode}: this model was fitted to {self.mode}; fit one of that mode")
        work = work_of(point)
        log = _log_latencies(self.terms, [work])
        slope = _jacobian(log, self.logs)[0]
        spread = NORMAL_QUANTILE * float(np.sqrt(slope @ self.covariance @ slope + self.error**2))
        middle = float(log(self.logs)[0])
        low, latency, high = np.exp([middle - spread, middle, middle + spread])
        return Prediction(point=point, latency_us=float(latency), low_us=float(low), high_us=float(high))

    def table(self) -> pd.DataFrame:
        """The parameters: `parameter, value, factor, prior, prior_factor, from_data, meaning`.

        Factors are one standard deviation. `from_data` is the share of the prior's variance that the records removed:
        1 where they determine the parameter, 0 where all that is known of it is the prior.
        """
        variances = np.diag(self.covariance)
        return pd.DataFrame(
            {
                "parameter": p.name,
                "value": float(np.exp(log)),
                "factor": float(np.exp(np.sqrt(variance))),
                "prior": p.prior,
                "prior_factor": p.factor,
                "from_data": float(1 - variance / np.log(p.factor) ** 2),
                "meaning": p.meaning,
            }
            for p, log, variance in zip(self.terms.parameters, self.logs, variances, strict=True)
        )


def fit(observations: Sequence[Observation]) -> LatencyModel:
    """Fit one mode.

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
    logs, covariance = _solve(TERMS[mode], observations)
    error = np.sqrt(np.mean(_left_out_logs(TERMS[mode], observations) ** 2))
    return LatencyModel(
        mode=mode,
        logs=logs,
        covariance=covariance,
        error=float(error),
        observations=tuple(observations),
    )


def leave_one_out(observations: Sequence[Observation]) -> pd.DataFrame:
    """Each point predicted by a fit to all the others of its mode.

    Returns:
        A row a point: `mode, fabric, ep_size, ranks_per_gpu, tokens, format, routing, latency_us, predicted_us,
        error_percent`.
    """
    rows = []
    for mode in dict.fromkeys(o.point.mode for o in observations):
        of_mode = [o for o in observations if o.point.mode == mode]
        errors = _left_out_logs(TERMS[mode], of_mode)
        rows += [_error_row(o, float(error)) for o, error in zip(of_mode, errors, strict=True)]
    return pd.DataFrame(rows)


def held_against(model: LatencyModel, observations: Sequence[Observation]) -> pd.DataFrame:
    """What the model makes of points that it was not fitted to, of its mode; columns as `leave_one_out`."""
    of_mode = [o for o in observations if o.point.mode == model.mode]
    predicted = _log_latencies(model.terms, [o.work for o in of_mode])(model.logs)
    return pd.DataFrame([_error_row(o, log - np.log(o.latency_us)) for o, log in zip(of_mode, predicted, strict=True)])


def _error_row(observation: Observation, log_error: float) -> dict[str, object]:
    point = observation.point
    names = ("mode", "fabric", "ep_size", "ranks_per_gpu", "tokens", "format", "routing")
    return {name: getattr(point, name) for name in names} | {
        "latency_us": observation.latency_us,
        "predicted_us": observation.latency_us * np.exp(log_error),
        "error_percent": 100 * np.expm1(log_error),
    }


def _left_out_logs(terms: Terms, observations: Sequence[Observation]) -> np.ndarray:
    """log(predicted / recorded) of each point, from a fit without it."""
    start, _ = _solve(terms, observations)
    errors = []
    for i, left_out in enumerate(observations):
        others = [*observations[:i], *observations[i + 1 :]]
        logs, _ = _solve(terms, others, start=start)
        predicted = _log_latencies(terms, [left_out.work])(logs)[0]
        errors.append(predicted - np.log(left_out.latency_us))
    return np.array(errors)


def _log_latencies(terms: Terms, works: Sequence[Work]) -> Callable[[np.ndarray], np.ndarray]:
    names = [p.name for p in terms.parameters]

    def logs_of(logs: np.ndarray) -> np.ndarray:
        values = dict(zip(names, np.exp(logs), strict=True))
        return np.log([terms.latency_us(values, work) for work in works])

    return logs_of


def _solve(
    terms: Terms, observations: Sequence[Observation], *, start: np.ndarray | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """Most likely log-parameters and their covariance."""
    prior = np.log([p.prior for p in terms.parameters])
    width = np.log([p.factor for p in terms.parameters])
    recorded = np.log([o.latency_us for o in observations])
    model = _log_latencies(terms, [o.work for o in observations])

    def residuals(logs: np.ndarray) -> np.ndarray:
        return np.concatenate([(model(logs) - recorded) / MODEL_ERROR, (logs - prior) / width])

    best = levenberg_marquardt(residuals, prior if start is None else start)
    slopes = _jacobian(residuals, best)
    return best, np.linalg.inv(slopes.T @ slopes)


def levenberg_marquardt(
    residuals: Callable[[np.ndarray], np.ndarray], start: np.ndarray, *, steps: int = 60
) -> np.ndarray:
    """Where the sum of squared residuals is least, near `start` (Marquardt 1963)."""
    x, damping = np.array(start, dtype=float), 1e-2
    r = residuals(x)
    slopes = _jacobian(residuals, x)
    for _ in range(steps):
        normal = slopes.T @ slopes
        step = np.linalg.solve(normal + damping * np.diag(np.diag(normal)), -slopes.T @ r)
        tried = residuals(x + step)
        if tried @ tried < r @ r:
            x, r, damping = x + step, tried, damping / 4
            slopes = _jacobian(residuals, x)
        else:
            damping *= 4
        if np.abs(step).max() < 1e-6:
            break
    return x


def _jacobian(function: Callable[[np.ndarray], np.ndarray], x: np.ndarray, *, width: float = 1e-4) -> np.ndarray:
    steps = np.eye(len(x)) * width
    return np.stack([(function(x + step) - function(x - step)) / (2 * width) for step in steps], axis=1)

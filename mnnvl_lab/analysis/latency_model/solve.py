"""Least squares from many starting points: the best parameters, and how far other good ones differ.

Protocols are chosen by `min` and `max`, so the objective has kinks and several local minima; one start finds one of
them. Parameters are positive and errors relative, so both are taken as logarithms.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np
from scipy.optimize import least_squares, minimize

from mnnvl_lab.analysis.latency_model.terms import Terms
from mnnvl_lab.analysis.latency_model.work import Work, stacked

MODEL_ERROR = 0.05
"""Relative error that a model this small is expected to have: the weight of data against priors."""
STARTS = 100
SEED = 0
SPREAD = 2.0
"""Standard deviation of the starting points, in standard deviations of the priors."""
RIVAL = 3.84
"""Difference of objectives (of -2 log posterior) up to which a minimum is as good: chi-squared, 1 degree, 95 %."""
SAME = 0.05
"""Two minima closer than this, in standard deviations of the priors, count as one."""
FORWARD_STEP = float(np.sqrt(np.finfo(float).eps))
"""Relative step of `least_squares`' differences."""
LEVEL = 0.01
"""Slope of the objective, per standard deviation of a prior, below which a point is a minimum."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Optimum:
    """A local minimum.

    Attributes:
        logs: logarithms of the parameters, in the order of `Terms.parameters`.
        objective: sum of squared residuals of data and priors: -2 log posterior, up to a constant.
    """

    logs: np.ndarray
    objective: float


@dataclass(frozen=True, kw_only=True, eq=False)
class Problem:
    """Parameters of one mode sought from recorded medians.

    Attributes:
        terms: of the mode.
        works: of each recorded point.
        recorded: logarithms of the medians in µs.
    """

    terms: Terms
    works: Sequence[Work]
    recorded: np.ndarray
    prior: np.ndarray = field(init=False)
    width: np.ndarray = field(init=False)

    def __post_init__(self):
        object.__setattr__(self, "prior", np.log([p.prior for p in self.terms.parameters]))
        object.__setattr__(self, "width", np.log([p.factor for p in self.terms.parameters]))
        object.__setattr__(self, "works", tuple(self.works))

    def residuals(self) -> Callable[[np.ndarray], np.ndarray]:
        """Of the points, in units of `MODEL_ERROR`, then of the priors, in units of their widths.

        The function takes `[parameters]`, or `[..., parameters]` for several sets at once.
        """
        predicted = log_latencies(self.terms, self.works)

        def of(logs: np.ndarray) -> np.ndarray:
            misfit = (predicted(logs) - self.recorded) / MODEL_ERROR
            return np.concatenate([misfit, (logs - self.prior) / self.width], axis=-1)

        return of

    def without(self, index: int) -> Problem:
        """The same without one point."""
        works = [work for i, work in enumerate(self.works) if i != index]
        return Problem(terms=self.terms, works=works, recorded=np.delete(self.recorded, index))


def starting_points(problem: Problem, *, starts: int = STARTS, seed: int = SEED) -> np.ndarray:
    """`[starts, parameters]`: the priors, then seeded draws around them."""
    draws = np.random.default_rng(seed).standard_normal((starts, len(problem.prior)))
    draws[0] = 0
    return problem.prior + SPREAD * problem.width * draws


def minima(problem: Problem, starts: np.ndarray) -> list[Optimum]:
    """Distinct local minima that the starting points lead to, best first.

    Trust-region least squares (scipy) stops at kinks, so what it finds within `RIVAL` of the best is followed further
    by a search without derivatives (Nelder and Mead).
    """
    residuals = problem.residuals()
    slopes = forward_jacobian(residuals)
    found = [least_squares(residuals, start, jac=slopes, x_scale=problem.width) for start in starts]
    rough = _distinct(problem, [Optimum(logs=f.x, objective=2 * float(f.cost)) for f in found])
    best = rough[0].objective
    return _distinct(problem, [_followed(problem, o) if o.objective <= best + RIVAL else o for o in rough])


def rivals(optima: Sequence[Optimum]) -> tuple[Optimum, ...]:
    """The best of `minima` and those that fit as well within `RIVAL`."""
    return tuple(optimum for optimum in optima if optimum.objective <= optima[0].objective + RIVAL)


def covariance(problem: Problem, logs: np.ndarray) -> np.ndarray:
    """Of the log-parameters near `logs` (Gauss-Newton)."""
    slopes = jacobian(problem.residuals(), logs)
    return np.linalg.inv(slopes.T @ slopes)


def log_latencies(terms: Terms, works: Sequence[Work]) -> Callable[[np.ndarray], np.ndarray]:
    """Logarithms of the latencies of all works, as a function of the log-parameters: `[..., parameters]` to
    `[..., works]`."""
    names, work = [p.name for p in terms.parameters], stacked(works)

    def logs_of(logs: np.ndarray) -> np.ndarray:
        values = np.moveaxis(np.exp(logs)[..., None], -2, 0)
        return np.log(terms.latency_us(dict(zip(names, values, strict=True)), work))

    return logs_of


def forward_jacobian(function: Callable[[np.ndarray], np.ndarray]) -> Callable[[np.ndarray], np.ndarray]:
    """`[values, parameters]` by scipy's own forward differences, but with all steps in one call of the function."""

    def of(x: np.ndarray) -> np.ndarray:
        steps = FORWARD_STEP * np.where(x >= 0, 1.0, -1.0) * np.maximum(1.0, np.abs(x))
        moved = x + np.diag(steps)
        values, *changed = function(np.concatenate([x[None, :], moved]))
        return ((np.array(changed) - values) / (np.diag(moved) - x)[:, None]).T

    return of


def jacobian(function: Callable[[np.ndarray], np.ndarray], x: np.ndarray, *, width: float = 1e-4) -> np.ndarray:
    """`[values, parameters]`: central differences."""
    steps = np.eye(len(x)) * width
    return np.stack([(function(x + step) - function(x - step)) / (2 * width) for step in steps], axis=1)


def _followed(problem: Problem, optimum: Optimum) -> Optimum:
    """Where a descent without derivatives ends; the optimum itself where the objective is level already."""
    residuals = problem.residuals()
    slope = 2 * jacobian(residuals, optimum.logs).T @ residuals(optimum.logs)
    if np.abs(slope * problem.width).max() < LEVEL:
        return optimum

    def objective(logs: np.ndarray) -> float:
        r = residuals(logs)
        return float(r @ r)

    limits = {"xatol": 1e-5, "fatol": 1e-6, "maxiter": 20_000, "maxfev": 20_000, "adaptive": True}
    found = minimize(objective, optimum.logs, method="Nelder-Mead", options=limits)
    return Optimum(logs=found.x, objective=float(found.fun)) if found.fun < optimum.objective else optimum


def _distinct(problem: Problem, optima: Sequence[Optimum]) -> list[Optimum]:
    kept: list[Optimum] = []
    for optimum in sorted(optima, key=lambda o: o.objective):
        if all(np.abs((optimum.logs - other.logs) / problem.width).max() > SAME for other in kept):
            kept.append(optimum)
    return kept

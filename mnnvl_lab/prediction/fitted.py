"""From fitted parts to the latency of whole rounds: values, intervals and causes of several points at once."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from mnnvl_lab.prediction.calibration import NORMAL_QUANTILE, FittedPart
from mnnvl_lab.prediction.parts import CAUSES, COMBINE, DISPATCH, Counts


@dataclass(frozen=True, kw_only=True, eq=False)
class Rounds:
    """Predicted rounds of one mode; arrays `[points]` of microseconds.

    Attributes:
        latency_us, dispatch_us, combine_us: the best value of a round and of its phases.
        low_us, high_us: where a round's latency lies with probability 95 %.
        causes_us: by cause.
    """

    latency_us: np.ndarray
    dispatch_us: np.ndarray
    combine_us: np.ndarray
    low_us: np.ndarray
    high_us: np.ndarray
    causes_us: dict[str, np.ndarray]

    def dominated_by(self, index: int) -> str:
        """The cause that takes most of a round."""
        return max(self.causes_us, key=lambda cause: self.causes_us[cause][index])


def rounds(parts: Sequence[FittedPart], works: Sequence[Counts], *, within: np.ndarray) -> Rounds:
    """Predict rounds.

    The parts' errors are taken to go together, which makes the interval of their sum the widest that it can be.

    Args:
        parts: of one mode.
        works: the counts of each part, stacked.
        within: `[points]`, whether the fit has seen such a point.
    """
    shape = np.shape(within)
    costs = [f.part.costs(f.part.values(f.optima[0]), work) for f, work in zip(parts, works, strict=True)]
    by_phase = {phase: _summed(costs, 0, phase, shape) for phase in (DISPATCH, COMBINE)}
    low, high = np.zeros(shape), np.zeros(shape)
    for fitted, work in zip(parts, works, strict=True):
        spread = NORMAL_QUANTILE * fitted.deviation(work, within=within)
        middles = fitted.middles_us(work)
        low = low + middles.min(axis=0) * np.exp(-spread)
        high = high + middles.max(axis=0) * np.exp(spread)
    return Rounds(
        latency_us=by_phase[DISPATCH] + by_phase[COMBINE],
        dispatch_us=by_phase[DISPATCH],
        combine_us=by_phase[COMBINE],
        low_us=low,
        high_us=high,
        causes_us={cause: _summed(costs, 1, cause, shape) for cause in CAUSES},
    )


def _summed(costs: Sequence, place: int, name: str, shape: tuple[int, ...]) -> np.ndarray:
    found = [us for of_part in costs for key, us in of_part.items() if key[place] == name]
    return sum((np.broadcast_to(us, shape) for us in found), start=np.zeros(shape))

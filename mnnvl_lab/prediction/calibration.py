"""A device's fitted parts, kept as JSON in `data/models/`: parameters and their covariance, errors, and source."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np

from mnnvl_lab import datasets
from mnnvl_lab.errors import RecordError
from mnnvl_lab.prediction.parts import Counts, Part
from mnnvl_lab.prediction.phase_costs import PHASE_PARTS
from mnnvl_lab.prediction.round_costs import ROUND_PARTS

FOLDER = datasets.DATA / "models"
KIND = "latency model"
NORMAL_QUANTILE = 1.96
CONFIDENCE = 0.95


@dataclass(frozen=True, kw_only=True, eq=False)
class FittedPart:
    """A part with the parameters that records or a table gave it.

    Attributes:
        part: what was fitted.
        optima: `[minima, parameters]`, log-parameters of the best fit, then of others that fit as well.
        covariance: `[parameters, parameters]` of the best one's.
        error: relative error (a standard deviation of the logarithm) of what was left out of the fit.
        error_within: the same for EP sizes, formats and shapes that the fit has seen.
        errors: the same for readers: `points`, `median_percent`, `worst_percent`, and how they were found.
    """

    part: Part
    optima: np.ndarray
    covariance: np.ndarray
    error: float
    error_within: float
    errors: Mapping[str, object]

    def middles_us(self, work: Counts) -> np.ndarray:
        """`[minima, points]`: latencies at all minima that fit as well, the best one's first."""
        return np.array([self.part.latency_us(logs, work) for logs in self.optima])

    def deviation(self, work: Counts, *, within: np.ndarray, width: float = 1e-4) -> np.ndarray:
        """`[points]`: standard deviation of the latency's logarithm, of parameters and the model's own error together.

        Args:
            work: counts of the points, stacked.
            within: `[points]`, whether the fit has seen such a point.
        """
        logs = self.optima[0]
        steps = np.eye(len(logs)) * width
        ahead, behind = (np.log([self.part.latency_us(logs + sign * step, work) for step in steps]) for sign in (1, -1))
        slope = (ahead - behind) / (2 * width)
        error = np.where(within, self.error_within, self.error)
        return np.sqrt(np.einsum("in,ij,jn->n", slope, self.covariance, slope) + error**2)

    def to_dict(self) -> dict:
        names = [p.name for p in self.part.parameters]
        return {
            "mode": self.part.mode,
            "part": self.part.name,
            "parameters": {n: round(float(v), 6) for n, v in zip(names, np.exp(self.optima[0]), strict=True)},
            "optima": np.round(self.optima, 6).tolist(),
            "covariance": np.round(self.covariance, 8).tolist(),
            "error": round(self.error, 5),
            "error_within": round(self.error_within, 5),
            "errors": dict(self.errors),
        }

    @classmethod
    def from_dict(cls, entry: Mapping) -> FittedPart:
        named = {part.name: part for part in PHASE_PARTS.get(entry["mode"], ())}
        return cls(
            part=named[entry["part"]] if entry["part"] in named else ROUND_PARTS[entry["mode"]],
            optima=np.array(entry["optima"], dtype=float),
            covariance=np.array(entry["covariance"], dtype=float),
            error=float(entry["error"]),
            error_within=float(entry["error_within"]),
            errors=entry["errors"],
        )


@dataclass(frozen=True, kw_only=True, eq=False)
class Calibration:
    """What is known of a device.

    Attributes:
        gpu: key of `hardware.GPUS`.
        parts: by mode, in the order of a round.
        basis: where the numbers come from, in one sentence.
        known: what the records hold: `ep_sizes`, `formats` by mode, `routings`, `shape`, most `tokens`.
        fitted_to: files with their SHA-256.
    """

    gpu: str
    parts: Mapping[str, tuple[FittedPart, ...]]
    basis: str
    known: Mapping[str, object]
    fitted_to: tuple[Mapping[str, str], ...]

    def to_dict(self) -> dict:
        return {
            "kind": KIND,
            "gpu": self.gpu,
            "basis": self.basis,
            "known": dict(self.known),
            "fitted_to": [dict(entry) for entry in self.fitted_to],
            "parts": [fitted.to_dict() for of_mode in self.parts.values() for fitted in of_mode],
        }

    def save(self, folder: Path = FOLDER) -> Path:
        folder.mkdir(parents=True, exist_ok=True)
        path = folder / f"{self.gpu}.json"
        path.write_text(json.dumps(self.to_dict(), indent=1) + "\n")
        return path


@lru_cache(maxsize=16)
def load_calibration(gpu: str, folder: Path = FOLDER) -> Calibration | None:
    """The calibration of a device, or None where there is none.

    Raises:
        RecordError: the package runs without its checkout, or the file is damaged.
    """
    datasets.require_data(folder.is_dir(), folder, "fitted models")
    path = folder / f"{gpu}.json"
    if not path.is_file():
        return None
    try:
        found = json.loads(path.read_text())
        parts = [FittedPart.from_dict(entry) for entry in found["parts"]]
        return Calibration(
            gpu=found["gpu"],
            parts={mode: tuple(p for p in parts if p.part.mode == mode) for mode in {p.part.mode: None for p in parts}},
            basis=found["basis"],
            known=found["known"],
            fitted_to=tuple(found["fitted_to"]),
        )
    except (ValueError, KeyError, TypeError) as reason:
        raise RecordError(f"{path}: no latency model ({reason}); run python -m tools.calibrate") from reason

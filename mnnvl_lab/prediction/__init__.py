"""Predict layouts that were not measured: latency with an interval, lower bound, what dominates, and the source."""

from mnnvl_lab.prediction.calibration import CONFIDENCE, Calibration, FittedPart, load_calibration
from mnnvl_lab.prediction.crossings import predicted_crossings, table_crossings
from mnnvl_lab.prediction.forecast import Forecast, ModeForecast
from mnnvl_lab.prediction.holdout import against_published
from mnnvl_lab.prediction.predict import predict
from mnnvl_lab.prediction.table_fit import left_out_errors

__all__ = [
    "CONFIDENCE",
    "Calibration",
    "FittedPart",
    "Forecast",
    "ModeForecast",
    "against_published",
    "left_out_errors",
    "load_calibration",
    "predict",
    "predicted_crossings",
    "table_crossings",
]

"""A latency model with few, physical parameters: fitted to records, judged by what it was not fitted to, predicting.

A prediction is no measurement: it carries an interval, its tables have columns of their own, and it joins no records.
"""

from mnnvl_lab.analysis.latency_model.evaluate import evaluated, frame, observations, score
from mnnvl_lab.analysis.latency_model.fit import (
    LatencyModel,
    Observation,
    Prediction,
    fit,
    holdout_errors,
    leave_one_out,
)
from mnnvl_lab.analysis.latency_model.terms import TERMS, Parameter, Terms
from mnnvl_lab.analysis.latency_model.work import Point, Work, work_of

__all__ = [
    "TERMS",
    "LatencyModel",
    "Observation",
    "Parameter",
    "Point",
    "Prediction",
    "Terms",
    "Work",
    "evaluated",
    "fit",
    "frame",
    "holdout_errors",
    "leave_one_out",
    "observations",
    "score",
    "work_of",
]

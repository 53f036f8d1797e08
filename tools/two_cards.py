"""The same sweeps on two H100s and on two H200s, and how far the H100s' model missed the H200s."""

from __future__ import annotations

from functools import cache

import pandas as pd

from mnnvl_lab import datasets, records
from mnnvl_lab.analysis import latency_model as lm
from tools.pages import markdown
from tools.report_data import PAIR

OTHER = "h200x2_nvlink_ep2"
PREDICTIONS = datasets.DATA / "predictions" / "2026-11-26-h200"
SHOWN_TOKENS = (1, 128, 1024, 4096)


@cache
def compared() -> pd.DataFrame:
    """Every recorded point of the H200s that was predicted: record, prediction, interval and error."""
    tables = [datasets.load_recorded(f"{OTHER}_{part}") for part in ("bf16", "fp8")]
    observations = [o for table in tables for o in lm.observations(table)]
    files = sorted(PREDICTIONS.glob("*.csv"))
    return lm.evaluated(pd.concat(map(pd.read_csv, files)), observations)


def two_cards() -> str:
    """Medians of rounds in bf16 on either card, and the prediction for the H200s."""
    first, second = medians_us(PAIR), medians_us(f"{OTHER}_bf16")
    points = compared().query("format == 'bf16' and routing == 'uniform'").set_index(["mode", "tokens"])
    rows = [
        {
            "mode": mode,
            "tokens": tokens,
            "H100 (µs)": first[mode, tokens],
            "H200 (µs)": second[mode, tokens],
            "H200 against H100 (%)": 100 * (second[mode, tokens] / first[mode, tokens] - 1),
            "predicted for H200 (µs)": _interval(points.loc[(mode, tokens)]),
            "error of it (%)": points.loc[(mode, tokens), "error_percent"],
        }
        for mode in dict.fromkeys(points.index.get_level_values("mode"))
        for tokens in SHOWN_TOKENS
    ]
    return markdown(pd.DataFrame(rows))


def _interval(point: pd.Series) -> str:
    return f"{point['predicted_us']:.1f} ({point['low_us']:.1f} to {point['high_us']:.1f})"


def medians_us(name: str) -> pd.Series:
    """Median of the slowest rank by mode and tokens: graph clock, whole rounds, uniform routing."""
    rounds = datasets.load_recorded(name).query("clock == 'graph' and phase == 'round' and routing == 'uniform'")
    return records.summary(rounds, by=["mode", "tokens"]).set_index(["mode", "tokens"])["p50_us"]


def h200_errors() -> str:
    """Errors of the predictions for the H200s by mode and format."""
    return markdown(lm.score(compared()))

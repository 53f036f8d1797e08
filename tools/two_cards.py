"""Records made after they were predicted by the model of two H100s: two H200s, and four H100s; how far it missed."""

from __future__ import annotations

from functools import cache

import pandas as pd

from mnnvl_lab import datasets, records
from mnnvl_lab.analysis import latency_model as lm
from tools.pages import markdown, tokens_heading
from tools.report_data import PAIR, predictions

OTHER = "h200x2_nvlink_ep2"
FOUR = "h100x4_nvlink_ep4"
PREDICTIONS = datasets.DATA / "predictions" / "2026-11-26-h200"
SHOWN_TOKENS = (1, 128, 1024, 4096)
SHOWN_OF_FOUR = (*SHOWN_TOKENS, 8192)


@cache
def compared() -> pd.DataFrame:
    """Every recorded point of the H200s that was predicted: record, prediction, interval and error."""
    return _compared(OTHER, pd.concat(map(pd.read_csv, sorted(PREDICTIONS.glob("*.csv")))))


@cache
def compared_of_four() -> pd.DataFrame:
    """The same of four H100s with a rank each."""
    return _compared(FOUR, predictions(4))


def _compared(record: str, predicted: pd.DataFrame) -> pd.DataFrame:
    tables = [datasets.load_recorded(f"{record}_{part}") for part in ("bf16", "fp8")]
    return lm.evaluated(predicted, [o for table in tables for o in lm.observations(table)])


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


def four_gpus() -> str:
    """Medians of rounds in bf16 on four H100s, beside what was predicted; pico was not predicted."""
    found = medians_us(f"{FOUR}_bf16")
    points = compared_of_four().query("format == 'bf16' and routing == 'uniform'").set_index(["mode", "tokens"])
    rows = [
        {"mode": mode} | {tokens_heading(n): _beside(found, points, mode, n) for n in SHOWN_OF_FOUR}
        for mode in dict.fromkeys(found.index.get_level_values("mode"))
    ]
    return markdown(pd.DataFrame(rows))


def _beside(found: pd.Series, points: pd.DataFrame, mode: str, tokens: int) -> str:
    words = f"{found[mode, tokens]:.0f}"
    return f"{words}; {_interval(points.loc[(mode, tokens)])}" if (mode, tokens) in points.index else words


def four_gpus_errors() -> str:
    """Errors of the predictions for four H100s by mode and format."""
    return markdown(lm.score(compared_of_four()))

"""Recorded results of the reproducers of faults in the kernels (`data/findings`), as tables."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path

import pandas as pd

from mnnvl_lab import datasets

FOLDER = datasets.DATA / "findings"
CONFIDENCE = 0.95
PER = 100_000  # calls that a rate is given for


def kept(name: str, folder: Path = FOLDER) -> Iterator[tuple[dict, list[dict]]]:
    """Provenance and rows of every file of a reproducer.

    Raises:
        RecordError: there is none; the package runs without its checkout.
    """
    paths = sorted(folder.glob(f"{name}_*.json"))
    datasets.require_data(bool(paths), folder, "recorded findings")
    for path in paths:
        one = json.loads(path.read_text())
        yield one["provenance"], one["rows"]


def machines(name: str, folder: Path = FOLDER) -> list[str]:
    """What the files were recorded on, a line for each kind of machine."""
    lines = [
        f"{about['gpus_used']} x {about['gpus'][0].split(',')[0]}, driver {about['gpus'][0].split(', ')[1]}, "
        f"torch {about['torch']}, CUDA {about['cuda']}, flashinfer-python {about['flashinfer']}, "
        f"{about['created_at'][:10]}"
        for about, _ in kept(name, folder)
    ]
    return list(dict.fromkeys(lines))


def card_of(about: dict) -> str:
    """Model of the GPUs that a file was recorded on, without maker and memory: `H100`."""
    names = dict.fromkeys(gpu.split(",")[0] for gpu in about["gpus"][: about["gpus_used"]])
    return " and ".join(match[0] if (match := re.search(r"\S*\d\S*", name)) else name for name in names)


def prepares(folder: Path = FOLDER) -> pd.DataFrame:
    """One row per case of `two_sided_prepare`: what was tried, and how many steps were lost."""
    return pd.DataFrame(
        {
            "card": card_of(about),
            "ep": about["ranks"],
            "kernel": "mended" if about["fixed"] else "0.7.2",
            "top_k": row["top_k"],
            "tokens": row["tokens"],
            "traffic": row["traffic"],
            "least_rows": min(map(min, row["rows"])),
            "most_rows": max(map(max, row["rows"])),
            "full_pairs": row["pairs_published_twice"],
            "prepares": row["prepares"],
            "lost_to_itself": sum(row["lost_to_itself"]),
            "lost_to_peers": sum(row["lost_to_peers"]),
            "lost": sum(row["lost_to_itself"]) + sum(row["lost_to_peers"]),
            "checked": row["checked_rounds"],
            "until": row["prepares_until_checked_wrong"],
            "first_wrong": row["first_wrong"],
            "later_wrong": max(wrong for wrong, _ in row["wrong_of_later_checks"]),
            "head_left": max(map(max, row["heads_left"])),
        }
        for about, rows in kept("two_sided_prepare", folder)
        for row in rows
    )


def sizes(folder: Path = FOLDER) -> pd.DataFrame:
    """One row per case of `changing_size`: wrong combines of the first and second round, and the time of a pair."""
    return pd.DataFrame(
        {
            "card": card_of(about),
            "ep": about["ranks"],
            "what": row["what"],
            "cure": row["cure"],
            "gap_us": row["gap_us"],
            "first": _load(row["rounds"][0]),
            "second": _load(row["rounds"][1]),
            "others_share": row["rounds"][0][0][1] / row["rounds"][0][0][0],
            "pairs": row["pairs"],
            "wrong": max(combines[0] for combines in row["wrong_combines"]),
            "wrong_second": max(combines[1] for combines in row["wrong_combines"]),
            "wrong_rows": sum(sum(rows) for rows in row["wrong_rows"]),
            "pair_us": row["pair_us"],
        }
        for about, rows in kept("changing_size", folder)
        for row in rows
    )


def _load(entry: list) -> str:
    """Tokens of the ranks and their maximum: `2048, 1 of 2048`; equal ranks behind the first are said once."""
    (first, *others), limit = entry
    rest = f"{others[0]}" if len(others) == 1 else f"{others[0]} on {len(others)} ranks"
    return f"{first}, {rest}; max {limit}"


def lost_steps(folder: Path = FOLDER) -> pd.DataFrame:
    """Steps lost by card, EP size, rows to a target and what ran beside, of FlashInfer 0.7.2 with top-8.

    Returns:
        One row per group: `calls`, `lost`, and per 100,000 calls the rate with its 95 % interval, `low` to `high`.
    """
    return _rates(_groups(folder).agg(calls=("prepares", "sum"), lost=("lost", "sum")), "lost")


def wrong_rounds(folder: Path = FOLDER) -> pd.DataFrame:
    """Cases whose connections nobody reset, in the groups of `lost_steps`: how many had a wrong round.

    Returns:
        One row per group: `cases`, `calls` until their first wrong round or their end, `wrong` cases, and per 100,000
        calls the rate of first wrong rounds with its 95 % interval, `low` to `high`.
    """
    return _rates(
        _groups(folder).agg(cases=("until", "size"), calls=("until", "sum"), wrong=("went_wrong", "sum")), "wrong"
    )


def _groups(folder: Path) -> pd.api.typing.DataFrameGroupBy:
    cases = prepares(folder).query("kernel == '0.7.2' and top_k == 8")
    cases = cases.assign(
        last_step=cases["full_pairs"].gt(0).map({True: "full", False: "not full"}),
        went_wrong=cases["first_wrong"].notna(),
    )
    return cases.groupby(["card", "ep", "last_step", "traffic"])


def _rates(sums: pd.DataFrame, events: str) -> pd.DataFrame:
    """Appends the rate of `events` per 100,000 `calls`, and its interval."""
    groups = sums.reset_index()
    bounds = [poisson_interval(count, calls) for count, calls in zip(groups[events], groups["calls"], strict=True)]
    rates = pd.DataFrame(bounds, columns=["low", "high"]).mul(PER)
    rates.insert(0, "rate", PER * groups[events] / groups["calls"])
    return groups.join(rates.round(1))


def poisson_interval(events: int, trials: int) -> tuple[float, float]:
    """Bounds that hold the rate per trial with 95 % (Garwood 1936, from the chi-squared distribution)."""
    from scipy import stats

    tail = (1 - CONFIDENCE) / 2
    low = stats.chi2.ppf(tail, 2 * events) / 2 if events else 0.0
    return low / trials, stats.chi2.ppf(1 - tail, 2 * events + 2) / 2 / trials
